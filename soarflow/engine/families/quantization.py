"""Base weights in fewer bits, by diffusers' quantization configs, under AI Toolkit's names."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...config import ConfigError


def _nf4(configs: Any, dtype: torch.dtype) -> Any:
    return configs.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _int8(configs: Any, dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return configs.TorchAoConfig(Int8WeightOnlyConfig())


def _float8(configs: Any, dtype: torch.dtype) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return configs.TorchAoConfig(Float8WeightOnlyConfig())


QTYPES: dict[str, tuple[str, Callable[[Any, torch.dtype], Any]]] = {
    "qfloat8": ("torchao", _float8),
    "float8": ("torchao", _float8),
    "qint8": ("torchao", _int8),
    "int8": ("torchao", _int8),
    "nf4": ("bitsandbytes", _nf4),
}
"""By name: the library that does it, and its config out of diffusers or transformers. AI Toolkit
keeps qfloat8 and qint8 by quanto, which diffusers gave up; torchao's have the same formats."""
INSTALL = {
    "torchao": "pip install torchao==0.16.0 (PEFT 0.18 cannot use a newer one)",
    "bitsandbytes": "pip install bitsandbytes (nf4 needs a GPU)",
}


@dataclass(frozen=True)
class Quantization:
    """What the transformer's and the text encoders' weights are kept in; None leaves them."""

    transformer: str | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        for key, qtype in (("qtype", self.transformer), ("qtype_te", self.encoder)):
            library = QTYPES[qtype][0] if qtype else None
            if library and importlib.util.find_spec(library) is None:
                raise ConfigError(f"model.{key} {qtype} needs {library}: {INSTALL[library]}.")

    def of_transformer(self, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments that its `from_pretrained` takes."""
        import diffusers

        if self.transformer is None:
            return {}
        return {"quantization_config": QTYPES[self.transformer][1](diffusers, dtype)}

    def of_encoders(self, names: tuple[str, ...], dtype: torch.dtype) -> dict[str, Any]:
        """The arguments that the pipeline's `from_pretrained` takes."""
        import transformers
        from diffusers.quantizers import PipelineQuantizationConfig

        if self.encoder is None:
            return {}
        config = QTYPES[self.encoder][1](transformers, dtype)
        mapping = dict.fromkeys(names, config)
        return {"quantization_config": PipelineQuantizationConfig(quant_mapping=mapping)}
