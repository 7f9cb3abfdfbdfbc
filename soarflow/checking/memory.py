"""What a training takes on the card, counted from the models' shapes: the arithmetic of
docs/memory.md for a job. Nothing here was measured."""

from dataclasses import dataclass
from pathlib import Path

from ..engine.job import Job

BYTES = {"bf16": 2.0, "8 bits": 1.0, "nf4": 0.5 + 4 / 64}
"""Of a weight of a linear layer; nf4 has a float32 for each 64 weights. The rest stays bf16."""
TRAINED = {"adamw": 16, "adamw8bit": 10, "average": 4}
"""Of a trained weight: float32 weight, gradient, and two moments of 4 bytes or 1; the average."""
COPY = 2
"""Of a trained weight of the model itself: bf16 arithmetic keeps a copy until the backward."""
RANK = 16
"""Of the LoRA that is counted; its parameters grow with the rank."""
TOKENS = 4096
"""Of a picture of 1024 x 1024 pixels, in each of these models."""
CLOSE = 0.02


@dataclass(frozen=True)
class Sizes:
    """Of a released model: parameters, and bytes that autograd keeps of one picture of 1024 x 1024
    pixels, (with gradient checkpointing, without); `text` tokens come beside the picture's."""

    arch: str
    name: str
    """A part of its name on the hub, in small letters."""
    text: int
    transformer: int
    linear: int
    lora: int
    encoders: int
    vae: int
    kept: dict[str, tuple[int, int]]


# benchmarks/results/memory.json
MODELS = {
    "SD3.5-Medium": Sizes(
        "sd3", "stable-diffusion-3.5-medium", text=333, transformer=2243171520, linear=2241822720,
        lora=23494656, encoders=5580620800, vae=83819683,
        kept={"lora": (1033592560, 14131733488),
              "full": (940929392, 11836661272)},
    ),
    "SD3.5-Large": Sizes(
        "sd3", "stable-diffusion-3.5-large", text=333, transformer=8056627520, linear=8053694464,
        lora=52764672, encoders=5580620800, vae=83819683,
        kept={"lora": (1574905720, 27950872384),
              "full": (1508633336, 23864771944)},
    ),
    "FLUX.1-dev": Sizes(
        "flux", "flux.1-dev", text=512, transformer=11901408320, linear=11898322944,
        lora=65372160, encoders=4885960960, vae=83819683,
        kept={"lora": (2556071936, 50740041728),
              "full": (2500889088, 42127606272)},
    ),
    "Z-Image": Sizes(
        "zimage", "z-image", text=128, transformer=6154908736, linear=6153863168,
        lora=39690240, encoders=4022468096, vae=83819683,
        kept={"lora": (2616080384, 49188094464),
              "full": (2594405504, 46515505280)},
    ),
    "Qwen-Image": Sizes(
        "qwen_image", "qwen-image", text=128, transformer=20430401088, linear=20424818688,
        lora=106168320, encoders=8292166656, vae=126892531,
        kept={"lora": (2471921664, 53126267904),
              "full": (2371508736, 43765586432)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Bytes on the card: while pictures and captions are encoded, and while it trains."""

    model: str
    encoding: float
    training: float

    @property
    def card(self) -> float:
        """What a card needs: the fuller of the two, and a tenth to spare."""
        return max(self.encoding, self.training) / 0.9


def estimate(job: Job) -> Estimate | None:
    """For a job of a model whose shapes are known; None for others."""
    found = sizes_of(job)
    if found is None:
        return None
    label, sizes = found
    encoding = _frozen(
        sizes.encoders, sizes.encoders, job, job.model.loading()["quantization"].encoder
    )
    return Estimate(label, encoding + 2 * sizes.vae, _training(job, sizes))


def sizes_of(job: Job) -> tuple[str, Sizes] | None:
    """By the model's name, or by the number of weights in its folder."""
    name, number = job.model.name_or_path, folder_size(Path(job.model.name_or_path))
    for label, sizes in MODELS.items():
        if sizes.arch != job.model.arch:
            continue
        if number is None and name.lower().rpartition("/")[2].startswith(sizes.name):
            return label, sizes
        if number is not None and abs(number / sizes.transformer - 1) < CLOSE:
            return label, sizes
    return None


def folder_size(folder: Path) -> int | None:
    """How many weights a pipeline's transformer has, by the heads of its files; None where there
    are none to read."""
    from safetensors import SafetensorError, safe_open

    number = 0
    for file in folder.glob("transformer/*.safetensors"):
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118, it is no mapping
                    size = 1
                    for side in tensors.get_slice(key).get_shape():
                        size *= side
                    number += size
        except (OSError, SafetensorError):
            return None
    return number or None


def _training(job: Job, sizes: Sizes) -> float:
    train, kind = job.train, "lora" if job.network else "full"
    half = not train.dtype.endswith("32")
    moments = TRAINED["adamw8bit" if "8bit" in train.optimizer else "adamw"]
    a_weight = moments + (TRAINED["average"] if job.average_decay is not None else 0)
    if job.network:
        qtype = job.model.loading()["quantization"].transformer
        weights = _frozen(sizes.transformer, sizes.linear, job, qtype)
        weights += a_weight * sizes.lora * job.network.linear / RANK
    else:
        weights = (a_weight + COPY * half) * sizes.transformer
    largest = max(max(dataset.resolution) for dataset in job.datasets)
    tokens = TOKENS * (largest / 1024) ** 2
    pictures = train.batch_size * job.objective.points_per_pass
    share = pictures * (tokens + sizes.text) / (TOKENS + sizes.text)
    kept = sizes.kept[kind][0 if train.gradient_checkpointing else 1]
    return weights + kept * share * (1 if half else 2)


def _frozen(number: int, linear: int, job: Job, qtype: str | None) -> float:
    """Bytes of weights that stay as they are."""
    if qtype is None:
        return number * (4 if job.train.dtype.endswith("32") else 2)
    return BYTES["nf4" if qtype == "nf4" else "8 bits"] * linear + 2 * (number - linear)
