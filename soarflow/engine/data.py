"""The training set: latents and embeddings from the cache, resolution buckets, and seeded draws.

Which samples a step sees, and every random number of a sample, follow from (seed, sample number)
alone: neither a resume nor the way samples are batched changes them."""

import contextlib
import functools
import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from .cache import FORMAT, ArrowFile, Store, is_writable, read_arrow
from .families import Family, Features, Text, fingerprint
from .job import Job
from .pictures import bucket_size, read_picture, to_pixels
from .sections import Dataset
from .sources import Picture, Source, caption_of, open_source, with_trigger

LISTING = {
    "name": "string",
    "digest": "string",
    "caption": "string",
    "width": "int32",
    "height": "int32",
}
"""What is kept of a source's pictures, so that it is read again only when it has changed."""


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


@dataclass(frozen=True)
class Epoch:
    """The items of an epoch in their order, and where each batch begins; one more at the end."""

    order: np.ndarray
    starts: np.ndarray


CaptionDraw = Callable[[int, torch.Generator], str]


class TrainingSet:
    """All items of a job with their captions' embeddings.

    `buckets` are numbers of the items' shapes; `draw_caption` says an item's caption where it is
    drawn anew each time."""

    def __init__(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, Text],
        batch_size: int,
        seed: int,
        buckets: Sequence[Any] | None = None,
        draw_caption: CaptionDraw | None = None,
    ) -> None:
        self.items, self.embeddings, self.batch_size, self.seed = (
            items,
            embeddings,
            batch_size,
            seed,
        )
        self.buckets = [item.latent.shape for item in items] if buckets is None else buckets
        self.draw_caption = draw_caption
        # a batch may be asked for on either side of an epoch's end
        self.epoch = functools.lru_cache(maxsize=2)(self._group)
        self.batches_per_epoch = len(self.epoch(0).starts) - 1

    def batch(self, number: int) -> list[Draw]:
        """The batch of that running number: items of one bucket, each with its own generator."""
        epoch, index = divmod(number, self.batches_per_epoch)
        start, end = (
            epoch * len(self.items) + self.epoch(epoch).starts[index : index + 2]
        ).tolist()
        return self.samples(range(start, end))

    def samples(self, numbers: Iterable[int]) -> list[Draw]:
        """The samples of these running numbers."""
        draws = []
        for number in numbers:
            index, generator = self._place(number)
            item = self.items[index]
            if self.draw_caption is not None:
                item = replace(item, caption=self.draw_caption(index, generator))
            draws.append(Draw(item, generator))
        return draws

    def drawn_captions(self, numbers: Iterable[int]) -> set[str]:
        """The captions that these samples have."""
        assert self.draw_caption is not None
        return {self.draw_caption(*self._place(number)) for number in numbers}

    def _place(self, number: int) -> tuple[int, torch.Generator]:
        epoch, position = divmod(number, len(self.items))
        index = int(self.epoch(epoch).order[position])
        return index, seeded_generator(self.seed, "sample", number)

    def _group(self, epoch: int) -> Epoch:
        """Items in a random order, grouped by the shape of their latents as they come."""
        order = torch.randperm(
            len(self.items), generator=seeded_generator(self.seed, "epoch", epoch)
        ).tolist()
        batches: list[list[int]] = []
        open_batches: dict[Any, list[int]] = {}
        for index in order:
            batch = open_batches.setdefault(self.buckets[index], [])
            batch.append(index)
            if len(batch) == self.batch_size:
                batches.append(open_batches.pop(self.buckets[index]))
        batches += open_batches.values()
        lengths = [len(batch) for batch in batches]
        flat = np.fromiter((index for batch in batches for index in batch), np.int64, len(order))
        return Epoch(flat, np.cumsum([0, *lengths]))

    def features(self, captions: list[str], device: torch.device) -> Features:
        texts = (self.embeddings[caption] for caption in captions)
        return [{key: value.to(device) for key, value in text.items()} for text in texts]


def seeded_generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator whose stream belongs to a seed and a purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Part:
    """One data set, encoded: captions by picture; picture, row in the store and bucket by item."""

    dataset: Dataset
    trigger_word: str | None
    captions: list[str]
    store: Store
    picture: np.ndarray
    row: np.ndarray
    bucket: list[str]

    @property
    def redrawn(self) -> bool:
        """Whether each draw has a caption of its own."""
        return self.dataset.shuffle_tokens or self.dataset.token_dropout_rate > 0

    def caption(self, index: int, generator: torch.Generator) -> str:
        """The caption of a draw; random numbers are taken only where it is redrawn."""
        caption = self.captions[self.picture[index]]
        if not self.redrawn:
            return caption
        return redraw(caption, self.dataset, self.trigger_word, generator)


class Items(Sequence[Item]):
    """The items of several data sets, read when they are asked for."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part.row) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        part, within = self.place(index)
        latent = part.store[int(part.row[within])]["value"]
        caption = part.captions[part.picture[within]]
        return Item(latent, caption, part.dataset.caption_dropout_rate)

    def place(self, index: int) -> tuple[Part, int]:
        """The data set of an item, and its number in it."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - int(self.starts[part])

    def buckets(self) -> list[int]:
        """A number for each item's shape."""
        shapes = [shape for part in self.parts for shape in part.bucket]
        numbers = {shape: number for number, shape in enumerate(dict.fromkeys(shapes))}
        return [numbers[shape] for shape in shapes]

    def draw_caption(self, index: int, generator: torch.Generator) -> str:
        part, within = self.place(index)
        return part.caption(within, generator)


class Embeddings(Mapping[str, Text]):
    """What the encoders say of each caption, read when it is asked for."""

    def __init__(self, store: Store, rows: dict[str, int]) -> None:
        self.store, self.rows = store, rows

    def __getitem__(self, caption: str) -> Text:
        return self.store[self.rows[caption]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def redraw(
    caption: str, dataset: Dataset, trigger_word: str | None, generator: torch.Generator
) -> str:
    """A caption with parts left out and in another order, as AI Toolkit's token_dropout_rate,
    keep_tokens and shuffle_tokens say; the trigger word is put in last."""
    tokens = [token.strip() for token in caption.split(",")]
    if dataset.token_dropout_rate > 0:
        chances = torch.rand(len(tokens), generator=generator).tolist()
        tokens = [
            token
            for number, (token, chance) in enumerate(zip(tokens, chances, strict=True))
            if number < dataset.keep_tokens or chance >= dataset.token_dropout_rate
        ]
    if dataset.shuffle_tokens:
        order = torch.randperm(len(tokens), generator=generator).tolist()
        tokens = [tokens[index] for index in order]
    return with_trigger(", ".join(tokens), trigger_word).strip()


def load_training_set(job: Job, family: Family, say: Callable[[str], None] = print) -> TrainingSet:
    """Finds the pictures, encodes what is not in the cache yet, and opens it. Raises
    ConfigError."""
    encoding = Encoding(job, family, say)
    parts = [encoding.pictures(dataset) for dataset in job.datasets]
    items = Items(parts)
    redrawn = any(part.redrawn for part in parts)
    training_set = TrainingSet(
        items, {}, job.train.batch_size, job.train.seed,
        items.buckets(), items.draw_caption if redrawn else None,
    )  # fmt: skip
    captions = {"", *(each for part in parts if not part.redrawn for each in part.captions)}
    if redrawn:  # which they will be is known: the encoders are not needed again
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        train = job.train
        number = train.steps * train.gradient_accumulation * train.batch_size * processes
        captions |= training_set.drawn_captions(range(number))
    training_set.embeddings = encoding.texts(captions)
    return training_set


class Encoding:
    """What a family's encoders make of a job's pictures and captions, from the cache where it is
    there."""

    def __init__(self, job: Job, family: Family, say: Callable[[str], None]) -> None:
        self.job, self.family = job, family
        self.first = os.environ.get("RANK", "0") == "0"
        self.say = say if self.first else lambda text: None
        self.homes: list[Path] = []
        vae = family.pipeline.vae
        self.image_encoder = fingerprint(vae)
        self.text_encoder = "".join(map(fingerprint, family.text_encoders()))
        self.batch = _together(next(vae.parameters()).device)

    def bar(self, things: Iterable[Any], what: str, total: int | None = None) -> Any:
        from tqdm import tqdm

        return tqdm(
            things, total=total, desc=f"encoding {what}", leave=False, delay=1,
            disable=None if self.first else True,
        )  # fmt: skip

    @contextlib.contextmanager
    def store(self, home: Path, kind: str, keep: bool) -> Iterator[Store]:
        """The cache of a data set, locked: of several processes one encodes, the others wait and
        find it."""
        from filelock import FileLock

        temporary = None
        folders = [home]
        if not keep:
            temporary = TemporaryDirectory(prefix="soarflow_")
            folders = [Path(temporary.name)]
        elif not is_writable(home):
            folders.append(self.job.save_root / "cache")
            if not is_writable(folders[1]):
                raise ConfigError(
                    f"training_folder: {self.job.save_root} cannot be written to. Choose another."
                )
            self.say(f"{home.parent} is read-only: what is encoded is kept in {folders[1]}")
        with FileLock(folders[-1] / f".{kind}.lock"):
            store = Store(folders, kind)
            store.temporary = temporary  # lives as long
            yield store

    def pictures(self, dataset: Dataset) -> Part:
        """Latents of a data set's pictures."""
        source = open_source(dataset)
        self.say(source.found)
        self.homes.append(source.home)
        with self.store(source.home, "latents", dataset.cache_latents_to_disk) as store:
            listing = _listing(source, store)
            if listing is None or any(
                key not in store
                for digest, size in zip(listing["digest"], _sizes(listing), strict=True)
                for key, *_ in self._variants(dataset, digest, size)
            ):
                listing = self._encode_pictures(source, dataset, store)
        return self._part(dataset, listing, store)

    def _variants(
        self, dataset: Dataset, digest: str, size: tuple[int, int] | None
    ) -> list[tuple[str, Any, bool]]:
        """(key, resolution or size, mirrored) of everything that is made of a picture."""
        multiple = self.family.size_multiple
        return [
            (_key(digest, each, mirrored, multiple, self.image_encoder), each, mirrored)
            for each in ([size] if size else dataset.resolution)
            for mirrored in ([False, True] if dataset.flip_x else [False])
        ]

    def _encode_pictures(
        self, source: Source, dataset: Dataset, store: Store
    ) -> dict[str, list[Any]]:
        """One pass through a source: what is missing is encoded. Returns its listing."""
        listing: dict[str, list[Any]] = {name: [] for name in LISTING}
        waiting: dict[tuple[int, int], dict[str, Tensor]] = defaultdict(dict)
        keep = True
        with store.filling():
            for picture in self.bar(source.pictures(), "pictures", source.number):
                caption_of(picture.caption, picture.name, dataset)
                digest = hashlib.sha256(picture.content).hexdigest()
                width, height = picture.size or (0, 0)
                row = (picture.name, digest, picture.caption, width, height)
                for column, value in zip(listing.values(), row, strict=True):
                    column.append(value)
                keep &= not picture.elsewhere
                self._take(picture, digest, dataset, store, waiting)
            for size in list(waiting):
                self._encode(waiting.pop(size), store)
        if not listing["name"]:
            raise ConfigError(f"{source.found}: there is no picture in it.")
        if keep:
            _keep_listing(source, store, listing)
        return listing

    def _take(
        self,
        picture: Picture,
        digest: str,
        dataset: Dataset,
        store: Store,
        waiting: dict[tuple[int, int], dict[str, Tensor]],
    ) -> None:
        """Encodes a picture as soon as others of its size fill a batch."""
        variants = self._variants(dataset, digest, picture.size)
        missing = [each for each in variants if each[0] not in store]
        if not missing:
            return
        image = read_picture(picture.content, picture.name)
        for key, wanted, mirrored in missing:
            size = self._bucket(image.size, wanted)
            waiting[size][key] = to_pixels(image, size, mirrored)
            if len(waiting[size]) >= self.batch:
                self._encode(waiting.pop(size), store)
        if sum(map(len, waiting.values())) > 4 * self.batch:
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            self._encode(waiting.pop(fullest), store)

    def _bucket(self, size: tuple[int, int], wanted: Any) -> tuple[int, int]:
        multiple = self.family.size_multiple
        if isinstance(wanted, int):
            return bucket_size(*size, wanted, multiple)
        width, height = (max(round(side / multiple), 1) * multiple for side in wanted)
        return width, height

    def _encode(self, pixels: dict[str, Tensor], store: Store) -> None:
        latents = self.family.encode_images(torch.stack(list(pixels.values())))
        for key, latent in zip(pixels, latents, strict=True):
            store.add(key, "x".join(map(str, latent.shape)), {"value": latent})

    def _part(self, dataset: Dataset, listing: dict[str, list[Any]], store: Store) -> Part:
        trigger_word = dataset.trigger_word or self.job.trigger_word
        redrawn = dataset.shuffle_tokens or dataset.token_dropout_rate > 0
        captions, pictures, rows = [], [], []
        for number, (name, digest, caption, size) in enumerate(
            zip(
                listing["name"], listing["digest"], listing["caption"], _sizes(listing), strict=True
            )
        ):
            caption = caption_of(caption, name, dataset)
            captions.append(caption if redrawn else with_trigger(caption, trigger_word))
            for key, *_ in self._variants(dataset, digest, size):
                rows += [store.rows[key]] * dataset.num_repeats
                pictures += [number] * dataset.num_repeats
        labels = store.labels()
        bucket = [sys.intern(labels[row]) for row in rows]
        store.rows = {}  # not needed any more, and as long as the data set
        return Part(
            dataset, trigger_word, captions, store, np.array(pictures), np.array(rows), bucket
        )

    def texts(self, captions: set[str]) -> Embeddings:
        """What the encoders say of captions."""
        keep = all(dataset.cache_text_embeddings for dataset in self.job.datasets)
        home = self.homes[0]
        keys = {text: _key("text", text, self.text_encoder) for text in sorted(captions)}
        with self.store(home, "texts", keep) as store:
            missing = [text for text, key in keys.items() if key not in store]
            if missing:
                with store.filling():
                    self._encode_texts(missing, keys, store)
        rows = {text: store.rows[key] for text, key in keys.items()}
        labels = store.labels()
        cut = sum(labels[row] == "cut" for row in rows.values())
        if cut:
            self.say(
                f"warning: {cut} of {len(rows)} captions are longer than the text encoder takes, "
                "and their ends are cut off"
            )
        store.rows = {}
        return Embeddings(store, rows)

    def _encode_texts(self, texts: list[str], keys: dict[str, str], store: Store) -> None:
        starts = range(0, len(texts), self.batch)
        for start in self.bar(starts, "captions"):
            part = texts[start : start + self.batch]
            made = zip(
                part, self.family.too_long(part), self.family.encode_text(list(part)), strict=True
            )
            for text, cut, tensors in made:
                store.add(keys[text], "cut" if cut else "", tensors)


def _together(device: torch.device) -> int:
    """How many are encoded at once: a CPU gains nothing from batches, and alone each latent is the
    same whatever comes beside it."""
    return 1 if device.type == "cpu" else 8


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _sizes(listing: dict[str, list[Any]]) -> list[tuple[int, int] | None]:
    sizes = zip(listing["width"], listing["height"], strict=True)
    return [size if all(size) else None for size in sizes]


def _listing_name(source: Source) -> str:
    return f"listing-v{FORMAT}-{_key(source.identity)}.arrow"


def _listing(source: Source, store: Store) -> dict[str, list[Any]] | None:
    """What is known of a source that has not changed."""
    for folder in store.folders:
        file = folder / _listing_name(source)
        table = read_arrow(file, LISTING) if file.is_file() else None
        if table is not None:
            return table.to_dict()
    return None


def is_listed(source: Source, job: Job) -> bool:
    """Whether all of a source's pictures were read before, and nothing of it has changed since."""
    folders = (source.home, job.save_root / "cache")
    return any((folder / _listing_name(source)).is_file() for folder in folders)


def _keep_listing(source: Source, store: Store, listing: dict[str, list[Any]]) -> None:
    folder = store.folders[-1]
    for old in folder.glob(f"listing-v{FORMAT}-*"):
        old.unlink(missing_ok=True)
    file = ArrowFile(folder, "listing", LISTING)
    file.write(listing)
    file.close(_listing_name(source))
