"""The package as others meet it: what importing costs, the door under any folder name, the
command."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import soarflow
from soarflow.terminal import command

ROOT = Path(__file__).parent.parent


def python(code, *paths):
    """Runs code in a fresh interpreter that knows only the given paths; returns what it printed."""
    program = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}; {code}"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd="/"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_imports_torch_and_pydantic_and_nothing_heavier():
    code = "import sys, torch, pydantic; before = set(sys.modules); import soarflow; "
    code += "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
    code += "print(sorted(new - {'pydantic', 'pydantic_core', 'annotated_types'}))"
    names = {name for name in ast.literal_eval(python(code, ROOT)) if not name.startswith("_")}
    assert names - sys.stdlib_module_names == {"soarflow"}


def test_no_module_imports_in_a_circle_and_nobody_imports_the_command():
    """By the imports as they are written, those inside functions included."""
    imports = {}
    for file in (ROOT / "soarflow").rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        package = parts[:-1]
        imports[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join(
                    [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
                )
                imports[name] |= {base, *(f"{base}.{each.name}" for each in node.names)}
    graph = {name: {each for each in found if each in imports} for name, found in imports.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError
    importers = [name for name, found in graph.items() if "soarflow.cli" in found]
    assert importers == ["soarflow.__main__"]


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


@pytest.mark.slow
def test_the_example_loop_learns():
    printed = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in printed.stdout.splitlines()]
    assert float(rows[-1][3]) < 0.7 * float(rows[0][3])


@pytest.mark.parametrize(
    "arguments", [["-m", "soarflow"], ["-c", "from soarflow.cli import main; main()"]]
)
def test_the_command_runs_as_a_module_and_tells_its_version(arguments):
    command = [sys.executable, *arguments, "--version"]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout == (
        f"soarflow {soarflow.__version__}\n"
    )


def test_what_is_printed_to_be_typed_can_be_typed(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    python_file = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python_file))
    assert command() == f"{python_file} -m soarflow"
    python_file.parent.mkdir(parents=True)
    python_file.with_name("soarflow").touch()
    assert command() == ".venv/bin/soarflow"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert command() == str(python_file.with_name("soarflow"))
