"""The training set: image folders with captions, resolution buckets, cached latents and embeddings,
and seeded draws.

Which samples a step sees, and every random number of a sample, follow from (seed, sample number)
alone: neither a resume nor the way samples are batched changes them."""

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import ConfigError
from .families import Family, Features, Text, fingerprint
from .job import Dataset, Job

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CACHE_FOLDER = "_soarflow_cache"


@dataclass(frozen=True)
class Item:
    """A picture in one bucket: its cached latent (C, h, w), its caption, and how often that is left
    out."""

    latent: Tensor
    caption: str
    dropout: float


@dataclass(frozen=True)
class Draw:
    """One sample of a step: an item and the generator of all its random numbers."""

    item: Item
    generator: torch.Generator


class TrainingSet:
    """All items of a job with their captions' embeddings."""

    def __init__(
        self, items: list[Item], embeddings: dict[str, Text], batch_size: int, seed: int
    ) -> None:
        self.items, self.embeddings, self.batch_size, self.seed = (
            items,
            embeddings,
            batch_size,
            seed,
        )
        # a batch may be asked for on either side of an epoch's end
        self.epoch = functools.lru_cache(maxsize=2)(self._group)
        self.batches_per_epoch = len(self.epoch(0))

    def batch(self, number: int) -> list[Draw]:
        """The batch of that running number: items of one bucket, each with its own generator."""
        epoch, index = divmod(number, self.batches_per_epoch)
        batches = self.epoch(epoch)
        first = epoch * len(self.items) + sum(map(len, batches[:index]))
        return [
            Draw(self.items[item], seeded_generator(self.seed, "sample", first + offset))
            for offset, item in enumerate(batches[index])
        ]

    def _group(self, epoch: int) -> list[list[int]]:
        """An epoch's batches: items in a random order, grouped by the shape of their latents as
        they come."""
        order = torch.randperm(
            len(self.items), generator=seeded_generator(self.seed, "epoch", epoch)
        ).tolist()
        batches: list[list[int]] = []
        open_batches: dict[torch.Size, list[int]] = {}
        for index in order:
            batch = open_batches.setdefault(self.items[index].latent.shape, [])
            batch.append(index)
            if len(batch) == self.batch_size:
                batches.append(open_batches.pop(self.items[index].latent.shape))
        return batches + list(open_batches.values())

    def features(self, captions: list[str], device: torch.device) -> Features:
        texts = (self.embeddings[caption] for caption in captions)
        return [{key: value.to(device) for key, value in text.items()} for text in texts]


def seeded_generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator whose stream belongs to a seed and a purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def load_training_set(job: Job, family: Family) -> TrainingSet:
    """Reads the folders, encodes what is not cached yet, and returns everything in memory. Raises
    ConfigError."""
    from tqdm import tqdm

    items: list[Item] = []
    encoders = (
        fingerprint(family.pipeline.vae),
        "".join(map(fingerprint, family.text_encoders())),
    )
    captions = {""}
    store: dict[str, bool] = {"": all(dataset.cache_text_embeddings for dataset in job.datasets)}
    for dataset in job.datasets:
        pictures = list_images(dataset, job.trigger_word)
        for path, caption in tqdm(pictures, desc="encoding pictures", leave=False, delay=1):
            captions.add(caption)
            store[caption] = dataset.cache_text_embeddings
            for resolution in dataset.resolution:
                latent = _latent(path, resolution, dataset, family, encoders[0])
                items += [Item(latent, caption, dataset.caption_dropout_rate)] * dataset.num_repeats
    folder = Path(job.datasets[0].folder_path) / CACHE_FOLDER
    embeddings = {
        text: _cached(
            folder / f"text_{_key('text', text, encoders[1])}.safetensors",
            store[text],
            _encode_text,
            family,
            text,
        )
        for text in tqdm(sorted(captions), desc="encoding captions", leave=False, delay=1)
    }
    return TrainingSet(items, embeddings, job.train.batch_size, job.train.seed)


def list_images(dataset: Dataset, trigger_word: str | None = None) -> list[tuple[Path, str]]:
    """Pictures of a folder with their captions, in the order of their names. Raises ConfigError."""
    folder = Path(dataset.folder_path)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ConfigError(
            f"datasets.folder_path {folder} has no pictures ({', '.join(IMAGE_SUFFIXES)})."
        )
    return [(path, _caption(path, dataset, trigger_word)) for path in paths]


def _caption(path: Path, dataset: Dataset, trigger_word: str | None) -> str:
    file = path.with_suffix("." + dataset.caption_ext.removeprefix("."))
    if file.is_file():
        caption = file.read_text(encoding="utf-8").strip()
    elif dataset.default_caption is not None:
        caption = dataset.default_caption
    else:
        raise ConfigError(
            f"{path} has no caption: write it to {file.name} beside it, or set "
            "datasets.default_caption."
        )
    if trigger_word:
        caption = caption.replace("[trigger]", trigger_word)
        if trigger_word not in caption:
            caption = f"{trigger_word} {caption}"
    return caption


def bucket_size(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) with the picture's aspect and about resolution^2 pixels, both multiples of
    `multiple`."""
    scale = resolution / math.sqrt(width * height)
    snapped = [max(round(side * scale / multiple), 1) * multiple for side in (width, height)]
    return snapped[0], snapped[1]


def load_pixels(path: Path, resolution: int, multiple: int) -> Tensor:
    """A picture in its bucket, scaled to cover it and cropped to the middle: (3, H, W) in [-1,
    1]."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read as a picture: {error}. Repair or remove it."
        ) from error
    size = bucket_size(*image.size, resolution, multiple)
    image = image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _latent(path: Path, resolution: int, dataset: Dataset, family: Family, encoder: str) -> Tensor:
    key = _key(hashlib.sha256(path.read_bytes()).hexdigest(), resolution, encoder)
    file = path.parent / CACHE_FOLDER / f"{path.stem}_{key}.safetensors"
    on_disk = dataset.cache_latents_to_disk
    return _cached(file, on_disk, _encode_image, family, path, resolution)["value"]


def _encode_image(family: Family, path: Path, resolution: int) -> Text:
    pixels = load_pixels(path, resolution, family.size_multiple)
    return {"value": family.encode_images(pixels.unsqueeze(0))[0]}


def _encode_text(family: Family, text: str) -> Text:
    return family.encode_text([text])[0]


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _cached(file: Path, on_disk: bool, encode: Any, *arguments: Any) -> Text:
    """What `encode` gives, from the cache file if it is there; a new one is written whole or not at
    all."""
    if on_disk and file.exists():
        return load_file(file)
    encoded = encode(*arguments).items()
    tensors = {key: value.float().cpu().contiguous() for key, value in encoded}
    if on_disk:
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(file)
    return tensors


def micro_batches(training_set: TrainingSet, step: int, accumulation: int) -> Iterator[list[Draw]]:
    """The batches of one optimizer step."""
    for index in range(accumulation):
        yield training_set.batch(step * accumulation + index)
