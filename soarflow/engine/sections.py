"""The sections of a job file: each field is a key that the engine honours, with AI Toolkit's name
and meaning. host_keys.py has those that it takes and needs not."""

import re
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from ..config import SOARConfig
from ..settings import (
    EXPONENT,
    Amount,
    Count,
    Flag,
    Folder,
    Index,
    Place,
    Rule,
    Seed,
    Share,
    Text,
    section,
)
from .levels import LEANS, TIMESTEP_TYPES

FOLDER_NAME = "a name for the output folder: at most 200 letters, without slashes"
Size = Annotated[Count, Field(ge=16), Rule("an integer >= 16")]

OPTIMIZERS = {"adamw": "adamw_torch", "adamw8bit": "adamw_bnb_8bit", "lion8bit": "lion_8bit"}
"""AI Toolkit's spellings of transformers' names."""
OTHER_OPTIMIZERS = (
    "adafactor", "adagrad", "adamw_anyprecision", "adamw_8bit", "adamw_bnb_8bit", "adamw_torch",
    "adamw_torch_4bit", "adamw_torch_8bit", "adamw_torch_fused", "ademamix", "ademamix_8bit",
    "grokadamw", "lion_32bit", "lion_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit", "rmsprop_bnb_8bit", "schedule_free_adamw",
    "schedule_free_radam", "schedule_free_sgd", "sgd", "stable_adamw",
)  # fmt: skip
"""transformers' names, but those of optimizers that want to know the model's layers."""
SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "inverse_sqrt", "polynomial",
    "warmup_stable_decay",
)  # fmt: skip
"""transformers' names, but those of schedulers that follow an evaluation."""

QType = Annotated[
    Literal["qfloat8", "float8", "qint8", "int8", "nf4"],
    Rule(remedy="Other number formats are AI Toolkit's own."),
]


class Engine:
    """A section that the engine reads, and that AI Toolkit may have written."""

    TAKES_HOST_KEYS: ClassVar = True
    STRANGER: ClassVar = (
        "is not honoured by the built-in engine", "the closest key that it does is {path}.",
    )  # fmt: skip


def _listed(value: Any) -> Any:
    return [value] if type(value) is int else value


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _folder_name(name: str) -> str:
    # "_000000250.safetensors" comes behind it, and 255 bytes are the most that a file's name has
    if (
        not name.isprintable()
        or name != Path(name).name
        or name == ".."
        or len(name.encode()) > 200
    ):
        raise ValueError(FOLDER_NAME)
    return name


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError("cpu, cuda, cuda:1 (or another number) or mps")
    return name


@section
class NetworkKwargs(Engine):
    """Which of a model's linear layers get a LoRA, by their names."""

    only_if_contains: list[Text] | None = None
    """Every linear layer in a block whose name has one of these parts in it, and no other."""
    ignore_if_contains: list[Text] = field(default_factory=list)
    """None whose name has one of these parts in it."""


@section
class Network(Engine):
    """The LoRA. Without this section all weights are trained."""

    type: Annotated[
        Literal["lora", "dora"],
        Rule(
            remedy="lokr trains inside AI Toolkit: diffusers, which draws with what the engine "
            "writes, loads none."
        ),
    ] = "lora"
    """What is added to the model; of dora diffusers reads all, ComfyUI the directions alone."""
    linear: Count = 16
    """Rank of the LoRA."""
    linear_alpha: Annotated[
        float,
        Strict(),
        Field(gt=0, allow_inf_nan=False),
        EXPONENT,
        Rule("a number > 0", "0 would train nothing; the value of linear is usual."),
    ] = 16
    """The LoRA is scaled by linear_alpha / linear."""
    dropout: Share | None = None
    """Share of the LoRA's inputs that are left out of a step."""
    target_modules: list[Text] = field(default_factory=list)
    """Ends of the names of the layers that get a LoRA, to_q for instance; left out, attention and
    feed-forward layers of every block."""
    network_kwargs: NetworkKwargs = field(default_factory=NetworkKwargs)
    """Which of the layers."""
    pretrained_lora_path: Text | None = None
    """A LoRA's .safetensors to start from, of the same rank and layers."""


@section
class Save(Engine):
    """The trained weights, as they are written."""

    dtype: Literal["float16", "bf16", "float32", "fp16", "bfloat16"] = "float16"
    """Number format of the written weights."""
    save_every: Count = 250
    """Weights and the state for a resume are written every so many steps."""
    max_step_saves_to_keep: Count = 4
    """Older weights than the last so many are removed."""
    push_to_hub: Flag = False
    """Upload the finished weights to the Hugging Face hub."""
    hf_repo_id: Text | None = None
    """The repository there, owner/name; left out, the job's name among your own."""
    hf_private: Flag = False
    """Whether the repository is made a private one."""


@section
class Dataset(Engine):
    """Pictures with captions."""

    folder_path: Place
    """A folder of pictures whose captions lie beside them under the same names, or of JSON lines,
    parquet, webdataset or Arrow files; or a data set of the hub, org/name."""
    caption_ext: Annotated[
        list[Text],
        BeforeValidator(_texts, json_schema_input_type=list[Text] | Text),
        Field(min_length=1),
        Rule("an ending of files, or a list of them"),
    ] = field(default_factory=lambda: ["txt"])
    """Ending of the caption files; of several, the first that is there."""
    default_caption: Text | None = None
    """Caption of pictures that have none, or an empty one."""
    trigger_word: Text | None = None
    """The trigger word of this data set, in place of the job's."""
    caption_dropout_rate: Share = 0.0
    """Share of the draws whose caption is replaced by the empty one."""
    token_dropout_rate: Share = 0.0
    """Share of a caption's parts between commas that a draw leaves out."""
    keep_tokens: Index = 0
    """So many of a caption's first parts are never left out by token_dropout_rate."""
    shuffle_tokens: Flag = False
    """A caption's parts between commas come in a random order at each draw."""
    flip_x: Flag = False
    """Each picture comes a second time, mirrored."""
    resolution: Annotated[
        list[Count],
        BeforeValidator(_listed, json_schema_input_type=list[Count] | Count),
        Field(min_length=1),
        Rule("a list of sizes in pixels"),
    ] = field(default_factory=lambda: [512])
    """Side of a square of as many pixels as a picture is resized to; each one a set of its own."""
    num_repeats: Count = 1
    """How often each picture comes in an epoch."""
    cache_latents_to_disk: Flag = True
    """Keep the encoded pictures on disk, beside them."""
    cache_text_embeddings: Flag = True
    """Keep the encoded captions on disk too."""


@section
class EMA(Engine):
    """A running average of the trained weights; samples and saved weights are made of it."""

    use_ema: Flag = True
    """Whether there is one."""
    ema_decay: Share = 0.99
    """Weight of the average against the current weights at each step."""


@section
class Train(Engine):
    """The training itself."""

    steps: Count
    """Optimizer steps in all."""
    batch_size: Count = 1
    """Pictures in a batch."""
    gradient_accumulation: Count = 1
    """Batches whose gradients are averaged for one optimizer step."""
    lr: Amount = 1e-4
    """Learning rate."""
    optimizer: Literal[tuple(OPTIMIZERS) + OTHER_OPTIMIZERS] = "adamw"  # type: ignore[valid-type]
    """The optimizer, by AI Toolkit's name or transformers'; those of 8 bits need bitsandbytes."""
    optimizer_params: dict[str, Any] = field(default_factory=dict)
    """The optimizer's arguments, such as weight_decay (0.01 unless given)."""
    lr_scheduler: Literal[SCHEDULERS] = "constant"  # type: ignore[valid-type]
    """How the learning rate changes, by transformers' names."""
    lr_scheduler_params: dict[str, Any] = field(default_factory=dict)
    """The scheduler's arguments, such as num_warmup_steps."""
    max_grad_norm: Amount = 1.0
    """The gradient's norm is cut to this."""
    dtype: Literal["bf16", "float32", "fp32", "bfloat16", "fp16", "float16"] = "bf16"
    """Number format of the model's arithmetic; trained weights are float32 always."""
    timestep_type: Literal[tuple(TIMESTEP_TYPES)] = "sigmoid"  # type: ignore[valid-type]
    """How levels are drawn: sigmoid is logit-normal, linear uniform, shift (flux_shift and
    lumina2_shift alike) the inference schedule's own; weighted is linear with the loss weighted by
    AI Toolkit's table."""
    content_or_style: Literal[tuple(LEANS)] = "balanced"  # type: ignore[valid-type]
    """A lean towards high levels (content) or low ones (style), by a cubic, as in AI Toolkit."""
    loss_type: Literal["mse", "mae", "pseudo_huber"] = "mse"
    """The loss of a prediction against its target."""
    noise_scheduler: Literal["flowmatch"] = "flowmatch"
    """The kind of model."""
    gradient_checkpointing: Flag = True
    """Less memory for a third more time: activations are computed again in the backward."""
    train_unet: Literal[True] = True
    """The denoiser is what is trained."""
    train_text_encoder: Literal[False] = False
    """Text encoders stay as they are."""
    bypass_guidance_embedding: Flag = False
    """Train FLUX.1 without its guidance input: AI Toolkit's alone; other models have none."""
    ema_config: EMA | None = None
    """A running average of the weights."""
    disable_sampling: Flag = False
    """Draw no samples at all."""
    skip_first_sample: Flag = False
    """Draw none before the first step."""
    seed: Seed = 42
    """All randomness follows from it."""
    report_to: list[Text] = field(default_factory=list)
    """Who is told the metrics beside metrics.jsonl and TensorBoard: wandb, trackio, mlflow, ..."""


@section
class Model(Engine):
    """The model to train."""

    name_or_path: Place
    """A folder or a Hugging Face name of a diffusers pipeline."""
    arch: Annotated[
        Literal["zimage", "sd3", "flux", "qwen_image"],
        Rule(remedy="Other models train inside AI Toolkit: see docs/models.md."),
    ] = "zimage"
    """The model's family: Z-Image, SD3 and SD3.5, FLUX.1-dev, Qwen-Image."""
    revision: Text | None = None
    """Branch, tag or commit of a Hugging Face name."""
    variant: Text | None = None
    """Which files of it, fp16 for instance."""
    quantize: Flag = False
    """Keep the frozen weights under a LoRA in fewer bits."""
    qtype: QType = "qfloat8"
    """In which: 8 bits by torchao, or nf4, 4 bits by bitsandbytes."""
    quantize_te: Flag | None = None
    """The same for the text encoders, which are freed before training; as quantize unless given."""
    qtype_te: QType = "qfloat8"
    """In which."""
    compile: Flag = False
    """Train through torch.compile: faster steps after a slow first one."""

    def loading(self) -> dict[str, Any]:
        """Where the weights come from and what they are kept in, as a family's options."""
        from .families import Quantization

        encoders = self.quantize if self.quantize_te is None else self.quantize_te
        return {
            "revision": self.revision,
            "variant": self.variant,
            "quantization": Quantization(
                self.qtype if self.quantize else None, self.qtype_te if encoders else None
            ),
        }


@section
class Picture(Engine):
    """A picture that is drawn while training; what it leaves out it has from `sample`."""

    prompt: Text
    """What is to be seen."""
    width: Size | None = None
    """Width in pixels."""
    height: Size | None = None
    """Height in pixels."""
    neg: Text | None = None
    """The negative prompt."""
    seed: Seed | None = None
    """Its seed."""
    guidance_scale: Amount | None = None
    """Guidance."""
    sample_steps: Count | None = None
    """Steps of the sampler."""


@section
class Sample(Engine):
    """Pictures that are drawn while training."""

    sampler: Literal["flowmatch"] = "flowmatch"
    """The sampler: Euler on the model's own schedule."""
    sample_every: Count = 250
    """Samples are drawn every so many steps."""
    width: Size = 1024
    """Width in pixels."""
    height: Size = 1024
    """Height in pixels."""
    prompts: list[Text] = field(default_factory=list)
    """One picture for each; [trigger] stands for the trigger word."""
    samples: list[Picture] = field(default_factory=list)
    """The same with settings of their own, in place of prompts."""
    neg: Text = ""
    """The negative prompt."""
    seed: Seed = 42
    """Seed of the first picture."""
    walk_seed: Flag = True
    """Each further picture's seed is one more; false gives all the same."""
    guidance_scale: Amount = 4.0
    """Guidance: v_uncond + guidance_scale * (v_cond - v_uncond)."""
    sample_steps: Count = 20
    """Steps of the sampler."""

    def pictures(self) -> list[Picture]:
        """What is drawn, each with all of its settings."""
        asked = self.samples or [Picture(prompt=prompt) for prompt in self.prompts]
        keys = ("width", "height", "neg", "guidance_scale", "sample_steps")
        return [
            replace(each, seed=self._seed(index, each), **{
                key: getattr(self, key) for key in keys if getattr(each, key) is None
            })
            for index, each in enumerate(asked)
        ]  # fmt: skip

    def _seed(self, index: int, picture: Picture) -> int:
        if picture.seed is not None:
            return picture.seed
        return self.seed + (index if self.walk_seed else 0)


@section
class Logging(Engine):
    """Who else is told the metrics."""

    use_wandb: Flag = False
    """Send them to Weights & Biases, which is to be installed."""
    project_name: Text | None = None
    """The project there."""
    run_name: Text | None = None
    """The run's name there; left out, the job's."""


@section
class Process(Engine):
    """A training run."""

    type: Annotated[
        Literal["SOARTrainer", "diffusion_trainer", "SOARProbe"],
        Rule(remedy="SOARTrainer trains with SOAR."),
    ]
    """SOARTrainer, or diffusion_trainer for plain training; SOARProbe for `soarflow probe`, which
    takes the others too."""
    soar: Annotated[
        SOARConfig,
        BeforeValidator(lambda soar: soar or {}, json_schema_input_type=SOARConfig | None),
    ] = SOARConfig()
    """SOAR's settings. Checked for plain training too, which does not use them."""
    training_folder: Folder = Path("output")
    """All that the job writes lies in training_folder/name."""
    device: Annotated[
        Text | None,
        AfterValidator(lambda name: name and _device(name)),
        Rule("cpu, cuda, cuda:1 (or another number) or mps"),
    ] = None
    """Where to train; left out, on the graphics card where there is one."""
    trigger_word: Text | None = None
    """A word that every caption begins with, or that replaces [trigger] in it."""
    network: Network | None = None
    """The LoRA; left out, all weights are trained."""
    save: Save = field(default_factory=Save)
    """How weights are written."""
    logging: Logging = field(default_factory=Logging)
    """Who else is told the metrics."""
    datasets: Annotated[
        list[Dataset],
        Field(min_length=1),
        Rule("a list of at least one data set", "Write '- folder_path: ...' under it."),
    ]
    """The pictures."""
    train: Train
    """The training."""
    model: Model
    """The model."""
    sample: Sample = field(default_factory=Sample)
    """Pictures drawn on the way."""


@section
class Config(Engine):
    """The job's name and its one process."""

    name: Annotated[Text, Field(min_length=1), AfterValidator(_folder_name), Rule(FOLDER_NAME)]
    """The job's name, and its output folder's."""
    process: Annotated[
        list[Process],
        Field(min_length=1, max_length=1),
        Rule("a list of one process", "Write '- type: SOARTrainer' under it."),
    ]
    """The one process."""


@section
class JobFile(Engine):
    """A job file for the engine."""

    job: Annotated[Literal["extension"], Rule("extension", "Write 'job: extension' at the top.")]
    """The kind of job."""
    config: Config
    """What it is."""
