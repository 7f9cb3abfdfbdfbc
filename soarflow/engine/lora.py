"""The LoRA of a job: which layers get one, what it starts from, and how it is written."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError
from .sections import Network

IN_A_BLOCK = re.compile(r"\.\d+\.")


def add_lora(pipeline: Any, network: Network, targets: list[str], seed: int) -> None:
    """Puts a LoRA beside the transformer's layers, and freezes the rest. Raises ConfigError."""
    from peft import LoraConfig

    transformer = pipeline.transformer
    transformer.requires_grad_(False)
    config = LoraConfig(
        r=network.linear,
        lora_alpha=network.linear_alpha,
        lora_dropout=network.dropout or 0.0,
        use_dora=network.type == "dora",
        target_modules=layers_of(transformer, network, targets),
    )
    torch.manual_seed(seed)  # the LoRA's initial values
    transformer.add_adapter(config)
    if network.pretrained_lora_path:
        _start_from(Path(network.pretrained_lora_path), pipeline, network)


def layers_of(transformer: torch.nn.Module, network: Network, targets: list[str]) -> list[str]:
    """The names of the linear layers that get a LoRA. Raises ConfigError where there are none."""
    ends = tuple(f".{end}" for end in network.target_modules or targets)
    only = network.network_kwargs.only_if_contains
    ignored = network.network_kwargs.ignore_if_contains
    chosen = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
        and IN_A_BLOCK.search(name)
        and (_has(name, only) if only is not None else f".{name}".endswith(ends))
        and not _has(name, ignored)
    ]
    if not chosen:
        raise ConfigError(
            "network.target_modules and network_kwargs leave no layer to train. Layers are called "
            f"{', '.join(targets[:4])}, ..."
        )
    return chosen


def _has(name: str, parts: list[str]) -> bool:
    return any(part in f"transformer.{name}" for part in parts)


def _start_from(path: Path, pipeline: Any, network: Network) -> None:
    """The weights of a LoRA's file, scaled so that they mean the same under this job's alpha."""
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    loaded = pipeline.lora_state_dict(
        str(path.parent), weight_name=path.name, return_lora_metadata=True
    )
    found, metadata = loaded[0], loaded[-1] or {}
    weights = {key.removeprefix("transformer."): value for key, value in found.items()}
    alpha = metadata.get("transformer.lora_alpha")
    scale = 1.0 if alpha is None else alpha / metadata["transformer.r"]
    factor = scale / (network.linear_alpha / network.linear)
    weights = {
        key: value * factor if ".lora_B." in key else value for key, value in weights.items()
    }
    shapes = {
        key: value.shape for key, value in get_peft_model_state_dict(pipeline.transformer).items()
    }
    if {key: value.shape for key, value in weights.items()} != shapes:
        raise ConfigError(
            f"network.pretrained_lora_path {path} must have this job's rank, layers and type: it "
            f"has {len(weights)} weights, of which "
            f"{sum(shapes.get(key) == value.shape for key, value in weights.items())} fit the "
            f"{len(shapes)} of this job."
        )
    set_peft_model_state_dict(pipeline.transformer, weights)


def written(
    transformer: torch.nn.Module, dtype: torch.dtype, trained: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A LoRA's weights (or those given in their place), and what diffusers is told of them. The
    scale alpha / rank is part of the weights, so that a reader that knows no alpha (ComfyUI) draws
    the same."""
    from peft.utils import get_peft_model_state_dict

    config = transformer.peft_config["default"].to_dict()
    scale = config["lora_alpha"] / config["r"]
    weights = {
        key: (value * scale if ".lora_B." in key and scale != 1 else value)
        .detach()
        .to("cpu", dtype)
        .contiguous()
        for key, value in get_peft_model_state_dict(transformer, state_dict=trained).items()
    }
    metadata = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
    return weights, {**metadata, "lora_alpha": config["r"]}
