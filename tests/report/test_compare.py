"""Runs side by side: what differs, and what the difference is put down to."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from workbench.errors import ConfigError
from workbench.figures import compare as figures
from workbench.figures.theme import FigureTexts
from workbench.files import read_json, write_json
from workbench.report.compare import UNFINISHED, compare, compare_runs, compare_text


def row(found, metric: str, **labels: str):
    chosen = found.figures[found.figures["metric"] == metric]
    for name, value in labels.items():
        chosen = chosen[chosen["labels"].str.contains(f"{name}={value}")]
    return chosen.iloc[0]


def change_environment(run, **fields) -> None:
    path = run.folder / "environment.json"
    write_json(path, {**read_json(path), **fields})


def test_a_run_beside_a_copy_of_itself_is_the_same(make_run) -> None:
    run, other = make_run(), make_run(seed=99)
    found = compare([run, other])
    assert found.settings["setting"].tolist() == ["seed"]
    assert not found.surroundings["differs"].any()
    same = row(found, "memory_ratio", source="probe")
    assert (same["state"], same["ratio"], same["because"]) == ("same", 1.0, "")
    near = row(found, "decode_speedup")
    assert near["state"] == "within intervals"
    assert near[run.name] != near[other.name]


def test_a_difference_is_put_down_to_what_differs(make_run) -> None:
    run, other = make_run(), make_run(sequences=9)
    found = compare([run, other])
    assert found.settings["setting"].tolist() == ["hybrid_plan.sequences"]
    record = other.record("readiness")
    record.metrics = [m for m in record.metrics if m.name != "memory_available_gb"]
    record.measured("memory_available_gb", 99.0, "GB", "operating system")
    record.save()
    assert row(compare([run, other]), "memory_available_gb")["because"] == "repetition"
    change_environment(other, machine_digest="another")
    found = compare([run, other])
    free = row(found, "memory_available_gb")
    assert (free["state"], free["because"]) == ("no interval", "machine, repetition")
    assert free["ratio"] == pytest.approx(99.0 / 6.2)
    assert found.surroundings.set_index("what").loc["machine", "differs"]


def test_changed_settings_reach_the_stages_that_depend_on_them(make_run) -> None:
    run, other = make_run(), make_run(sequences=9, energy=True)
    found = compare([run, other])
    assert found.settings["setting"].tolist() == ["hybrid_plan.sequences"]
    energy = row(found, "energy_j_per_token", arm="ternary")
    assert energy["state"] == "only in some"
    gates = row(found, "gates_failed")
    assert gates["state"] == "same"


def test_the_text_shows_runs_settings_and_figures(make_run) -> None:
    run, other = make_run(), make_run(seed=99)
    text = compare_text([run, other])
    assert f"A = {run.name}" in text and f"B = {other.name}" in text
    assert "seed     1234  99" in text
    assert "machine and software: the same" in text
    assert "within intervals  configuration" not in text, "there is nothing to explain"
    assert "runs only" not in text
    unfinished = make_run(seed=3, stages=("readiness",))
    text = compare_text([run, unfinished])
    assert "figures are in some of the runs only" in text
    assert f"A = {run.name}\n" in text
    assert f"B = {unfinished.name}: UNFINISHED, without profile_load, train_qat" in text


def test_unfinished_runs_can_be_compared(make_run) -> None:
    found = compare([make_run(), make_run(seed=3, stages=("readiness",))])
    alone = found.figures[found.figures["stage"] == "measure_ab"]
    assert set(alone["state"]) == {"only in some", "not measured"}
    assert set(alone.loc[alone["state"] == "only in some", "because"]) == {"unfinished"}
    assert found.settings["setting"].tolist() == ["seed", UNFINISHED]
    assert found.settings.iloc[-1][found.runs[0]] == ""
    assert found.settings.iloc[-1][found.runs[1]].endswith("deploy_rollback, report")


def test_names_are_resolved_and_two_are_needed(make_run) -> None:
    run, other = make_run(), make_run(seed=5)
    assert compare_runs([run.name, other.name]).runs == (run.name, other.name)
    assert set(compare_runs().runs) == {run.name, other.name}
    for twice in ([run], [run, run], [run, other, run]):
        with pytest.raises(ConfigError, match="two or more runs, each once"):
            compare_runs([each.name for each in twice])


@pytest.mark.parametrize("draw", figures.FIGURES, ids=lambda f: f.__name__)
def test_comparisons_are_drawn(make_run, draw) -> None:
    runs = [make_run(), make_run(seed=2), make_run(seed=3)]
    assert len(draw(compare(runs)).data) > 0
    unfinished = compare([runs[0], make_run(seed=4, stages=("hybrid_plan",))])
    assert draw(unfinished).layout.title.text


def test_a_file_that_was_changed_is_a_difference_and_no_repetition(make_run) -> None:
    run, other = make_run(), make_run(sequences=9)
    one, two = (
        replace(each, header=each.header | {"files": {"data.corpus": digest}})
        for each, digest in ((run, "aa"), (other, "bb"))
    )
    found = compare([one, two])
    assert found.settings["setting"].tolist() == [
        "hybrid_plan.sequences",
        "data.corpus (content)",
    ]
    record = other.record("train_qat")
    record.metrics = [m for m in record.metrics if m.name != "share_zero"]
    record.measured("share_zero", 0.99, "share", "counted")
    record.save()
    assert row(compare([one, two]), "share_zero")["because"] == "configuration"


def test_a_run_between_decides_nothing_about_the_last_against_the_first(make_run) -> None:
    runs = [make_run(), make_run(seed=2), make_run(seed=3)]
    for run, tokens in zip(runs, (10.0, 99.0, 10.0), strict=True):
        record = run.record("train_qat")
        record.measured("training_time_s", tokens, "s", "clock", arm="third")
        record.save()
    found = compare(runs)
    assert row(found, "training_time_s", arm="third")["state"] == "no interval"
    third = found.figures[found.figures["labels"] == "arm=third"]
    (drawn,) = figures.ratios(replace(found, figures=third)).data
    assert drawn.name == FigureTexts("en")("compare.same")


def with_software(run, **software) -> None:
    for record in run.records().values():
        record.software = software
        record.save()


def test_code_that_no_commit_tells_may_be_what_differs(make_run) -> None:
    run, other = make_run(), make_run(sequences=9)
    record = other.record("readiness")
    record.metrics = [m for m in record.metrics if m.name != "memory_available_gb"]
    record.measured("memory_available_gb", 99.0, "GB", "operating system")
    record.save()

    def reason(*states: dict) -> str:
        for one, git in zip((run, other), states, strict=True):
            with_software(one, git=git, python="3.12", workbench="1", packages={"torch": "2"})
        return row(compare([run, other]), "memory_available_gb")["because"]

    clean, changed = {"commit": "a" * 40, "dirty": False}, {"commit": "a" * 40, "dirty": True}
    assert reason(clean, clean) == "repetition"
    assert reason(clean, changed) == "software, repetition"
    assert reason(changed, changed) == reason({"commit": None}, {"commit": None})
    assert reason(changed, changed) == "perhaps software, repetition"


def test_figures_below_zero_have_no_ratio_and_unmeasured_ones_are_nowhere(make_run) -> None:
    run, other = make_run(), make_run(seed=99)
    for one, gap in ((run, -0.1), (other, -0.2)):
        record = one.record("measure_ab")
        record.measured("quality_gap_bits_per_byte", gap, "bits/byte", "drawn", arm="third")
        record.missing("energy_j_per_token", "J", "no meter", arm="third")
        record.save()
    found = compare([run, other])
    gap = row(found, "quality_gap_bits_per_byte", arm="third")
    assert gap["state"] == "no interval" and pd.isna(gap["ratio"])
    assert row(found, "energy_j_per_token", arm="third")["state"] == "not measured"
    assert "in some of the runs" not in compare_text([run, other])


def test_a_bandwidth_that_moved_is_not_put_down_to_the_training_s_settings(make_run) -> None:
    run, other = make_run(), make_run(seed=99)
    for one, gbps, loss in ((run, 10.0, 1.5), (other, 16.0, 1.7)):
        record = one.record("readiness")
        record.metrics = [m for m in record.metrics if m.labels.get("threads") != "2"]
        span = {"lo": gbps - 1, "hi": gbps + 1}
        record.measured("read_bandwidth_gbps", gbps, "GB/s", "median", n=9, threads="2", **span)
        record.save()
        trained = one.record("train_qat")
        span = {"lo": loss - 0.01, "hi": loss + 0.01}
        trained.measured("final_bits_per_byte", loss, "bits/byte", "made up", arm="third", **span)
        trained.measured("training_time_s", 60 * loss, "s", "made up", arm="third")
        trained.save()
    found = compare([run, other])
    bandwidth = row(found, "read_bandwidth_gbps", threads="2")
    assert (bandwidth["state"], bandwidth["because"]) == ("differs", "repetition")
    quality = row(found, "final_bits_per_byte", arm="third")
    assert (quality["state"], quality["because"]) == ("differs", "configuration")
    assert row(found, "training_time_s", arm="third")["because"] == "configuration, repetition"
