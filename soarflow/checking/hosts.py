"""Whether AI Toolkit takes a job, by the rules of our extension of it; AI Toolkit itself is not
asked and need not be there. Of the settings of its own it is the judge."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any

from ..ai_toolkit.compatibility import BATCHES_OF_ONE, FLOW_ARCHS, RULES, architecture, warnings
from ..config import ConfigError, SOARConfig

TRAINERS = ("SOARTrainer", "SOARProbe", "diffusion_trainer", "sd_trainer", "ui_trainer")
"""What AI Toolkit's users write as a training's type; it has more."""
OURS = TRAINERS[:2]
"""The extension's own; its rules are theirs."""
DIFFUSION_ARCHS = ("", "sd1", "sd15", "sd2", "sdxl", "ssd", "vega", "pixart", "pixart_sigma")
"""Architectures that predict the noise; all others are trained by flow matching."""
READ_THE_BATCH = (
    "flux2", "flux2_klein_4b", "flux2_klein_9b", "qwen_image_edit_plus", "hidream_o1", "krea2",
    "boogu_image_edit", "mageflow", "mageflow_edit", "wan21_i2v", "wan22_14b", "wan22_14b_i2v",
    "wan22_5b", "ltx2", "ltx2.3", "ltx2.5", "minimax_h3", "minimax_h3_ref2va",
)  # fmt: skip
"""Architectures whose points share no forward, besides those that predict one sample at a time."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "train": {
        "noise_scheduler": "ddpm", "unconditional_prompt": "", "gradient_accumulation_steps": 1,
    },
    "sample": {"guidance_scale": 7, "sample_steps": 20},
    "model": {"name_or_path": ""},
}  # fmt: skip
"""AI Toolkit's, of the keys that are looked at."""
WHOLE_SECTIONS = ("adapter", "embedding", "decorator")


class Section(SimpleNamespace):
    """A job's section with AI Toolkit's defaults; what neither says is None."""

    def __getattr__(self, name: str) -> None:
        return None


def faults(document: Mapping) -> list[str]:
    """Why AI Toolkit does not take a job, a sentence each; what its settings' types say is not
    among it."""
    processes = _processes(document)
    found = [each for process in processes for each in _process_faults(process)]
    if document.get("job") != "extension":
        found.append(
            f"job must be extension for AI Toolkit to find {_types(processes)}, got "
            f"{document.get('job')}. Write 'job: extension' at the top."
        )
    return found


def hardly_meant(document: Mapping, sample: Any = None) -> list[str]:
    """What is allowed and probably not meant, as the extension says it. `sample`: the settings that
    pictures are drawn with, where they are not AI Toolkit's."""
    found: list[str] = []
    for process in _processes(document):
        soar = soar_of(process)
        if soar is not None:
            trainer = SimpleNamespace(
                train_config=_section(process, "train"),
                model_config=_section(process, "model"),
                sample_config=(sample or _section(process, "sample")) if process.get("sample")
                else None,
            )  # fmt: skip
            found += [each.removeprefix("WARNING: ") for each in warnings(trainer, soar)]
    return found


def soar_of(process: Mapping) -> SOARConfig | None:
    """SOAR's settings of a process that trains with it or probes for it; None for others, and where
    they are wrong."""
    if process.get("type") not in OURS:
        return None
    try:
        return SOARConfig.from_dict(process.get("soar"))
    except ConfigError:
        return None


def _processes(document: Mapping) -> list[Mapping]:
    config = document.get("config")
    listed = config.get("process") if isinstance(config, Mapping) else None
    return [each for each in listed or () if isinstance(each, Mapping)]


def _types(processes: list[Mapping]) -> str:
    return ", ".join(str(each.get("type")) for each in processes) or "the trainer"


def _section(process: Mapping, name: str) -> Section:
    said = process.get(name)
    return Section(**{**DEFAULTS.get(name, {}), **(said if isinstance(said, Mapping) else {})})


def _process_faults(process: Mapping) -> Iterator[str]:
    kind = str(process.get("type"))
    slip = get_close_matches(kind, TRAINERS, 1, 0.7)
    if kind not in TRAINERS and slip:
        yield f"type must be a trainer that AI Toolkit has, got {kind!r}: did you mean {slip[0]}?"
    if kind not in OURS:
        return
    soar = soar_of(process) or SOARConfig(cfg_scale=1)  # what is wrong with it is told elsewhere
    train, model = _section(process, "train"), _section(process, "model")
    listed = process.get("datasets")
    datasets = [
        Section(**each)
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, Mapping)
    ]
    flow = train.noise_scheduler == "flowmatch"
    sections = {"train": [train], "model": [model], "datasets": datasets}
    for rule in RULES:
        for section in sections[rule.section]:
            value = getattr(section, rule.key)
            if ("flow" if flow else "diffusion") in rule.kinds and rule.refused(value):
                yield _refused(f"{rule.section}.{rule.key}", value, rule.why, rule.remedy)
    for name in WHOLE_SECTIONS:
        if process.get(name):
            yield _refused(
                name, "one", "what it trains would share its graph with all of a step's points",
                "Leave the section out, or train with type: diffusion_trainer.",
            )  # fmt: skip
    arch = architecture(model)
    if train.noise_scheduler == "ddpm" and (arch in FLOW_ARCHS or arch not in DIFFUSION_ARCHS):
        yield _refused(
            "train.noise_scheduler", "ddpm" if "noise_scheduler" in (process.get("train") or {})
            else "none, which is ddpm", f"model.arch {arch} is trained by flow matching",
            "Set it to flowmatch.",
        )  # fmt: skip
    alone = arch in READ_THE_BATCH or arch.startswith(BATCHES_OF_ONE)
    if soar.points_per_pass > 1 and (alone or train.do_cfg or train.do_random_cfg):
        what = f"model.arch {arch}" if alone else "train.do_cfg"
        yield (
            f"soar.points_per_pass must be 1 with {what}, whose predictions are made for one batch "
            f"at a time, got {soar.points_per_pass}. Set it to 1: the gradient is the same."
        )
    cached = train.cache_text_embeddings or any(each.cache_text_embeddings for each in datasets)
    if soar.is_guided and train.unload_text_encoder and not cached and not process.get(
        "trigger_word"
    ):  # fmt: skip
        yield (
            f"soar.cfg_scale must be 1 with train.unload_text_encoder, got {soar.cfg_scale:g}: "
            "every picture is trained with the empty prompt, so that there is nothing to guide. "
            "Set it to 1, or set cache_text_embeddings: true."
        )


def _refused(key: str, value: Any, why: str, remedy: str) -> str:
    return f"SOARTrainer cannot use {key}, got {value}: {why}. {remedy}"
