"""The forecast: from a run's curve to the sentence a team pays for, and what it does not know."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.errors import ConfigError
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.report import Report
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.forecast import (
    forecast,
    forecast_facts,
    forecast_frame,
    forecast_lines,
    forecast_metrics,
)
from workbench.report.forecast_curve import gap_curve
from workbench.wording.numbers import rounded
from workbench.wording.text import Texts

GATE = {"metric": "quality_gap_bits_per_byte", "labels": {"arm": "ternary"}, "at_most": 0.1}


def losses(gap_of, steps: int = 200, epoch: float = 0.5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of a training whose gap is ``gap_of(tokens)`` nats a token, half of them bits a byte;
    the threshold is fully on after a quarter of the steps."""
    step = np.arange(1, steps + 1)
    noise = np.random.default_rng(0).normal(0, 0.004, steps)
    frame = pd.DataFrame({"step": step, "tokens": step * 3000, "lr": 1e-3})
    frame["strength"] = np.where(step > steps // 4, 1.0, 0.0)
    arms = [
        frame.assign(arm="full_precision", loss=3.0),
        frame.assign(arm="ternary", loss=3.0 + gap_of(frame["tokens"]) + noise),
    ]
    every = [
        {"arm": arm, "weights": weights, "step": s, "epoch": epoch * s / steps, "loss": 3.0,
         "bits_per_byte": 1.5 + (gap_of(3000.0 * s) / 2 if arm == "ternary" else 0.0)}
        for arm, weights in (("full_precision", "master"), ("ternary", "ternary"))
        for s in range(20, steps + 1, 20)
    ]  # fmt: skip
    return pd.concat(arms, ignore_index=True), pd.DataFrame(every)


def records(folder: Path, gap_of, gap: float = 0.2, **more) -> dict[str, StageRecord]:
    trained, measured = (StageRecord(name, folder / name) for name in ("train_qat", "measure_ab"))
    for record in (trained, measured):
        record.folder.mkdir(parents=True, exist_ok=True)
    loss, evaluations = losses(gap_of, **more)
    trained.save_table("loss", loss)
    trained.save_table("evaluations", evaluations)
    trained.measured("training_tokens", 600_000, "tokens", "", basis="exact")
    trained.measured("training_tokens_per_s", 1000.0, "tokens/s", "", n=1, arm="ternary")
    labels = {"arm": "ternary", "source": "trained"}
    measured.add(Metric("quality_gap_bits_per_byte", gap, "bits/byte", "", n=99, lo=gap - 0.01,
                        hi=gap + 0.01, labels=labels))  # fmt: skip
    return {"train_qat": trained, "measure_ab": measured}


def settings(**of) -> Report:
    return Report.model_validate({"gates": [GATE], "forecast": of})


def falling(tokens):
    """In bits a byte 0.03 that stays, and 0.17 at the end that falls by the root of the tokens."""
    return 2 * (0.03 + 0.17 * (np.asarray(tokens) / 6e5) ** -0.5)


def judged(folder: Path, found, metrics: list[Metric], of: Report, decision: str) -> StageRecord:
    facts = {"forecast": forecast_facts(found, metrics, of), "verdict": {"decision": decision}}
    return StageRecord("report", folder, facts=facts)


def test_the_sentence_a_team_pays_for(tmp_path: Path) -> None:
    made = records(tmp_path, falling)
    of = settings(hardware="H100", tokens_per_s=5000, power_w=700, price_per_hour=2.5)
    found = forecast(made, of)
    assert found is not None and found.outcome in ("reaches", "open") and found.tokens
    # the interval's upper end has to come down by 0.11: 0.17 x^-0.5 = 0.06, 8.03 times the tokens
    lo, middle, hi = found.tokens
    assert lo < 8.03 * 6e5 < hi and 2.5e6 < middle < 1e7
    figures = {m.name: m for m in forecast_metrics(found, made, of)}
    assert all(figures[name].kind == "modelled" for name in figures)
    hours = figures["forecast_hours"].value
    assert hours == pytest.approx(middle / 5000 / 3600)
    assert figures["forecast_kwh"].value == pytest.approx(0.7 * hours)
    assert figures["forecast_cost"].value == pytest.approx(2.5 * hours)
    record = judged(tmp_path, found, list(figures.values()), of, "no go")
    said = forecast_lines(record, Texts())
    assert said[0].startswith(f"No go at 0.6M learned tokens; {rounded(middle)} of them (95 %: ")
    assert "of your H100" in said[0] and "EUR" in said[0] and said[0].endswith("bring it there.")
    russian = forecast_lines(record, Texts("ru"))[0]
    assert russian.startswith("Нет (токенов в обучении: 0,6\u202fмлн); хватило бы")
    parts = set(forecast_frame(found)["part"])
    assert parts == {"curve", "fit", "back_test", "ahead", "target"}


def test_it_may_not_get_there(tmp_path: Path) -> None:
    made = records(tmp_path, lambda tokens: 0.4 + 0.0 * np.asarray(tokens))
    found = forecast(made, settings())
    assert found is not None and found.outcome == "never" and found.reaches < 0.1
    figures = forecast_metrics(found, made, settings())
    assert [m.value for m in figures[:4]] == [None] * 4
    assert re.search(r"does not get there: in (9\d|100)% of", figures[0].reason or "")
    record = judged(tmp_path, found, figures, settings(), "inconclusive")
    said = forecast_lines(record, Texts())[0]
    assert re.search(r"does not bring it there: (9\d|100) % of", said)


def test_a_curve_that_cannot_test_itself_is_no_ground_for_never(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("workbench.report.forecast.back_test", lambda curve, seed: None)
    made = records(tmp_path, lambda tokens: 0.4 + 0.0 * np.asarray(tokens))
    found = forecast(made, settings())
    assert found is not None and found.outcome == "unknown"
    figures = forecast_metrics(found, made, settings())
    assert all(m.value is None and "too short" in (m.reason or "") for m in figures)
    assert forecast_lines(judged(tmp_path, found, figures, settings(), "no go"), Texts()) == []


def test_a_law_that_fails_on_the_run_itself_is_no_ground_either(tmp_path: Path) -> None:
    """The gap falls in the second half of the run alone, as no power law of the first one does."""
    made = records(tmp_path, lambda tokens: 0.4 - 0.3 * (np.asarray(tokens) > 375_000))
    found = forecast(made, settings())
    assert found is not None and found.back_test is not None and found.outcome == "unknown"
    assert found.back_test.inside < found.back_test.points / 2
    *figures, covered = forecast_metrics(found, made, settings())
    assert all(m.value is None and "fails on this run itself" in (m.reason or "") for m in figures)
    assert covered.value is not None and covered.value < 0.5
    record = judged(tmp_path, found, [*figures, covered], settings(), "no go")
    assert forecast_lines(record, Texts()) == []


def test_a_gate_that_holds_needs_no_forecast(tmp_path: Path) -> None:
    made = records(tmp_path, falling, gap=0.05)
    found = forecast(made, settings())
    assert found is not None and found.outcome == "holds" and found.back_test is not None
    figures = {m.name: m for m in forecast_metrics(found, made, settings())}
    assert figures["forecast_tokens"].value is None and figures["forecast_covered"].value
    assert (
        forecast_lines(judged(tmp_path, found, [*figures.values()], settings(), "go"), Texts())
        == []
    )


def test_without_power_and_price_there_is_no_energy_but_the_tokens(tmp_path: Path) -> None:
    made = records(tmp_path, falling)
    found = forecast(made, settings())
    figures = {m.name: m for m in forecast_metrics(found, made, settings())}
    assert figures["forecast_hours"].value == pytest.approx(found.tokens[1] / 1000 / 3600)
    assert "declare report.forecast.power_w" in figures["forecast_kwh"].reason
    assert "declare report.forecast.power_w" in figures["forecast_cost"].reason


def test_the_run_tests_the_law_on_itself(tmp_path: Path) -> None:
    found = forecast(records(tmp_path, falling), settings())
    assert found.back_test.points == 12 and found.back_test.inside >= 10
    said = forecast_lines(
        judged(tmp_path, found, forecast_metrics(found, records(tmp_path, falling), settings()),
               settings(), "no go"), Texts(),
    )  # fmt: skip
    assert f"second half {found.back_test.inside} lie" in said[-1]


def test_text_seen_twice_leaves_the_evaluations_alone() -> None:
    made = gap_curve(*losses(falling, epoch=2.0))
    assert not isinstance(made, str) and "held-out evaluations" in made[1]
    assert len(made[0]) == 8, "those with the threshold fully on"
    assert made[0].gap[-1] == pytest.approx(0.2)
    few = gap_curve(*losses(falling, steps=100, epoch=2.0))
    assert isinstance(few, str) and "raise train.evaluations" in few


def test_hardware_elsewhere_needs_its_speed(tmp_path: Path) -> None:
    pilot = tmp_path / "pilot.yaml"
    pilot.write_text("name: x\nquestion: y\nreport: {forecast: {hardware: H100}}\n")
    with pytest.raises(ConfigError, match="tokens_per_s"):
        resolve(pilot)


@pytest.mark.parametrize(
    ("value", "english", "russian"),
    [
        (614_400, "0.61M", "0,61\u202fмлн"), (3e8, "300M", "300\u202fмлн"), (42, "42", "42"),
        (1.13e9, "1.1B", "1,1\u202fмлрд"), (52_300, "52k", "52\u202fтыс."), (0, "0", "0"),
        (0.034, "0.034", "0,034"),
    ],
)  # fmt: skip
def test_large_figures_are_told_short(value: float, english: str, russian: str) -> None:
    assert (rounded(value), rounded(value, "ru")) == (english, russian)
