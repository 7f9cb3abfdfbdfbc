"""What SOAR buys on the bundled model, where quality is read exactly from the pixels: at equal
steps and at equal compute.

`python benchmarks/quality.py` runs the study's cells in the order of their importance and writes
each to results/quality; a cell that is there is skipped, so the study can be stopped at any time.
`--share 0/2` and `--share 1/2` split it between two processes, `--groups sweep` takes a part of it.
`--report` makes RESULTS.md and the README's table of what is there; `--quick` runs a small version
in minutes, into another folder.

Two processes on two cores run three seeds of every arm and of the sweeps in 6 hours (`--minutes`);
the main arms' seeds 3 and 4, the longer baselines and more samplings of 30 steps (`thirty`) take
3.6 hours more.

All arms of a seed see the same pictures, noise and base levels, and are sampled from the same
starting noise."""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cache, partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from scipy import linalg, ndimage
from study.objectives import OBJECTIVES
from torch import Tensor

from soarflow.bundled.demo import job_document
from soarflow.bundled.pretrain import pixels_of
from soarflow.bundled.scoring import CAPTION_SEED
from soarflow.engine.families import Family, Features, load_family
from soarflow.engine.job import Job, read_job
from soarflow.engine.sampling import grid, sample
from soarflow.engine.training import Run, train
from soarflow.probe import exposure_bias
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.captions import CATEGORIES, Caption, draw_captions
from soarflow.tinyscenes.evaluator import evaluate_image
from soarflow.tinyscenes.scenes import SIZE, draw_scenes, render, write_clean_set

HERE = Path(__file__).parent
SAMPLINGS = {
    "main": [(2.5, 30), (2.5, 8), (4.5, 8), (1.0, 8)],
    "thirty": [(4.5, 30), (1.0, 30)],
    "full": [(2.5, 8), (1.0, 8)],
    "sweep": [(2.5, 8)],
    "pull": [(2.5, 8), (1.0, 8)],
}
"""(guidance, steps) by group of cells: sampling is what the study's time goes into."""
STEPS = 150
REFERENCE_SEED = 31
SWEEP: list[dict] = [
    {},
    *({"cfg_scale": value} for value in (1, 2.5, 7.5)),
    *({"num_aux_points": value} for value in (1, 2, 8)),
    *({"correction_weight": value} for value in (0.1, 0.3, 3)),
    *({"num_steps": value} for value in (4, 10, 100)),
    *({"sigma_min": value} for value in (0.001, 0.1)),
    {"step_space": "schedule"},
    {"shared_noise": False},
    *({"rollout": value} for value in ("sde", "flow_sde", "cps", "simple")),
]
"""One setting changed from the defaults at a time."""


@dataclass(frozen=True)
class Cell:
    """One trained and measured model. `compute` is the training's, in steps of plain SFT."""

    arm: str
    seed: int
    steps: int = STEPS
    objective: str = "soar"
    soar: dict = field(default_factory=dict)
    group: str = "main"

    @property
    def network(self) -> str:
        return "full" if self.group == "full" else "lora"

    @property
    def name(self) -> str:
        return f"{self.group}_{self.arm}_{self.steps}_{self.seed}".replace(" ", "-")

    @property
    def samplings(self) -> list[tuple[float, int]]:
        """The group's; every group's for the base, which all are compared with."""
        return (
            SAMPLINGS[self.group] if self.steps else list(dict.fromkeys(chain(*SAMPLINGS.values())))
        )


def cells() -> Iterator[Cell]:
    """The study, the most telling cells first."""
    soar = {"num_steps": 30, "cfg_scale": 4.5, "correction_weight": 1, "num_aux_points": 4}
    off, levels = {**soar, "correction_weight": 0}, {**soar, "rollout": "none"}
    # where the objective pulls most towards the mean
    hard = {
        **soar,
        "num_steps": 4,
        "cfg_scale": 1,
    }
    budget = round(STEPS * 16 / 3)  # what SOAR at N = 4 computes, in steps of SFT
    baselines = ("scheduled_sampling", "bias_weighted")  # 7 forwards a step, SFT has 3

    def arms(seed: int, group: str) -> Iterator[Cell]:
        make = partial(Cell, seed=seed, group=group)
        yield make("SFT", soar=off)
        yield make("SOAR", soar=soar)
        yield make("SFT", soar=off, steps=budget)
        yield make("SFT N levels", soar=levels)

    def more_arms(seed: int, group: str) -> Iterator[Cell]:
        make = partial(Cell, seed=seed, group=group)
        yield make("SFT N levels", soar=levels, steps=round(budget / 5))
        yield make("another_error", objective="another_error", soar=soar)
        for objective in baselines:
            yield make(objective, objective=objective, soar={**soar, "num_aux_points": 1})

    def main(seed: int) -> Iterator[Cell]:
        yield from arms(seed, "main")
        yield from more_arms(seed, "main")

    def full(seed: int) -> Iterator[Cell]:
        """All weights, for the equal number of steps and for as many as plain SFT needs to learn
        something."""
        make = partial(Cell, seed=seed, group="full", steps=budget)
        yield make("SOAR", soar=soar)
        yield make("SFT N levels", soar=levels)
        yield make("another_error", objective="another_error", soar=hard)
        yield make("SFT", soar=off, steps=round(budget * 16 / 3))
        yield from arms(seed, "full")

    def pull(seed: int) -> Iterator[Cell]:
        """Large steps without guidance: the pull towards the mean, and what may undo it."""
        yield Cell("SOAR", seed, soar=hard, group="pull")
        yield Cell("SFT N levels", seed, soar={**hard, "rollout": "none"}, group="pull")
        yield Cell("another_error", seed, objective="another_error", soar=hard, group="pull")
        yield Cell("random_sign", seed, objective="random_sign", soar=hard, group="pull")

    def sweep(seed: int) -> Iterator[Cell]:
        for change in SWEEP:
            label = " ".join(f"{key} {value}" for key, value in change.items()) or "defaults"
            yield Cell(label, seed, soar={**soar, **change}, group="sweep")

    def longer_baselines(seed: int) -> Iterator[Cell]:
        for objective in baselines:
            yield Cell(
                objective,
                seed,
                objective=objective,
                soar={**soar, "num_aux_points": 1},
                steps=round(budget * 3 / 7),
            )

    yield Cell("base", 0, steps=0, soar=off)
    three, five = range(3), range(5)
    parts = (
        *((part, three) for part in (main, pull, full, sweep)),
        (main, (3, 4)),
        (longer_baselines, three),
        (partial(arms, group="thirty"), five),  # main's arms, sampled longer: costly, hence apart
        (partial(more_arms, group="thirty"), three),
    )
    for part, seeds in parts:
        for seed in seeds:
            yield from part(seed)


class Trained:
    """A cell's model: the bundled pipeline with the cell's training applied."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        start = time.perf_counter()
        self.family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
        self.losses: list[dict] = []
        if cell.steps:
            job = make_job(cell, folder)
            outcome = train(
                job, say=lambda _: None, make_run=lambda job: make_run(job, cell.objective)
            )
            metrics = [
                json.loads(line)
                for line in (job.save_root / "metrics.jsonl").read_text().splitlines()
            ]
            self.losses = metrics[:: max(len(metrics) // 20, 1)]
            if cell.network == "lora":
                self.family.pipeline.load_lora_weights(
                    str(outcome.weights.parent), weight_name=outcome.weights.name
                )
                self.family.pipeline.fuse_lora()
                self.family.pipeline.unload_lora_weights()
            else:
                trained = type(self.family.pipeline.transformer).from_pretrained(outcome.weights)
                self.family.pipeline.transformer.load_state_dict(trained.float().state_dict())
        self.seconds = time.perf_counter() - start


@cache
def sampling_family() -> Family:
    """The pipeline that draws every cell's pictures: bf16 and compiled, which halves the time of
    the study on a CPU."""
    family = load_family("zimage", str(BUNDLED), torch.bfloat16, "cpu")
    family.pipeline.vae.float()
    for layer in family.pipeline.transformer.layers:
        layer.compile()
    return family


def make_job(cell: Cell, folder: Path) -> Job:
    document = job_document("cell", "SOARTrainer", cell.steps)
    process = document["config"]["process"][0]
    process["soar"] = cell.soar
    process["train"]["seed"] = 100 + cell.seed
    if cell.network == "full":
        del process["network"]
        process["train"]["lr"] = 1e-4
    write_clean_set(folder / "images")
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return read_job(folder / "job.yaml")


def make_run(job: Job, objective: str) -> Run:
    run = Run(job)
    run.objective = OBJECTIVES[objective]
    return run


def features(family: Family, images: list[Image.Image]) -> np.ndarray:
    """A fixed feature space: the bundled VAE's latents, averaged over 4 x 4 regions; (number,
    64)."""
    latents = torch.cat([family.encode_images(batch) for batch in pixels_of(images).split(100)])
    return torch.nn.functional.adaptive_avg_pool2d(latents, 4).flatten(1).double().numpy()


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance of two normal distributions with the samples' means and covariances."""
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = np.real(linalg.sqrtm(covariances[0] @ covariances[1]))
    return float(
        ((one.mean(0) - other.mean(0)) ** 2).sum()
        + np.trace(covariances[0] + covariances[1] - 2 * root)
    )


def sharpness(images: list[Image.Image]) -> float:
    """Root mean square of the Laplacian, over all pictures: falls as edges blur."""
    pictures = np.stack([np.asarray(image.convert("L"), dtype=np.float64) for image in images])
    return float(np.sqrt((ndimage.laplace(pictures, mode="nearest")[:, 1:-1, 1:-1] ** 2).mean()))


def draw(
    family: Family, captions: list[Caption], guidance: float, steps: int, seed: int
) -> list[Image.Image]:
    seeds = [seed * 1_000_003 + index for index in range(len(captions))]
    texts = [str(caption) for caption in captions]
    return sample(
        family, texts, seeds, width=SIZE, height=SIZE, guidance_scale=guidance, steps=steps
    )


def measure(family: Family, number: int, samplings: list[tuple[float, int]]) -> dict:
    """What is measured of a model's pictures; verdicts are kept by caption, for paired
    comparisons."""
    sampler = sampling_family()
    sampler.pipeline.transformer.load_state_dict(family.pipeline.transformer.state_dict())
    captions = draw_captions(np.random.default_rng(CAPTION_SEED), number, held_out=True)
    reference = [
        render(scene.things) for scene in draw_scenes(REFERENCE_SEED, number, held_out=True)
    ]
    reference_features = features(family, reference)
    rows = {}
    for guidance, steps in samplings:
        images = draw(sampler, captions, guidance, steps, seed=42)
        verdicts = [
            evaluate_image(image, caption) for image, caption in zip(images, captions, strict=True)
        ]
        rows[f"{guidance}/{steps}"] = {
            "correct": "".join(str(int(verdict.correct)) for verdict in verdicts),
            "score": [round(verdict.score, 3) for verdict in verdicts],
            "frechet": round(frechet(features(family, images), reference_features), 4),
            "sharpness": round(sharpness(images), 3),
        }
    guidance, steps = samplings[0]
    few = [caption for caption in captions[: 2 * len(CATEGORIES)] for _ in range(8)]
    groups = features(family, draw(sampler, few, guidance, steps, seed=43)).reshape(-1, 8, 64)
    distances = [
        np.linalg.norm(group[:, None] - group[None], axis=-1)[np.triu_indices(8, 1)].mean()
        for group in groups
    ]
    return {"samplings": rows, "variety": round(float(np.mean(distances)), 4)}


def encode_held_out(family: Family, number: int, seed: int) -> tuple[Tensor, Features, Features]:
    """Latents of held-out pictures, their captions encoded, and as many empty captions."""
    scenes = draw_scenes(seed, number, held_out=True)
    x0 = family.encode_images(pixels_of([render(scene.things) for scene in scenes]))
    return (
        x0,
        family.encode_text([str(scene.caption) for scene in scenes]),
        family.encode_text([""]) * number,
    )


def probe(family: Family) -> dict:
    """Exposure bias on 64 held-out pictures, guided as in sampling and not."""
    x0, cond, empty = encode_held_out(family, 64, REFERENCE_SEED + 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(REFERENCE_SEED))
    biases = {}
    for scale in (1.0, 2.5):
        bias = exposure_bias(
            lambda z, sigma: family.predict(z, sigma, cond), x0, noise,
            predict_uncond=lambda z, sigma: family.predict(z, sigma, empty), cfg_scale=scale,
        )  # fmt: skip
        biases[str(scale)] = {
            key: [round(float(value), 5) for value in values] for key, values in vars(bias).items()
        }
    return biases


def run_cell(cell: Cell, results: Path, number: int, samplings: list[tuple[float, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        trained = Trained(cell, Path(name))
    start = time.perf_counter()
    measures = measure(trained.family, number, samplings)
    if cell.group != "sweep":  # a fifth of a short cell's time
        measures["exposure_bias"] = probe(trained.family)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    record = {
        "cell": {**vars(cell), "network": cell.network}, "date": date.today().isoformat(),
        "commit": commit, "number": number,
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch "
            f"{torch.__version__}",
        "training_seconds": round(trained.seconds, 1),
        "measuring_seconds": round(time.perf_counter() - start, 1),
        "metrics": trained.losses, **measures,
    }  # fmt: skip
    partial_file = results / f"{cell.name}.partial"
    partial_file.write_text(json.dumps(record) + "\n")
    os.replace(partial_file, results / f"{cell.name}.json")


def write_pictures(group: str, file: Path) -> None:
    """Trains a group's first seed again and draws captions from the same noise: a row for the base
    and for each arm."""
    captions = draw_captions(
        np.random.default_rng(CAPTION_SEED), 2 * len(CATEGORIES), held_out=True
    )
    guidance, steps = SAMPLINGS[group][-1]
    images = []
    for cell in cells():
        if cell.seed == 0 and (cell.group == group or not cell.steps):
            with tempfile.TemporaryDirectory() as name:
                family = Trained(cell, Path(name)).family
            images += draw(family, captions, guidance, steps, seed=42)
            print(cell.name, flush=True)
    grid(images, len(captions), scale=2).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--share",
        default="0/1",
        help="this process's share of the cells, as index/number of processes",
    )
    parser.add_argument("--groups", nargs="+", choices=SAMPLINGS, default=list(SAMPLINGS))
    parser.add_argument("--minutes", type=float, default=360, help="start no cell after this time")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument(
        "--pictures", choices=("pull",), help="draw pictures of a group's arms, and nothing else"
    )
    args = parser.parse_args()
    if args.report:
        import report

        report.write(HERE / "results" / "quality", HERE / "RESULTS.md", HERE.parent / "README.md")
        return
    if args.pictures:
        write_pictures(args.pictures, HERE / "results" / f"{args.pictures}.png")
        return
    results = HERE / "results" / ("quality_quick" if args.quick else "quality")
    results.mkdir(parents=True, exist_ok=True)
    index, processes = map(int, args.share.split("/"))
    study = [cell for cell in cells() if cell.group in args.groups][: 3 if args.quick else None]
    number = 105 if args.quick else 1_050
    start = time.time()
    for cell in study[index::processes]:
        if (results / f"{cell.name}.json").exists():
            continue
        if time.time() - start > 60 * args.minutes:
            break
        run_cell(cell, results, number, SAMPLINGS["sweep"] if args.quick else cell.samplings)
        row = json.loads((results / f"{cell.name}.json").read_text())
        correct = next(iter(row["samplings"].values()))["correct"]
        training, measuring = row["training_seconds"], row["measuring_seconds"]
        times = f"trained in {training:.0f} s, measured in {measuring:.0f} s"
        print(f"{cell.name}: {correct.count('1') / number:.1%} of {number}, {times}", flush=True)


if __name__ == "__main__":
    main()
