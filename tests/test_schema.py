"""The schema, the page of keys and the examples say the same as the sections."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from soarflow.cli import main
from soarflow.engine.schema import SECTIONS
from soarflow.settings import annotation_of, fields_of, rule_of

ROOT = Path(__file__).parent.parent
LOADER = type("Loader", (yaml.SafeLoader,), {})  # of YAML 1.2, as in editors: 2e-3 is a number
LOADER.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^\d+e-?\d+$"), list("0123456789")
)
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
MADE = {
    "engine": "examples/engine.schema.json",
    "ai_toolkit": "examples/ai_toolkit.schema.json",
    "page": "docs/job-file.md",
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_committed_is_what_the_command_prints(kind, capsys):
    assert main(["schema", "--of", kind]) == 0
    assert (ROOT / MADE[kind]).read_text(encoding="utf-8") == capsys.readouterr().out


@pytest.mark.parametrize("section", SECTIONS.values(), ids=lambda section: section.__name__)
def test_every_key_has_a_rule_and_a_sentence(section):
    for name, field in fields_of(section).items():
        assert rule_of(annotation_of(field)).words, name
        assert field.description and field.description.endswith("."), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_names_a_schema_and_keeps_to_it(example):
    first, *_ = example.read_text(encoding="utf-8").splitlines()
    mark, _, path = first.partition("$schema=")
    assert mark == "# yaml-language-server: "
    schema = json.loads((example.parent / path).read_text(encoding="utf-8"))
    jsonschema.validate(yaml.load(example.read_text(encoding="utf-8"), LOADER), schema)


@pytest.mark.parametrize("host", ["engine", "ai_toolkit"])
def test_an_editor_sees_a_wrong_key_of_soar(host):
    schema = json.loads((ROOT / MADE[host]).read_text(encoding="utf-8"))
    job = yaml.safe_load((ROOT / "examples/ai_toolkit/tinyscenes_cpu.yaml").read_text())
    for bad in ({"num_step": 30}, {"num_steps": 0}, {"rollout": "odes"}):
        job["config"]["process"][0]["soar"] = bad
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(job, schema)
