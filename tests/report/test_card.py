"""The verdict card says what the records say, in both languages, and gives commands that work."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest
import typer

from workbench.cli import app
from workbench.measure.statistics import FEWEST_DOCUMENTS
from workbench.pilot.resolve import resolve
from workbench.records.run import Run
from workbench.report.card import FIRST, card_html, card_lines, verdict_card
from workbench.report.gates import evaluate, gates_frame
from workbench.report.next_steps import MOST
from workbench.roadmap import STAGES
from workbench.wording.numbers import number
from workbench.wording.text import Texts

ENERGY = "\n    - {metric: energy_j_per_token, labels: {arm: ternary}, at_most: 1.0}"
GAP = "\n    - {metric: quality_gap_bits_per_byte, labels: {arm: ternary}, %s}"


def test_the_card_says_what_the_record_says(shared_run) -> None:
    report, card = shared_run.record("report"), verdict_card(shared_run, Texts())
    gates = report.table("gates")
    assert card.state == report.facts["verdict"]["decision"]
    shown = [light.outcome for light in card.lights]
    assert sorted(shown) == sorted(gates["outcome"])
    probe = shared_run.record("readiness")
    for name in ("memory_ratio", "decode_speedup"):
        value = probe.metric(name, arm="ternary", source="probe").value
        assert number(value) in card.sentence
    assert 1 <= len(card.steps) <= MOST
    noise = shared_run.record("measure_ab").facts.get("noise")
    assert noise is not None or card.noise.level == "unknown" or "blocks" in card.noise.text


@pytest.mark.parametrize("language", ["en", "ru"])
def test_no_two_lights_read_alike(make_run, language) -> None:
    """The load's cut share is known from measurement and deployment: each light says which."""
    run = make_run(gates="\n    - {metric: cut_share, at_most: 0.05}", stages=[*STAGES][:-1])
    for stage, labels in (("measure_ab", {"source": "load"}), ("deploy_rollback", {})):
        record = run.record(stage)
        record.measured("cut_share", 0.0, "", "counted", n=100, **labels)
        record.save()
    lights = verdict_card(run, Texts(language)).lights
    assert len(lights) == 2
    assert len({(light.title, light.of) for light in lights}) == 2
    assert all(light.of for light in lights)


@pytest.mark.parametrize(
    ("gates", "state", "outcome", "word"),
    [
        (GAP % "at_most: 5.0", "go", "pass", "Go: "),
        (GAP % "at_most: -5.0", "no go", "fail", "No go: "),
        (ENERGY, "inconclusive", "not measured", "Not yet: "),
        (" []", "inconclusive", None, "declares no gates"),
    ],
)
def test_each_state_has_its_sentence(make_run, gates, state, outcome, word) -> None:
    card = verdict_card(make_run(gates=gates), Texts())
    assert card.state == state and word in card.sentence
    assert {light.outcome for light in card.lights} == ({outcome} if outcome else set())
    assert "{" not in card.sentence and "None" not in card.sentence


def test_without_an_interval_nothing_is_said_to_cross(make_run) -> None:
    """A figure seen too few times neither gains nor crosses: the card says so."""
    run = make_run(gates="\n    - {metric: decode_speedup, labels: {source: probe}, at_least: 1.5}")
    judge_without_interval(run, "readiness", "decode_speedup")
    sentence = verdict_card(run, Texts()).sentence
    assert sentence.startswith("Not yet: ") and "too few times" in sentence
    assert "crosses" not in sentence and "beyond chance" not in sentence


def test_more_documents_are_enough_documents(make_run) -> None:
    """Four times eight would still give no interval: the same step would be advised again."""
    run = make_run(gates=GAP % "at_most: 0.1")
    judge_without_interval(run, "measure_ab", "quality_gap_bits_per_byte")
    pilot = run.folder / "pilot.yaml"
    pilot.write_text(re.sub(r"quality_documents: \d+", "quality_documents: 8", pilot.read_text()))
    commands = [step.command for step in verdict_card(run, Texts()).steps]
    assert any(f"measure_ab.quality_documents={FEWEST_DOCUMENTS}" in each for each in commands)


def test_too_few_documents_held_out_are_no_matter_of_judging_more_of_them(make_run) -> None:
    """With 3 of them judging 64 is not possible: the corpus has to give more."""
    run = make_run(gates=GAP % "at_most: 0.1")
    judge_without_interval(run, "measure_ab", "quality_gap_bits_per_byte")
    trained = run.record("train_qat")
    for held, field in ((30, "data.holdout_share="), (3, "data.max_bytes=")):
        trained.facts["corpus"] = {"heldout_documents": held}
        trained.save()
        (step,) = (s for s in verdict_card(run, Texts()).steps if "quality_documents" in s.command)
        assert f"this run holds out {held}" in step.text and f"--set {field}" in step.command


def test_a_busy_machine_is_quieted_before_anything_is_measured_longer(make_run) -> None:
    run = make_run(gates=GAP % "at_most: 0.1")
    judge_without_interval(run, "measure_ab", "quality_gap_bits_per_byte")
    steps = [step.command for step in verdict_card(run, Texts()).steps]
    assert not steps[0].endswith("--force"), "a quiet run is measured longer at once"
    record = run.record("measure_ab")
    record.facts["noise"] = {"blocks": 6, "disturbed": 6, "others_share": 0.5}
    record.save()
    steps = [step.command for step in verdict_card(run, Texts()).steps]
    assert steps[0].endswith("--force") and "quality_documents" in steps[1]


def test_more_of_a_training_that_does_not_get_there_is_not_advised(make_run) -> None:
    run = make_run(gates=GAP % "at_most: -5.0")
    report = run.record("report")
    assert report.facts["forecast"]["outcome"] == "never"
    steps = [step.command for step in verdict_card(run, Texts()).steps]
    assert steps[0] == "workbench study recipe" and not any("train.steps" in s for s in steps)
    pilot = run.folder / "pilot.yaml"
    pilot.write_text(pilot.read_text().replace("checkpoint: null", "checkpoint: our model"))
    steps = [step.command for step in verdict_card(run, Texts()).steps]
    assert steps[0] == "workbench study checkpoint --set 'model.checkpoint=our model'"
    report.facts["forecast"]["outcome"] = "unknown"
    report.save()
    assert "train.steps=" in verdict_card(run, Texts()).steps[0].command


def test_no_training_is_advised_to_a_model_that_came_ready(make_run) -> None:
    run = make_run(gates=GAP % "at_most: -5.0")
    trained = run.record("train_qat")
    trained.facts["ready_ternary"] = {"path": "student.gguf", "format": "GGUF"}
    trained.save()
    steps = verdict_card(run, Texts()).steps
    assert steps[0].command.endswith("--set model.ternary=null")
    assert "a ready one learns nothing here" in steps[0].text
    assert not any("train." in step.command for step in steps)


def judge_without_interval(run: Run, stage: str, figure: str) -> None:
    """As if a figure of a stage had been seen once."""
    record, report = run.record(stage), run.record("report")
    seen_once = {"lo": None, "hi": None, "reason": "seen once"}
    record.metrics = [replace(m, **seen_once) if m.name == figure else m for m in record.metrics]
    record.save()
    gates = evaluate(run.resolved().pilot.report.gates, run.records())
    report.save_table("gates", gates_frame(gates))
    report.facts["verdict"]["decision"] = "inconclusive"
    report.save()


def test_an_unfinished_run_is_not_undecided(make_run) -> None:
    run = make_run(stages=("readiness", "profile_load"))
    card = verdict_card(run, Texts())
    assert card.state == "unfinished" and "2 of 7 stages" in card.sentence
    shown = [light.outcome for light in card.lights]
    assert {*shown} >= {"pass", "not measured"}
    assert shown == sorted(shown, key=FIRST.index), "what the decision hangs on comes first"
    assert card.steps[0].command.startswith("workbench run ")


@pytest.mark.parametrize("gates", [GAP % "at_most: 5.0", GAP % "at_most: -5.0", ENERGY])
@pytest.mark.parametrize("stages", [(), ("readiness",)])
def test_every_command_can_be_typed(make_run, tmp_path, gates, stages) -> None:
    """Known to the command line, and where it changes the pilot, the pilot takes the change."""
    known = typer.main.get_command(app).commands
    for name in ("YOUR_TRACE.csv", "POWER_LOG.csv"):
        (tmp_path / name).write_text("timestamp,watts\n")
    run = make_run(gates=gates, stages=stages)
    for step in verdict_card(run, Texts()).steps:
        program, command, *rest = shlex.split(step.command)
        assert program == "workbench" and command in known
        sets = [rest[place + 1] for place, word in enumerate(rest) if word == "--set"]
        sets = [re.sub(r"=([A-Z_]+\.csv)$", rf"={tmp_path}/\1", text) for text in sets]
        assert resolve(run.folder / "pilot.yaml", sets).pilot.name == run.folder.parent.name


@pytest.mark.parametrize("language", ["en", "ru"])
def test_lines_and_html_say_the_same(shared_run, language) -> None:
    texts = Texts(language)
    card = verdict_card(shared_run, texts)
    lines, html = "\n".join(card_lines(card, texts)), card_html(card, texts)
    for step in card.steps:
        assert step.command in lines and step.command in html
    assert card.sentence in lines and card.noise.text in lines
    assert html.count('class="wb-light ') == len(card.lights) > 0
    if language == "ru":
        assert not re.search(r"\b(gate|passes|measured|next|the)\b", lines.lower())
    for hostile in ("<script", "onerror"):
        assert hostile not in html


def test_arms_that_learned_unlike_are_said_on_the_card(make_run) -> None:
    run = make_run()
    assert verdict_card(run, Texts()).caveats == []
    record = run.record("report")
    record.facts["verdict"]["caveats"].append({"code": "caveat.taught", "values": {}})
    record.save()
    card = verdict_card(run, Texts())
    assert len(card.caveats) == 1 and "from the text alone" in card.caveats[0]
    assert card.caveats[0] in card_html(card, Texts()).replace("&#39;", "'")
    assert card.caveats[0] in card_lines(card, Texts())
