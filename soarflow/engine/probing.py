"""The probe on what the engine loads: pictures and captions that are held out, in batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..advice import Probed
from ..probe import Held, Setting, drift, hybrid, noise_norms, schedule
from .data import seeded_generator
from .families import Family, Features, Text
from .job import Job
from .pictures import bucket_size, read_picture, to_pixels
from .sections import Dataset
from .sources import caption_of, open_source, with_trigger

DRAWN = 16
"""So many pictures are drawn as a whole."""
TOGETHER = {"cpu": 16, "cuda": 4}
"""Pictures in a forward, by kind of device; on others one."""


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures with their captions; `name` tells whose they are, `seen` whether the model
    trains on them."""

    latents: list[Tensor]
    texts: Features
    empty: Text
    name: str
    seen: bool
    captions: Sequence[Any]
    """Texts, or the bundled world's own captions, which its evaluator reads."""

    def __len__(self) -> int:
        return len(self.latents)

    def batches(self, family: Family, device: torch.device, seed: int) -> Iterator[Held]:
        """All of them, those of one size together. Each one's noise follows from the seed and its
        place alone."""
        sizes: dict[torch.Size, list[int]] = {}
        for index, latent in enumerate(self.latents):
            sizes.setdefault(latent.shape, []).append(index)
        together = TOGETHER.get(device.type, 1)
        for members in sizes.values():
            for start in range(0, len(members), together):
                yield self._held(family, members[start : start + together], device, seed)

    def _held(self, family: Family, members: list[int], device: torch.device, seed: int) -> Held:
        x0 = torch.stack([self.latents[index] for index in members]).float()
        noise = torch.stack([
            torch.randn(x0.shape[1:], generator=seeded_generator(seed, "probe", index))
            for index in members
        ])  # fmt: skip
        texts, empty = (
            [{key: value.to(device) for key, value in text.items()} for text in part]
            for part in ([self.texts[index] for index in members], [self.empty] * len(members))
        )
        return Held(
            x0.to(device),
            noise.to(device),
            lambda z, sigma: family.predict(z, sigma, texts),
            lambda z, sigma: family.predict(z, sigma, empty),
        )


def encode(
    family: Family, pictures: Iterable[tuple[Image.Image, str]], resolution: int | None,
    name: str, seen: bool,
) -> Pictures:  # fmt: skip
    """Pictures in the buckets of a resolution, or in their own size where there is none."""
    latents, captions = [], []
    for image, caption in pictures:
        size = image.size
        if resolution is not None:
            size = bucket_size(*size, resolution, family.size_multiple)
        latents.append(family.encode_images(to_pixels(image, size)[None])[0].cpu())
        captions.append(caption)
    *texts, empty = (
        {key: value.cpu() for key, value in text.items()}
        for text in family.encode_text([*captions, ""])
    )
    return Pictures(latents, texts, empty, name, seen, captions)


def of_folder(
    family: Family, dataset: Dataset, number: int, trigger_word: str | None, seen: bool
) -> Pictures:
    """The first pictures of a data set, in its order. Raises ConfigError."""
    read = (
        (read_picture(each.content, each.name),
         with_trigger(caption_of(each.caption, each.name, dataset), trigger_word))
        for each in islice(open_source(dataset).pictures(), number)
    )  # fmt: skip
    return encode(family, read, dataset.resolution[0], dataset.folder_path, seen)


def of_job(family: Family, job: Job, number: int) -> Pictures:
    """The job's held-out pictures; where it names none, the first of those it trains on."""
    dataset, folder = job.datasets[0], job.soar.probe_pictures
    if folder is not None:
        dataset = replace(dataset, folder_path=folder)
    trigger_word = dataset.trigger_word or job.trigger_word
    return of_folder(family, dataset, number, trigger_word, seen=folder is None)


def of_scenes(family: Family, number: int, seed: int = 33) -> Pictures:
    """Scenes of the bundled world that the bundled model was not trained on."""
    from ..tinyscenes.scenes import draw_scenes, render

    scenes = draw_scenes(seed, number, held_out=True)
    pictures = ((render(each.things), str(each.caption)) for each in scenes)
    encoded = encode(family, pictures, None, "held-out scenes", seen=False)
    return replace(encoded, captions=[each.caption for each in scenes])


def probe(family: Family, pictures: Pictures, setting: Setting, name: str, seed: int = 0) -> Probed:
    """All that the command says of a model."""
    family.pipeline.transformer.eval()
    device = family.pipeline.transformer.device
    levels = drift(pictures.batches(family, device, seed), setting)
    few = replace(pictures, latents=pictures.latents[:DRAWN])
    shift = family.schedule_shift(pictures.latents[0][None].shape)
    drawings = replace(setting, shift=shift)
    norms = noise_norms(few.batches(family, device, seed), drawings)
    return Probed(name, setting, levels, len(pictures), pictures.name, pictures.seen, norms)


@dataclass(frozen=True)
class Hybrid:
    """Drawings that are fine for the first `switch` steps, down to `sigma`, and coarse from there;
    `scores` by the name of the measure."""

    switch: int
    sigma: float
    images: list[Image.Image]
    scores: dict[str, float]


Judge = Callable[[list[Image.Image], list[str]], float]
"""The score of pictures against their captions' texts."""


def hybrids(
    family: Family, pictures: Pictures, setting: Setting, seed: int = 0, rows: int = 5,
    judges: Mapping[str, Judge] | None = None,
) -> list[Hybrid]:  # fmt: skip
    """From all coarse to all fine, in `rows` drawings of each caption from its picture's noise;
    those from the first picture of another size on are left out."""
    family.pipeline.transformer.eval()
    size = pictures.latents[0].shape
    pictures = replace(pictures, latents=[*takewhile(lambda each: each.shape == size,
                                                     pictures.latents)])  # fmt: skip
    number = setting.num_steps
    switches = sorted({round(number * row / (rows - 1)) for row in range(rows)})
    drawings = replace(setting, shift=family.schedule_shift(pictures.latents[0][None].shape))
    images: dict[int, list[Image.Image]] = {switch: [] for switch in switches}
    for held in pictures.batches(family, family.pipeline.transformer.device, seed):
        for switch, latents in zip(switches, hybrid(held, drawings, switches), strict=True):
            images[switch] += family.decode_latents(latents)
    levels = schedule(number, drawings.shift)
    return [
        Hybrid(switch, levels[switch], drawn, _scores(drawn, pictures.captions, judges or {}))
        for switch, drawn in images.items()
    ]


def _scores(
    images: list[Image.Image], captions: Sequence[Any], judges: Mapping[str, Judge]
) -> dict[str, float]:
    from ..tinyscenes.captions import Caption
    from ..tinyscenes.evaluator import evaluate_image

    captions = captions[: len(images)]
    texts = [str(each) for each in captions]
    scores = {name: judge(images, texts) for name, judge in judges.items()}
    if all(isinstance(each, Caption) for each in captions):
        pairs = zip(images, captions, strict=True)
        graded = [evaluate_image(image, caption).score for image, caption in pairs]
        scores["graded score"] = sum(graded) / len(graded)
    return scores
