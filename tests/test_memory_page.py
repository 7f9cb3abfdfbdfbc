"""docs/memory.md: its table is the committed count's, and the count counts what autograd keeps."""

import json
from pathlib import Path

import memory
import pytest
import torch
from ai_toolkit.tiny.first import PIPELINES
from cost import SavedBytes

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
MODELS = json.loads(memory.FILE.read_text())["models"]


def test_the_table_is_the_results():
    assert memory.table(MODELS) in PAGE


def test_what_the_page_says_of_the_table():
    rows = dict(zip(MODELS, zip(*memory.rows(MODELS).values(), strict=True), strict=True))
    labels = list(memory.rows(MODELS))
    fine_tune = labels.index("**full fine-tune, AdamW, checkpointing**")
    assert [name for name, row in rows.items() if row[fine_tune] < 80e9] == ["SD3.5-Medium"]
    eight = labels.index("**LoRA, 8 bits, checkpointing**")
    assert rows["FLUX.1-dev"][eight] < 0.9 * 24e9


@pytest.mark.parametrize("name", ["SD3.5-Medium", "FLUX.1-dev"])
def test_the_counts_of_parameters_are_the_models(name):
    assert memory.counts(memory.MODELS[name]) == MODELS[name]["parameters"]


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("arch", ["sd3", "flux", "qwen_image", "zimage"])
def test_what_is_counted_is_what_autograd_keeps(arch, lora):
    """Of a tiny model on the CPU, against the count of benchmarks/cost.py."""
    torch.manual_seed(0)
    transformer = PIPELINES[arch]().transformer
    real = memory.Real(arch, None, (), None, {})
    family = memory.family_of(real, transformer)
    if lora:
        memory.make_lora(transformer, family.lora_targets)
    texts = {
        "sd3": {"text": torch.randn(5, 32), "pooled": torch.randn(32)},
        "flux": {"text": torch.randn(5, 32), "pooled": torch.randn(16)},
    }.get(arch, {"text": torch.randn(5, 32)})
    z, sigma = torch.randn(1, 16, 8, 8), torch.full((1,), 0.5)
    with SavedBytes(transformer) as saved:
        kept_alive = family.predict(z, sigma, [texts])
    counted = memory.Kept(transformer).of(lambda: family.predict(z, sigma, [texts]))
    assert kept_alive is not None and saved.kept > 0
    assert counted["whole"] == saved.peak  # of Qwen-Image the last text goes nowhere, and is freed
    assert 0 < counted["checkpointed"] < 2 * counted["whole"]


def test_a_fused_attention_keeps_no_matrix():
    query, key, value = (torch.empty(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    nothing = torch.nn.Module()
    with memory.fused_attention(), SavedBytes(nothing) as saved:
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert output.shape == query.shape
    assert saved.kept == 4 * 2 * 8 * (4 * 4 + 1)  # q, k, v, the output; a number a row
