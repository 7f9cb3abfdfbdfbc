"""The package as others meet it: what importing costs, the door under any folder name, the
command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code, *paths):
    """Runs code in a fresh interpreter that knows only the given paths; returns what it printed."""
    program = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}; {code}"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd="/"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_imports_torch_and_nothing_heavier():
    heavy = [
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "scipy",
        "PIL",
        "yaml",
        "tqdm",
        "matplotlib",
    ]
    # torch may have imported tqdm
    code = "import torch; before = set(sys.modules); import soarflow; "
    code += "new = set(sys.modules) - before; "
    assert python(code + f"print([name for name in {heavy} if name in new])", ROOT) == "[]"


@pytest.mark.parametrize("name", ["aitk_soar", "soar", "soarflow", "my_clone"])
def test_a_clone_of_any_name_imports_as_an_extension(tmp_path, name):
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / name).symlink_to(ROOT)
    code = f"import extensions.{name} as door, extensions.{name}.soarflow as package; "
    code += "print(door.AI_TOOLKIT_EXTENSIONS)"
    assert python(code, tmp_path) == "[]"


def test_the_door_imports_nothing(tmp_path):
    (tmp_path / "clone").symlink_to(ROOT)
    assert python("import clone; print('torch' in sys.modules)", tmp_path) == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "a circle", "--width", "60"], "--width must be a multiple of 8, got 60."),
        (
            ["sample", "a circle", "--output", "x.txt"],
            "--output must end in .png, .jpg or .webp, got x.txt.",
        ),
        (["sample", "a circle", "--steps", "0"], "--steps must be at least 1, got 0."),
        (
            ["sample", "a circle", "--lora", "none.safetensors"],
            "--lora must be a .safetensors file that exists",
        ),
        (["sample", "a circle", "--model", "/"], "no model_index.json"),
        (["evaluate", "--number", "3"], "--number must be at least 7"),
        (["demo", "--steps", "0"], "--steps must be at least 1"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(arguments, message, capsys):
    from soarflow.cli import main

    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_the_example_loop_learns():
    printed = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in printed.stdout.splitlines()]
    assert float(rows[-1][3]) < 0.7 * float(rows[0][3])
