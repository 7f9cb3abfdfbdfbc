"""The command: soarflow train | check | probe | report | sample | evaluate | demo | schema."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .config import ConfigError
from .settings import HIGHEST_SEED
from .terminal import (
    command,
    output_file,
    output_folder,
    path_from_here,
    show_table,
    silence_kernels,
    silence_loading_bars,
)
from .tinyscenes import BUNDLED

if TYPE_CHECKING:
    from .engine.families import Family
    from .engine.job import Job

LARGEST_SCALE = 64


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    args = _parser().parse_args(arguments)
    silence_kernels()
    try:
        return args.run(args)
    except ConfigError as error:
        print(f"soarflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("soarflow: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="soarflow", description="Train flow-matching models with SOAR."
    )
    parser.add_argument("--version", action="version", version=f"soarflow {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(run: Callable[[argparse.Namespace], int], words: str) -> Callable[..., Any]:
        name = run.__name__.removeprefix("_")
        made = commands.add_parser(name, help=words, description=words)
        made.set_defaults(run=run)

        def option(*names: str, help: str, **settings: Any) -> None:
            shown = f"{help} (default: %(default)s)" if "default" in settings else help
            made.add_argument(*names, help=shown, **settings)

        return option

    add(_train, "run an AI Toolkit job file on the built-in engine")(
        "job", type=Path, help="a YAML file"
    )
    option = add(_check, "say what a job would do, what is wrong with it and what it costs")
    option("job", type=Path, help="a YAML file")
    option("--measure", action="store_true", help="take a few real steps, to say how long it takes")
    option("--seconds-per-step", type=float, help="to say how long it takes")

    option = add(_probe, "what a model's own steps lose: is there anything for SOAR to correct?")
    option(
        "models", nargs="*", metavar="MODEL_OR_JOB",
        help="pipelines, or job files, whose trained weights are probed beside their base "
        "(the bundled model if there is none)",
    )  # fmt: skip
    option("--arch", default="zimage", help="the family of pipelines")
    option("--lora", type=Path, action="append", help="probe it too, beside the model; repeatable")
    option("--num-steps", type=int, help="steps of a drawing (default: the job's, or 30)")
    option("--cfg-scale", type=float, help="its guidance (default: the job's, or 4.5)")
    option("--pictures", help="a folder of pictures and captions that the models have not seen")
    option("--resolution", type=int, help="their size (default: the job's, or 512)")
    option("--number", type=int, default=64, help="pictures to measure on")
    option("--seed", type=int, default=0, help="of their noise")
    option("--json", type=Path, help="write the numbers here")
    option("--figure", type=Path, help="draw them here")
    option(
        "--hybrid", type=Path,
        help="a grid of pictures drawn finely down to a level and coarsely below: what better "
        "sampling alone could win",
    )  # fmt: skip
    option("--clip", help="score them with this CLIP model: its folder, or owner/model")

    option = add(_sample, "draw pictures for prompts")
    option("prompts", nargs="+", help="one or more prompts; several give a grid")
    option("--output", type=Path, default=Path("sample.png"), help="the picture's file")
    _add_model_options(option)
    option("--width", type=int, default=64, help="in pixels")
    option("--height", type=int, default=64, help="in pixels")
    option("--scale", type=int, default=1, help="enlarge the pictures by a whole factor")

    option = add(_evaluate, "how many held-out captions a tinyscenes model draws right")
    _add_model_options(option)
    option("--number", type=int, default=210, help="captions, the seven categories in turn")
    option("--json", type=Path, help="write the table here too")

    option = add(_demo, "SOAR against plain SFT on the bundled model, in minutes")
    option("--output", type=Path, default=Path("quickstart"), help="folder of all that it writes")
    option("--steps", type=int, default=150, help="training steps of each model")
    option("--number", type=int, default=210, help="captions to evaluate on")

    option = add(_report, "one page of runs: losses, drift, samples, settings, versions, cost")
    option("runs", nargs="+", type=Path, metavar="RUN", help="a training's output folder, "
           "soarflow's or AI Toolkit's; several are compared")  # fmt: skip
    option("--output", type=Path, help="the page's file (default: report.html, in the one run's "
           "folder or here)")  # fmt: skip

    option = add(_schema, "print what editors need to check job files")
    option("--of", choices=("engine", "ai_toolkit", "page"), default="engine", help="what to print")
    return parser


def _add_model_options(option: Callable[..., Any]) -> None:
    option("--model", help="a diffusers pipeline (default: the bundled one)")
    option("--arch", default="zimage", help="its family")
    option("--lora", type=Path, help="a LoRA's .safetensors")
    option("--transformer", type=Path, help="the folder that a full fine-tune wrote")
    option("--guidance", type=float, default=4.0, help="guidance scale")
    option("--steps", type=int, default=20, help="steps of the sampler")
    option("--seed", type=int, default=42, help="seed of the first picture")


def _train(args: argparse.Namespace) -> int:
    from .checking.check import before_training
    from .engine.checks import claim_device
    from .engine.job import read_job
    from .engine.trainer import train

    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, of several processes one speaks
    silence_loading_bars()
    job = read_job(args.job)
    if job.type == "SOARProbe":
        raise ConfigError(
            "type must be SOARTrainer or diffusion_trainer to train, got 'SOARProbe'. It trains "
            f"nothing: {command()} probe {path_from_here(args.job)}"
        )
    claim_device(job.device)
    output_folder(job.save_root, "training_folder/name")
    print(job.describe(), flush=True)
    if os.environ.get("RANK", "0") == "0":
        for line in before_training(args.job, job):
            print(f"  warning: {line}", flush=True)
    outcome = train(job)
    if outcome.finished:
        print(f"finished at step {outcome.step}; metrics and state: {job.save_root}")
        print(_next(job, outcome.weights))
        return 0
    print(
        f"stopped at step {outcome.step}, saved: {outcome.weights}\nto go on: {command()} train "
        f"{path_from_here(args.job)}"
    )
    return 130


def _next(job: "Job", weights: Path) -> str:
    """Where the weights are, and the line that draws with them, as it can be typed here."""
    what, option = ("LoRA", "--lora") if job.network else ("transformer", "--transformer")
    model = Path(job.model.name_or_path)
    words = [command(), "sample"]
    picture = next(iter(job.sample.pictures()), None)
    prompt = picture.prompt if picture else "what your captions say"
    words += [shlex.quote(prompt), option, path_from_here(weights)]
    if not (model.exists() and model.samefile(BUNDLED)):
        shown = path_from_here(model) if model.exists() else shlex.quote(str(model))
        words += ["--model", shown, "--arch", job.model.arch]
    if picture:
        words += ["--width", str(picture.width), "--height", str(picture.height)]
        words += ["--guidance", f"{picture.guidance_scale:g}", "--steps", str(picture.sample_steps)]
    return (
        f"the {what}: {path_from_here(weights)}\nto draw with it:\n  {' '.join(words)}\n"
        f"a page of this run (several are compared):\n  {command()} report "
        f"{path_from_here(job.save_root)}"
    )


def _check(args: argparse.Namespace) -> int:
    from .checking.check import check

    silence_loading_bars()
    return check(args.job, seconds=args.seconds_per_step, measured=args.measure)


def _load(args: argparse.Namespace) -> "Family":
    import torch

    from .engine.families import FAMILIES, load_family
    from .engine.weights import load_lora, load_transformer

    silence_loading_bars()
    for name, low in (("steps", 1), ("guidance", 0)):
        if not getattr(args, name) >= low:
            raise ConfigError(f"--{name} must be at least {low}, got {getattr(args, name)}.")
    if not 0 <= args.seed <= HIGHEST_SEED:
        raise ConfigError(f"--seed must be an integer from 0 to {HIGHEST_SEED}, got {args.seed}.")
    if args.arch not in FAMILIES:
        raise ConfigError(f"--arch must be one of {', '.join(FAMILIES)}, got {args.arch}.")
    family = load_family(
        args.arch,
        args.model or str(BUNDLED),
        torch.float32,
        "cuda" if torch.cuda.is_available() else "cpu",
    )
    if args.transformer is not None:
        load_transformer(family, args.transformer)
    if args.lora is not None:
        load_lora(family, args.lora)
    return family


def _probe(args: argparse.Namespace) -> int:
    from .advice import (
        advice,
        figure,
        heading,
        hybrid_in_words,
        noise_in_words,
        side_by_side,
        table,
    )
    from .engine.probe_command import hybrid_grid, probe_all

    silence_loading_bars()
    for name in ("figure", "hybrid"):
        file = getattr(args, name)
        if file and file.suffix.lower() not in (".png", ".jpg", ".webp"):
            raise ConfigError(f"--{name} must end in .png, .jpg or .webp, got {file}.")
    for name in ("json", "figure", "hybrid"):
        if getattr(args, name):
            output_file(getattr(args, name), f"--{name}")
    all_probed = []
    for probed in probe_all(args):
        all_probed.append(probed)
        print(heading(probed), flush=True)
        show_table(table(probed))
        print(noise_in_words(probed.noise_norm))
        if probed.hybrid:
            print("\n".join(hybrid_in_words(probed)))
        print("\n".join(advice(probed)) + "\n", flush=True)
    if len(all_probed) > 1:
        print("drift of all:")
        show_table(side_by_side(all_probed))
    records = [probed.record() for probed in all_probed]
    if args.json:
        found = records[0] if len(records) == 1 else records
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.hybrid:
        hybrid_grid(all_probed).save(args.hybrid)
    if args.figure and not figure(all_probed, args.figure):
        print("no figure: matplotlib is not installed")
    return 0


def _sample(args: argparse.Namespace) -> int:
    from .engine.sampling import encode, grid, sample

    if args.output.suffix.lower() not in (".png", ".jpg", ".webp"):
        raise ConfigError(f"--output must end in .png, .jpg or .webp, got {args.output}.")
    if not 1 <= args.scale <= LARGEST_SCALE:
        raise ConfigError(
            f"--scale must be an integer from 1 to {LARGEST_SCALE}, got {args.scale}."
        )
    output_file(args.output, "--output")
    family = _load(args)
    multiple = family.size_multiple
    for name in ("width", "height"):
        if getattr(args, name) < multiple or getattr(args, name) % multiple:
            raise ConfigError(
                f"--{name} must be a multiple of {multiple}, got {getattr(args, name)}."
            )
    seeds = [args.seed + index for index in range(len(args.prompts))]
    images = sample(
        family,
        args.prompts,
        seeds,
        width=args.width,
        height=args.height,
        guidance_scale=args.guidance,
        steps=args.steps,
        texts=encode(family, [*args.prompts, ""]),
    )
    grid(images, min(len(images), 8), args.scale).save(args.output)
    print(args.output)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .bundled.scoring import score, table

    if args.number < 7:
        raise ConfigError(f"--number must be at least 7, one for each category, got {args.number}.")
    if args.json:
        output_file(args.json, "--json")
    result = score(
        _load(args), args.number, guidance_scale=args.guidance, steps=args.steps, seed=args.seed
    )
    show_table(table({"correct": result}))
    if args.json:
        args.json.write_text(result.to_json() + "\n")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from .bundled.demo import demo

    silence_loading_bars()
    for name, low in (("steps", 1), ("number", 7)):
        if getattr(args, name) < low:
            raise ConfigError(f"--{name} must be at least {low}, got {getattr(args, name)}.")
    demo(args.output, args.steps, args.number)
    return 0


def _report(args: argparse.Namespace) -> int:
    from .report.page import default_file, write_report

    file = args.output or default_file(args.runs)
    if file.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output must end in .html, got {file}.")
    output_file(file, "--output")
    write_report(args.runs, file)
    print(path_from_here(file))
    return 0


def _schema(args: argparse.Namespace) -> int:
    from .engine.schema import ai_toolkit_schema, engine_schema, page

    if args.of == "page":
        print(page(), end="")
    else:
        print(
            json.dumps(
                ai_toolkit_schema() if args.of == "ai_toolkit" else engine_schema(), indent=1
            )
        )
    return 0
