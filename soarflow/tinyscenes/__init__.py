"""The bundled world: captions, the scenes that they tell of, an exact evaluator, and a pretrained
pipeline of it."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "pipeline"
"""The pretrained pipeline's folder."""
