"""The pages: every figure is a committed result's, every link leads somewhere, every command is one
that there is."""

import inspect
import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
import yaml
from drift import HYBRIDS
from PIL import Image
from study import answers, drift, further, report
from study.arms import SFT
from study.decision import MARGIN, PAPERS_GAIN, START, STEPS, Decision, verdict

from soarflow import SOARConfig
from soarflow.advice import LITTLE, Probed, advice, sentence, table
from soarflow.cli import _parser
from soarflow.engine.job import read_job
from soarflow.probe import IN_TRAINING, Drift, Setting
from soarflow.terminal import plain_table
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.scenes import CLEAN_NUMBER, PALETTE, SIZE

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {path.stem: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def study():
    """The committed one."""
    return report.Study(RESULTS / "quality")


def page(name):
    """A page's text with its line breaks as spaces."""
    return " ".join(PAGES[name].read_text(encoding="utf-8").split())


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


# Form


def test_the_readme_is_short():
    assert len(PAGES["README"].read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file(name):
    file = PAGES[name]
    targets = [each for each in LINK.findall(file.read_text(encoding="utf-8")) if "://" not in each]
    assert [each for each in targets if not (file.parent / each).exists()] == []


@pytest.mark.parametrize("name", sorted(PAGES.keys() - {"README"}))
def test_a_page_says_whom_it_is_for_and_has_something_to_copy(name):
    text = PAGES[name].read_text(encoding="utf-8")
    assert text.split("\n\n")[1].startswith("For ")
    assert "\n```" in text


def commands():
    for file in [*PAGES.values(), *sorted((ROOT / "examples").rglob("*.yaml"))]:
        for line in file.read_text(encoding="utf-8").splitlines():
            line = re.sub(r"^#\s+", "", line)
            if line.startswith((".venv/bin/soarflow ", "soarflow ")):
                yield pytest.param(re.split(r"\s{4,}", line)[0], id=f"{file.stem}: {line[:40]}")


@pytest.mark.parametrize("line", commands())
def test_the_commands_that_pages_and_examples_show_are_ones_that_there_are(line):
    _parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_example_of_ones_own_pictures_is_a_good_job_as_the_readme_describes_it(tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "soarflow").symlink_to(ROOT / "soarflow")
    (tmp_path / "my_pictures").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "my_pictures" / "01.png")
    (tmp_path / "my_pictures" / "01.txt").write_text("a star")
    file = tmp_path / "examples" / "own_pictures.yaml"
    file.write_bytes((ROOT / "examples" / "own_pictures.yaml").read_bytes())
    job = read_job(file)
    assert Path(job.model.name_or_path).resolve() == BUNDLED.resolve()
    assert job.save_root.resolve() == tmp_path.resolve() / "output" / "own_pictures"
    lines = (ROOT / "examples" / "own_pictures.yaml").read_text().splitlines()
    settings = [line for line in lines if re.search(r": +\S", line)]
    assert [line for line in settings if "# " not in line] == []  # "explains itself line by line"


def test_the_readme_names_the_words_that_the_bundled_model_knows():
    text = page("README")
    listed = text[text.index("and few words:") : text.index("All others are")]
    words = set(" ".join(re.findall(r"`([^`]+)`", listed)).split())
    tokens = json.loads((BUNDLED / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    plurals = {"circles", "squares", "triangles", "crosses", "crosss"}  # the last by an old slip
    assert words == {word for word in tokens if word.isalpha()} - plurals


def test_the_ready_job_files_are_as_many_as_the_pages_say():
    files = {file.name for file in (ROOT / "examples" / "ai_toolkit").glob("*.yaml")}
    assert len(files - {"tinyscenes_cpu.yaml"}) == 15
    assert "job files for fifteen models" in page("README") and "for fifteen" in page("ai-toolkit")


def test_the_settings_page_shows_every_key_with_its_default():
    text = PAGES["settings"].read_text(encoding="utf-8")
    block = text.split("```yaml\n")[1].split("```")[0]
    shown = yaml.safe_load(block.replace("# rollout_noise", "rollout_noise"))["soar"]
    assert shown.pop("rollout_noise") == SOARConfig(rollout="cps").noise_strength
    assert SOARConfig.from_dict(shown) == SOARConfig()
    assert {*shown, "rollout_noise"} == set(inspect.signature(SOARConfig).parameters)
    for key in inspect.signature(SOARConfig).parameters:
        assert f"**`{key}`** (" in text or f"| `{key}` | " in text


def test_the_pages_tell_the_defaults_of_the_four_settings():
    for name in ("num_steps", "cfg_scale", "correction_weight", "num_aux_points"):
        default = f"({getattr(SOARConfig(), name):g})"
        assert f"- `{name}` {default}: " in page("README")
        assert f"**`{name}`** {default}: " in page("settings")


def test_the_readme_describes_the_quickstart_and_its_model():
    text = page("README")
    assert f"writes {CLEAN_NUMBER} pictures" in text and f"{SIZE} x {SIZE} pixels" in text
    assert "five colours" in text and len(PALETTE) == 5


# Cost


def plain_steps(**settings):
    checkpointing = settings.pop("checkpointing", False)
    return f"{SOARConfig(**settings).cost(checkpointing):.2f}"


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        ("with guidance", {}),
        ("with guidance and gradient checkpointing", {"checkpointing": True}),
        ("`cfg_scale: 1`", {"cfg_scale": 1}),
        ("`every: 4` (correction on each fourth step)", {"every": 4}),
    ],
)
def test_the_counted_costs(label, settings):
    cells = [plain_steps(num_aux_points=number, **settings) for number in (1, 2, 4, 8)]
    assert f"| {label} | " + " | ".join(cells) + " |" in page("cost")


def test_the_other_pages_tell_the_same_costs():
    one, four, eight = (plain_steps(num_aux_points=number) for number in (1, 4, 8))
    every = plain_steps(every=4)
    settings = page("settings")
    assert f"costs {one} plain ones at 1, {four} at 4 and {eight} at 8" in settings
    assert f"at 4 a step costs {every} plain ones" in settings
    when = page("when-it-helps")
    assert f"as much as {four} plain steps" in when
    assert f"steps: {2000 * SOARConfig().cost():.0f}}}" in when
    assert f"the same gradient at {one} plain steps; or `every: 4` at {every}" in when
    readme = page("README")
    assert f"at 4 it costs {float(four):.1f} plain steps, at 1 {float(one):.1f}," in readme
    assert f"each step costs {float(four):.1f} plain ones" in readme


COSTS = [
    row for file in RESULTS.glob("cost_*.json") for row in json.loads(file.read_text())["rows"]
]


def counted(model, step, checkpointing=False):
    wanted = {"model": model, "training": "lora", "checkpointing": checkpointing, "step": step}
    return next(row for row in COSTS if wanted.items() <= row.items())


@pytest.mark.parametrize("model", ["flux1_dev", "sd35_medium"])
@pytest.mark.parametrize(
    ("checkpointing", "number"), [(False, 1), (False, 4), (False, 8), (True, 4)]
)
def test_the_costs_of_real_shapes(model, checkpointing, number):
    plain, soar, published = (
        counted(model, step, checkpointing)
        for step in ("SFT", f"SOAR N={number} guided", f"published N={number} guided")
    )
    operations = (each["operations"] / plain["operations"] for each in (soar, published))
    cells = [*operations, soar["saved_over_sft"], published["saved_over_sft"]]
    assert f"| {number} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |" in page("cost")
    assert abs(soar["operations_over_floor"] - 1) < 1e-4


def test_the_memory_of_the_options():
    plain, shared, checkpointed = (
        counted("flux1_dev", "SFT"),
        counted("flux1_dev", "SOAR N=4 guided 4 per pass"),
        counted("flux1_dev", "SFT", checkpointing=True),
    )

    def gib(row):
        return f"{row['saved_bytes'] / 2**30:.1f} GiB"

    text = page("cost")
    assert f"| plain step, float32 | {gib(plain)} | 1 |" in text
    assert f"{gib(shared)} | {shared['saved_over_sft']:.2f} |" in text
    share = checkpointed["saved_bytes"] / plain["saved_bytes"]
    assert f"plain or SOAR | {gib(checkpointed)} | {share:.2f} |" in text
    together = counted("flux1_dev", "SOAR N=4 guided", checkpointing=True)
    assert together["saved_bytes"] == checkpointed["saved_bytes"]


def test_the_step_times():
    text = page("cost")
    plain, checkpointed = result("step_time")["rows"]
    host = result("host_step_time")
    for label, ratio, floor in (
        ("our engine, bundled model, 1 thread", plain["time_ratio"], plain["floor"]),
        (
            "the same with gradient checkpointing",
            checkpointed["time_ratio"],
            checkpointed["floor"],
        ),
        (
            f"AI Toolkit {host['host']}, a random FLUX of 36 M, 1 thread",
            host["ratio"],
            host["floor"],
        ),
    ):
        cells = rf"\| {re.escape(label)} \| ([\d.]+) \| ([\d.]+) \|"
        shown = [float(cell) for cell in re.search(cells, text).groups()]
        assert shown == pytest.approx([ratio, floor], abs=0.0051)
    times = {"SOAR": [], "published": []}
    for row in COSTS:
        if row["model"] == "sd35_slice" and row["step"] != "SFT":
            times[row["step"].split()[0]].append(row["time_over_floor"])
    ours, published = (f"{min(each):.2f} to {max(each):.2f}" for each in times.values())
    assert f"takes {ours} of the formula's time, the published algorithm {published} (1" in text


# What it buys


def test_the_readmes_quickstart_is_the_committed_run():
    models = result("quickstart")["results"]
    rows = [["category", *models]]
    for category in next(iter(models.values())):
        rates = [each[category] for each in models.values()]
        rows.append(
            [category]
            + [
                f"{rate['correct'] / rate['number']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"
                for rate in rates
            ]
        )
    rows.append(["graded score", *(f"{each['overall']['score']:.3f}" for each in models.values())])
    assert " ".join(" ".join(row) for row in rows) in page("README")


GROUP_OF = {"2.5/30": "main", "4.5/30": "thirty", "1.0/30": "thirty"}


def against(study, sampling, arm, steps):
    """SOAR's 150 steps against another arm, in graded score."""
    group = GROUP_OF[sampling]
    return study.difference((group, "SOAR", 150), (group, arm, steps), sampling, "score")


def test_soar_is_nowhere_better_in_graded_score_than_its_controls(study):
    for sampling in GROUP_OF:
        for control in (("SFT", 150), ("SFT N levels", 150), ("SFT", 800)):
            change = against(study, sampling, *control)
            assert change.mean <= change.half  # "nothing that we could measure"


def scores(study, key, sampling):
    """The mean graded score of each seed."""
    return {
        record["cell"]["seed"]: statistics.mean(record["samplings"][sampling]["score"])
        for record in study.cells[key]
    }


def test_the_table_of_when_it_helps(study):
    text = page("when-it-helps")
    for label, control in (
        ("plain training of as many steps", ("SFT", 150)),
        ("as many ordinary points", ("SFT N levels", 150)),
    ):
        cells = [against(study, sampling, *control).signed for sampling in GROUP_OF]
        assert f"| {label} | " + " | ".join(cells) + " |" in text
    medians = []
    for sampling, group in GROUP_OF.items():
        soar, plain = (
            scores(study, (group, *key), sampling) for key in (("SOAR", 150), ("SFT", 800))
        )
        medians.append(statistics.median(soar[seed] - plain[seed] for seed in plain))
    cells = " | ".join(f"{median:+.3f}" for median in medians)
    assert f"| plain training for the same compute, median of five | {cells} |" in text
    lowest, *others = sorted(scores(study, ("main", "SFT", 800), "2.5/30").values())
    assert len(others) == 4
    assert f"is {lowest:.3f}, the others' {others[0]:.3f} to {others[-1]:.3f}." in text


def test_the_full_fine_tune_shows_no_gain_either(study):
    for steps, plain in ((150, 800), (800, 4267)):
        for sampling in study.samplings("full"):
            for control in (("SFT", steps), ("SFT N levels", steps), ("SFT", plain)):
                keys = ("full", "SOAR", steps), ("full", *control)
                change = study.difference(*keys, sampling, "score")
                assert change.mean <= change.half


# The study that decides


@pytest.fixture(scope="module")
def decision():
    return Decision(RESULTS / "deciding")


def row_of(cells):
    return "| " + " | ".join(cells) + " |"


def test_the_drift_in_when_it_helps(decision):
    rows = {(row["guidance"], row["steps"]): row for row in decision.measured["drift_start"]}
    for guidance in drift.GUIDANCES:
        means = [rows[guidance, steps]["mean"] for steps in drift.STEPS]
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*each) for each in means]
        assert row_of([f"{guidance:g}", *cells]) in page("when-it-helps")


def test_where_there_is_nothing_to_correct(decision):
    """Up to guidance 7.5 in 30 steps and 2.5 in 8, as when-it-helps says."""
    for row in decision.measured["drift_start"]:
        highest = {4: 0, 8: 2.5, 30: 7.5}[row["steps"]]
        assert (row["mean"][1] > 1) == (row["guidance"] > highest)


def test_what_the_states_cost_a_picture(decision):
    rows = decision.measured["hybrid_start"]
    text, gained = page("when-it-helps"), drift.differences(rows)
    assert f"of {statistics.mean(rows['1.000']['score']):.3f} in 4 steps at guidance" in text
    for level in ("0.667", "0.000"):
        mean, half = gained[level]
        assert f"{mean:+.3f} ± {half:.3f}" in text


def test_what_each_form_buys(decision):
    plain = (SFT.name, further.LORA_SFT.name)
    forms = [arm for arm in further.FURTHER_ARMS
             if arm.name not in plain and decision.scores[arm.name]]  # fmt: skip
    highest = {}
    for arm in forms:
        changes = {steps: decision.difference(arm, further.control(arm), steps) for steps in STEPS}
        cells = [each.signed if each else "" for each in changes.values()]
        row = row_of([arm.label, str(len(decision.scores[arm.name])), *cells])
        assert re.sub(" +", " ", row) in page("when-it-helps")
        highest |= {(arm.name, steps): each.mean + each.half
                    for steps, each in changes.items() if each}  # fmt: skip
    above = {key for key, bound in highest.items() if bound >= PAPERS_GAIN}
    assert above == {("another", 8)}  # "for every form but"
    for arm in (further.REFLEXFLOW, further.LORA_SOAR):  # "lower still"
        change = decision.difference(arm, further.control(arm), 4)
        assert change.mean < decision.primary.mean and change.mean + change.half < 0


def test_what_survives_the_correction_for_many_comparisons(decision):
    assert f"Of {len(decision.family)} other comparisons none" in page("when-it-helps")
    assert decision.called == {}


def test_the_start_is_saturated_as_the_plan_has_it(decision):
    taught = decision.difference(SFT, START, 4)
    assert answers.is_saturated(decision)
    assert f"nothing more: {taught.signed} over it" in page("when-it-helps")
    assert f"a start that {further.START_STEPS:,} plain steps had trained" in page("when-it-helps")
    assert f"the compute of {further.COMPUTE} plain steps" in page("when-it-helps")


def test_sharpness_and_variety_of_the_forms(decision):
    down, soar, plain = (
        {name: decision.scored(arm, 4, name) for name in ("sharpness", "variety")}
        for arm in (further.DOWN, further.SOAR_MATCHED, SFT)
    )
    assert {decision.key(arm, 4) for arm in (further.DOWN, further.SOAR_MATCHED, SFT)} == {"2.5/4"}
    assert (
        f"is {down['sharpness']:.1f} where SOAR's is {soar['sharpness']:.1f} and plain training's "
        f"{plain['sharpness']:.1f}, its variety {down['variety']:.2f} where SOAR's is "
        f"{soar['variety']:.2f} and plain training's {plain['variety']:.2f}"
    ) in page("contraction")
    assert (
        f"less sharp, {soar['sharpness']:.1f} against {plain['sharpness']:.1f}, and less varied, "
        f"{soar['variety']:.2f} against {plain['variety']:.2f}"
    ) in page("when-it-helps")
    change = decision.difference(further.DOWN, SFT, 4)
    assert f"not found: graded score {change.signed}." in page("contraction")
    assert abs(change.mean) + change.half < MARGIN  # "as good as plain training"


def test_the_primary_comparison_is_told_in_the_readme_and_in_when_it_helps(decision):
    primary, said = decision.primary, verdict(decision.primary)
    for name in ("README", "when-it-helps"):
        assert f"{primary.signed} against plain training: " in page(name)
    assert f"**{said}**" in page("when-it-helps") and f"plain training: {said}" in page("README")
    assert (primary.mean + primary.half < PAPERS_GAIN) == ("is excluded" in page("when-it-helps"))
    last = advice(read_back(result("drift")["drift"]["default"]))[-1]
    assert ("plain training for the same time did better" in last) == (said == "worse")


def test_the_price_of_a_gradient(decision):
    rows = {row["arm"]: row for row in decision.measured["price_start"]}
    for name in ("light", "one term"):
        assert answers.product(rows[name]) in page("when-it-helps")
        assert answers.product(rows[name]) in page("cost")
        ratio = rows[name]["at_equal_compute"] / rows[name]["of_all_terms"]
        assert ratio * rows[name]["low"] < 1 < ratio * rows[name]["high"]  # "no less, no more"
    changes = [decision.after_as_long(arm).signed for arm in (further.LIGHT, further.ONE_TERM)]
    assert f"(minus SOAR's score: {' and '.join(changes)})" in page("when-it-helps")


def in_short(change, digits):
    return f"{change.mean:+.{digits}f} ± {change.half:.{digits}f}"


def test_the_sweeps_figures(study):
    default = study.find("sweep", "defaults")

    def change(arm, measure):
        return study.difference(study.find("sweep", arm), default, "2.5/8", measure)

    settings, when = page("settings"), page("when-it-helps")
    others = [key for key in study.cells if key[0] == "sweep" and key != default]
    changes = [study.difference(key, default, "2.5/8", "score") for key in others]
    assert all(abs(each.mean) <= each.half for each in changes)  # "none is better or worse"
    assert f"{len(others)} settings were compared" in settings
    taught = study.difference(
        study.find("main", "SFT"), study.find("main", "base"), "2.5/8", "score"
    )
    few = change("num_aux_points 1", "score")
    assert (
        f"1 against 4 is {few.signed}, where plain training itself taught {taught.signed}"
        in settings
    )
    assert few.half > taught.mean  # "the comparison is blunt"
    sharpness = study.estimate(default, "2.5/8", "sharpness").mean
    steps, fresh = (
        in_short(change(arm, "sharpness"), 1) for arm in ("num_steps 4", "shared_noise False")
    )
    words = f"the defaults' {sharpness:.0f} it is {steps} at `num_steps: 4` and {fresh} at"
    assert words in settings
    assert f"graded score {change('sigma_min 0.1', 'score').signed}" in when


def test_the_pull_in_the_pictures(study):
    levels, soar = study.find("pull", "SFT N levels"), study.find("pull", "SOAR")
    for measure, digits, size in (("sharpness", 1, ".0f"), ("variety", 2, ".1f")):
        change = study.difference(soar, levels, "2.5/8", measure)
        whole = study.estimate(levels, "2.5/8", measure).mean
        assert f"points: {in_short(change, digits)} of {whole:{size}}" in page("when-it-helps")


# The pull in closed form and on a network

DEFAULTS = {"num_steps": 30, "rollout": "ode", "shared_noise": True, "arm": None, "share": None}


def slopes(rows, **wanted):
    """The slopes of the row with these settings, by level."""
    wanted = {**DEFAULTS, "halfway": False, **wanted}
    if wanted["rollout"] == "none":
        wanted.pop("cfg_scale", None)
    for row in rows:
        setting = {**DEFAULTS, **row["setting"]}
        if wanted.items() == setting.items():
            cells = row["cells"].items()
            return {
                float(level): cell["slope"] if isinstance(cell, dict) else cell
                for level, cell in cells
            }
    raise AssertionError(f"no row with {wanted}")


def closed_form():
    return [row for table in result("contraction")["tables"].values() for row in table]


def network():
    return result("contraction_bundled")["rows"]


def test_the_pull_in_when_it_helps():
    text = page("when-it-helps")
    four, thirty, hundred = (
        slopes(network(), num_steps=number, cfg_scale=1.0)[0.9] for number in (4, 30, 100)
    )
    assert f"{four:.2f} at `num_steps: 4`, {thirty:.2f} at 30, {hundred:.2f} at 100" in text
    assert f"pull {slopes(network(), rollout='cps', cfg_scale=1.0)[0.9]:.2f} with `cps`" in text
    weak, strong = (slopes(network(), cfg_scale=scale)[0.9] for scale in (4.5, 7.5))
    assert f"({thirty:.2f} at `cfg_scale: 1`, {weak:.2f} at 4.5, {strong:.2f} at 7.5" in text
    weak, strong = (slopes(closed_form(), cfg_scale=scale)[0.7] for scale in (4.5, 7.5))
    assert f"pull {weak:.2f} at `cfg_scale: 4.5`, {strong:.2f} at 7.5" in text
    fresh = slopes(closed_form(), shared_noise=False, cfg_scale=1.0, halfway=True).values()
    assert f"closed form: {min(fresh):.2f} to {max(fresh):.2f}" in text


# The probe


def read_back(found):
    """What the command measured, from its JSON."""
    settings = dict(found["settings"])
    number, pictures = settings.pop("number"), settings.pop("pictures")
    setting = Setting(**{**settings, "levels": tuple(settings["levels"])})
    return Probed(
        found["model"], setting, [Drift(**row) for row in found["levels"]], number, pictures
    )


def test_the_readmes_probe_is_the_committed_run():
    found = result("drift")["drift"]["default"]
    probed = read_back(found)
    lines = [*plain_table(table(probed)).splitlines(), sentence(probed)]
    assert sentence(probed) == found["advice"][0]
    assert "\n".join(lines) in PAGES["README"].read_text(encoding="utf-8")


def test_the_drift_of_the_probes_page():
    text, found = page("probe"), result("drift")["drift"]
    for each in found.values():
        setting, levels = each["settings"], each["levels"]
        way = f"{setting['num_steps']} steps, guidance {setting['cfg_scale']:g}"
        cells = (f"{row['drift']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in levels)
        assert f"| {way} | " + " | ".join(cells) + " |" in text
        assert f"{setting['number']} held-out pictures; drift where" in text
        assert each["processor_seconds"] < 60  # "in under a minute"
    few = next(row for row in found["four steps"]["levels"] if row["sigma"] == 0.9)
    assert (
        f"at sigma 0.9, half of it reads {few['less_guidance']:.2f} in place of {few['drift']:.2f}"
        in text
    )
    lost = f"{100 * (few['drift'] - 1):.0f} % at sigma 0.9"
    assert f"one step of 1/4 at guidance 4.5 loses {lost}" in page("when-it-helps")


def test_the_hybrids_of_the_probes_page():
    text, found = page("probe"), result("drift")
    assert f"The graded score of {found['captions']} captions" in text
    for way, rows in found["hybrid"].items():
        (num_steps, cfg_scale) = HYBRIDS[way]
        cells = " | ".join(f"{row['score']:.3f}" for row in rows)
        assert f"| {num_steps} steps, guidance {cfg_scale:g} | {cells} |" in text
        heads = " | ".join(f"{row['sigma']:.2f}" for row in rows)
        assert f"| {heads} |" in text


def test_both_hosts_read_the_same():
    found, text = result("probe_in_host"), page("probe")
    ours, theirs = found["engine"], found["ai_toolkit"]
    for host, rows in (("AI Toolkit", theirs), ("soarflow", ours)):
        cells = (f"{row['drift']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in rows)
        assert f"| {host} | " + " | ".join(cells) + " |" in text
    setting = found["setting"]
    assert f"In both hosts, {setting['number']} of those pictures" in text
    assert f"{setting['num_steps']} steps at guidance {setting['cfg_scale']:g}: every" in text
    for one, other in zip(ours, theirs, strict=True):
        assert one["sigma"] == other["sigma"]
        assert one["low"] < other["high"] and other["low"] < one["high"]


def test_what_probes_cost():
    soar, plain = result("drift")["cost"]
    host = result("probe_in_host")["cost"]
    assert (soar["type"], soar["batch_size"], host["batch_size"]) == ("SOARTrainer", 8, 8)
    assert soar["share_percent"] < 2 and host["share_percent"] < 2
    text = page("probe")
    assert f"{soar['share_percent']:.1f} % of the training's time in soarflow, " in text
    assert f"{host['share_percent']:.1f} % in AI Toolkit" in text
    assert f"are shorter, {plain['share_percent']:.1f} %." in text


def test_little_is_what_the_advice_takes_for_little():
    assert f"Up to {100 * LITTLE:.0f} % of loss it says that there is little" in page("probe")
    assert f"the same {IN_TRAINING} pictures" in page("probe")
