"""This run's figures and prices as a case; the promise taken apart; the three "41 times"."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from workbench.economics.case import evaluate
from workbench.economics.what_if import what_if
from workbench.errors import ConfigError, StageError
from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.report.cost import cost_rows
from workbench.report.economy import building, case_from_json, case_of, case_to_json
from workbench.report.economy_rows import how_of
from workbench.report.economy_views import _turn_cell, economy_view
from workbench.report.goals import decode_speedup_needed, goal_rows
from workbench.report.operations import count_token, operation_ratios
from workbench.stages import report
from workbench.stages.context import StageContext
from workbench.wording.text import Texts

SLO = Slo(ttft_ms=2000.0, tpot_ms=100.0)
PREFILL = {"full_precision": 0.5, "ternary": 0.45}
DECODE = {("full_precision", 8): 4.0, ("ternary", 8): 2.5}
"""Of 1,000 prompt and 100 output tokens: 0.5 + 0.4 = 0.90 s and 0.45 + 0.25 = 0.70 s a request."""
EIGHT = {
    "accelerators": 8, "sample": False, "requests_per_day": 172_800.0,
    "fleet": {"per_server": 8},
    "items": [{"name": "gpu", "what": "accelerator", "per": "accelerator", "price": 20_000.0}],
    "one_off": [{"name": "training", "price": 5_000.0, "hours": 100.0, "per_hour": 20.0}],
    "goal": {"fewer_accelerators": 0.3, "latency_ratio": 2.4},
}  # fmt: skip


def metered(records, idle_w: float | None = None, basis: str = "node") -> None:
    rows = [
        {
            "block": block, "arm": arm, "class": "batch_8", "basis": basis, "kind": "measured",
            "start_s": 0.0, "end_s": 10.0, "energy_j": 10 * watts, "idle_w": idle_w,
        }
        for block in range(8)
        for arm, watts in (("full_precision", 1000.0), ("ternary", 800.0))
    ]  # fmt: skip
    records["measure_ab"].save_table("energies", pd.DataFrame(rows).astype({"idle_w": float}))
    records["measure_ab"].facts["energy_basis"] = {"batch_8": basis}


def made(records, **cost):
    case, *_ = case_of(records, Cost.model_validate(cost), SLO)
    return case


def test_a_case_is_of_the_load_s_own_requests_and_metered_power(tmp_path, timed_load) -> None:
    """8 x 0.70 / 0.90 = 6.2, whole 7; prefill is 0.5 / 0.9 of full precision's time. Idle at 400 W
    of 1,000 W and of 800 W."""
    records = timed_load(tmp_path, PREFILL, DECODE)
    metered(records, 400.0)
    case = made(records, **EIGHT)
    result = what_if(case, draws=100)
    fluid = result.figure("ternary", "accelerators_fluid")
    assert fluid.value == pytest.approx(8 * 0.70 / 0.90)
    assert result.figure("ternary", "accelerators").value == 7
    assert result.figure("ternary", "servers_freed").value == 0, "eight in one chassis"
    assert case.arms[0].prefill_share == pytest.approx(5 / 9)
    assert case.numbers["idle_share.ternary"].value == pytest.approx(0.5)
    assert case.numbers["idle_share.ternary"].kind == "measured"
    assert (case.numbers["once.training"].value, case.numbers["hours.training"].value) == (5e3, 100)
    # Without the fleet's rules all of it is measured but the requests a day.
    assert "metered, node" in case.numbers["power_w.ternary"].source


def test_the_case_goes_through_the_record_unchanged(tmp_path, timed_load) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    metered(records)
    case = made(records, **EIGHT)
    again = case_from_json(json.loads(json.dumps(case_to_json(case))))
    assert again == case
    with pytest.raises(StageError, match="of another version"):
        case_from_json({"arms": 3})


def test_power_is_of_all_arms_alike_or_there_is_no_cost(tmp_path, timed_load) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    case = made(records, **EIGHT)
    assert "assumed_power_w" in case.no_power and "accelerators" in {
        figure.name for figure in what_if(case, draws=10).figures
    }
    assumed = made(records, **EIGHT, assumed_power_w=700.0)
    assert assumed.numbers["power_w"].kind == "assumed"
    metered(records, basis="gpu")
    boards = made(records, **EIGHT, board_share=0.5)
    assert boards.numbers["power_w.ternary"].value == pytest.approx(1600)
    assert boards.numbers["power_w.ternary"].kind == "assumed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("measure_ab"), "no arms were measured"),
        (lambda r: r.pop("profile_load"), "no load profile"),
        (lambda r: r["measure_ab"].facts.update(device="cpu"), "says nothing of accelerators"),
    ],
)
def test_without_what_it_needs_there_is_no_case_but_a_reason(
    tmp_path, timed_load, change, said
) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    change(records)
    assert said in case_of(records, Cost.model_validate(EIGHT), SLO)


def test_a_first_token_that_comes_too_late_rules_a_batch_out(tmp_path, timed_load) -> None:
    """A prompt of 1,000 tokens takes 0.5 s alone."""
    records = timed_load(tmp_path, PREFILL, DECODE)
    assert "keeps the SLO" in case_of(records, Cost(), Slo(ttft_ms=400.0))


def test_a_known_tariff_and_a_measured_pue_make_a_cost_derived(tmp_path, timed_load) -> None:
    """31 days at a PUE of 1.5 are interim, and modelled; a year's are measured."""
    records = timed_load(tmp_path, PREFILL, DECODE)
    metered(records, 400.0)
    for arm in ("full_precision", "ternary"):
        labels = {"arm": arm, "class": "batch_8", "source": "trained"}
        records["measure_ab"].measured("energy_j_per_request", 1.0, "J", "gross", **labels)
    kinds = {}
    for days in (31, 365):
        time = pd.date_range("2025-01-01", periods=24 * days, freq="h", tz="UTC")
        path = tmp_path / f"{days}.csv"
        pd.DataFrame({"time": time, "it": 100.0, "facility": 150.0}).to_csv(path, index=False)
        cost = Cost(sample=False, facility={"telemetry": str(path), "category": 3})
        (row,) = [r for r in cost_rows(records, cost, SLO) if r.per == "day" and "full" in r.labels]
        kinds[days] = row.kind
        house = building(cost)
        assert house.pue.value == pytest.approx(1.5)
        assert ("interim" in house.texts[0]) == (days == 31)
        assert "category 3" in house.texts[0] and "base and slope" in house.texts[2]
    assert kinds == {31: "modelled", 365: "derived"}


def test_bill_and_year_split_a_request_between_its_tokens_alike(tmp_path, timed_load) -> None:
    """At half a request a second the bill has batch 1, whose decoding is slower than that of batch
    8, where the year has it: a million tokens of either kind have the same part in both."""
    slower = {(arm, 1): 10.0 for arm in PREFILL}
    records = timed_load(tmp_path, PREFILL, DECODE | slower)
    for arm in PREFILL:
        of = {"arm": arm, "source": "trained", "class": "batch_8"}
        records["measure_ab"].missing("energy_j_per_request", "J", "not metered", **of)
    cost = {"assumed_power_w": 500.0, "requests_per_day": 43_200.0}
    rows = {
        row.per: row
        for row in cost_rows(records, Cost.model_validate(cost), SLO)
        if row.labels == "arm=full_precision"
    }
    assert "; batch 1, " in rows["day"].how
    year = evaluate(made(records, **cost))["full_precision"]
    for tokens in ("1m_input_tokens", "1m_output_tokens"):
        part = rows[f"load_{tokens}"].value / rows["load_1k_requests"].value
        assert part == pytest.approx(year[f"per_{tokens}"] / year["per_1k_requests"]), tokens
        assert "by machine time at batch 8" in rows[f"load_{tokens}"].how


def test_a_turned_saving_has_the_digits_of_the_tables_beside_it() -> None:
    """An interval of this width is shown to two decimals; in whole euros both ends were alike."""
    saved = {"saving_low": -905.673, "saving_high": -905.528}
    cell = _turn_cell(saved, (-905.673, -905.528), "EUR", Texts())
    assert (cell["low"], cell["high"]) == ("\N{MINUS SIGN}905.67", "\N{MINUS SIGN}905.53 EUR")
    cell = _turn_cell({"saving_low": 1203.4, "saving_high": 8765.4}, (0, 1), "EUR", Texts())
    assert (cell["low"], cell["high"]) == ("1,203", "8,765 EUR")


def test_a_slope_above_the_pue_cannot_be(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"above the PUE of 1\.2"):
        building(Cost(pue=1.2, facility={"slope": 1.3}))
    pilot = Pilot(
        name="bands", question="?",
        report={"cost": {"tariff": {"bands": [{"price_per_kwh": 0.1, "days": ["mon"]}]}}},
    )  # fmt: skip
    (problem,) = report.check(pilot)
    assert "no band covers tue 00:00-24:00" in problem


def test_what_a_promise_needs(tmp_path, timed_load) -> None:
    """30 % fewer: of 0.9 s 0.63 s are left; prefill takes 0.45 s of them, so decode must be
    0.4 / 0.18 = 2.22 times as fast, and is 1.6. 5.6 accelerators are 6 whole ones, and in a chassis
    of eight none of the servers go."""
    records = timed_load(tmp_path, PREFILL, DECODE)
    records["measure_ab"].measured(
        "e2e_speedup", 2.6, "x", "ratio", n=200, lo=2.5, hi=2.7, arm="ternary", source="load",
        quantile="p50",
    )  # fmt: skip
    cost = Cost.model_validate(EIGHT)
    case = made(records, **EIGHT)
    rows = {r.what: r for r in goal_rows(records, cost, SLO, case, what_if(case, draws=50))}
    time, decode = rows["machine_time"], rows["decode_speedup"]
    assert (time.needed, time.outcome) == (pytest.approx(0.7), "fails")
    assert time.got == pytest.approx(7 / 9)
    assert decode.needed == pytest.approx(0.4 / 0.18) and decode.got == pytest.approx(1.6)
    assert (rows["accelerators"].needed, rows["accelerators"].got) == (6, 7)
    assert (rows["servers"].needed, rows["servers"].outcome) == (1, "holds")
    assert "0 of them would go" in rows["servers"].how
    assert rows["latency_under_load"].outcome == "holds"
    assert rows["ttft_under_load"].outcome == "not measured"
    assert goal_rows(records, Cost(), SLO, case, what_if(case, draws=10)) == []
    # Too few blocks for an interval decide nothing, whole or not.
    bare = {name: replace(q, lo=None, hi=None) for name, q in case.numbers.items()}
    unsure = goal_rows(records, cost, SLO, case, what_if(replace(case, numbers=bare), draws=50))
    assert {r.outcome for r in unsure if r.what.startswith(("acc", "serv"))} == {"open"}
    assert decode_speedup_needed(0.3, 0.2, 1.0) is None


def test_the_stage_records_it_and_both_languages_say_it(tmp_path, timed_load) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    metered(records, 400.0)
    gates = [{"metric": "servers_needed", "labels": {"arm": "ternary"}, "at_most": 1}]
    slo = {"ttft_ms": 2000.0, "tpot_ms": 100.0}
    pilot = Pilot(
        name="fleet", question="?", report={"cost": EIGHT, "gates": gates},
        profile_load={"interactive_slo": slo},
    )  # fmt: skip
    assert report.check(pilot) == []
    record = StageRecord("report", tmp_path)
    progress = Progress(tmp_path / "events.jsonl", "report")
    report.run(StageContext(pilot, record, progress, records))
    assert {"economy", "economy_numbers", "tornado", "goals", "pue_months"} <= set(record.tables)
    assert record.metric("cost_per_1k_requests", arm="ternary").kind == "assumed"
    for language in ("en", "ru"):
        view = economy_view(record, Texts(language))
        cells = [cell for row in view["rows"] for cell in row["cells"] if cell]
        assert cells and all(cell["kind"] and cell["kind_name"] for cell in cells)
        assert len(view["goals"]) == 7 and "gpu" in " ".join(
            row["number"] for row in view["numbers"])  # fmt: skip
        assert view["turns"] and {len(row["cells"]) for row in view["turns"]} == {1}


def layer(out: int, inner: int, precision: str) -> dict:
    return {"out_features": out, "in_features": inner, "precision": precision}


def test_the_count_of_operations_by_hand(tmp_path) -> None:
    """One ternary 100 x 100 and a head of 10 x 100 in high precision; two heads of 50, one block,
    context 10: attention 2 x 2 x 50 x 10 = 2,000 products.
    Full: (10,000 + 1,000 + 2,000) x 0.5 = 6,500 pJ. Ternary: 10,000 x 0.007 + 100 x 0.34 = 104, and
    3,000 x 0.5: 1,604 pJ. Bytes: 2 x 11,000 and the cache 2 x 2 x 50 x 2 x 10 = 4,000: 26,000;
    10,000 / 4 + 2,000 + 4,000 = 8,500."""
    layers = {
        "model.layers.0.q": layer(100, 100, "ternary"),
        "lm_head": layer(10, 100, "high_precision"),
        "model.embed_tokens": layer(10, 100, "high_precision"),
    }
    config = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 100}
    counted = count_token(config, layers, 10)
    assert (counted.full_pj, counted.ternary_pj) == pytest.approx((6500, 1604))
    assert (counted.full_bytes, counted.ternary_bytes) == (26_000, 8_500)
    (tmp_path / "ternary").mkdir()
    (tmp_path / "ternary" / "config.json").write_text(json.dumps(config))
    (tmp_path / "ternary" / "ternary.json").write_text(json.dumps({"layers": layers}))
    record = StageRecord("train_qat", tmp_path, artefacts={"ternary": "ternary"})
    operations, moved = operation_ratios({"train_qat": record})
    assert (operations.kind, moved.kind) == ("theoretical", "modelled")
    (tmp_path / "ternary" / "ternary.json").unlink()
    assert "do not tell" in operation_ratios({"train_qat": record})[0].reason


def test_the_count_of_the_paper_s_own_shape_is_near_its_41_times() -> None:
    """70B: 80 blocks of 8,192 with 28,672 inside and a head of 32,000, at 512 tokens."""
    width, inner = 8192, 28_672
    block = {
        **{f"{n}_proj": layer(width, width, "ternary") for n in "qo"},
        **{f"{n}_proj": layer(1024, width, "ternary") for n in "kv"},
        "gate": layer(inner, width, "ternary"), "up": layer(inner, width, "ternary"),
        "down": layer(width, inner, "ternary"),
    }  # fmt: skip
    layers = {f"{b}.{name}": each for b in range(80) for name, each in block.items()}
    layers["lm_head"] = layer(32_000, width, "high_precision")
    config = {"num_hidden_layers": 80, "num_attention_heads": 64, "hidden_size": width,
              "num_key_value_heads": 8}  # fmt: skip
    counted = count_token(config, layers, 512)
    assert 35 < counted.full_pj / counted.ternary_pj < 45
    assert 7 < counted.full_bytes / counted.ternary_bytes < 8


def test_a_number_that_nobody_declared_is_called_the_default(tmp_path, timed_load) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    sources = {n: q.source for n, q in made(records, pue=1.2).numbers.items()}
    assert sources["pue"] == "declared in report.cost"
    for name in ("requests_per_day", "growth", "discount_rate"):
        assert sources[name] == f"the default of report.cost.{name}"
    assert sources["utilisation"] == "the default of report.cost.fleet.utilisation"
    assert sources["price_scale"] == "the default of report.cost.tariff_per_kwh"
    own = {n: q.source for n, q in made(records, tariff_per_kwh=0.2, growth=0.1).numbers.items()}
    assert own["price_scale"] == "the tariff as it is declared"
    assert own["growth"] == "declared in report.cost"


BANDS = {"bands": [{"price_per_kwh": 0.2}]}


@pytest.mark.parametrize(
    ("given", "sample"),
    [
        ({}, True),
        ({"pue": 1.2}, True),
        ({"tariff_per_kwh": 0.2}, False),
        ({"tariff": BANDS}, False),
        ({"sample": False}, False),
        ({"tariff_per_kwh": 0.2, "sample": True}, True),
    ],
)
def test_an_own_tariff_is_no_sample(tmp_path, timed_load, given: dict, sample: bool) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    case = made(records, **given, assumed_power_w=500.0)
    assert case.sample is sample
    assert how_of(what_if(case, draws=5).figure("ternary", "year"), case).startswith(
        "sample prices; "
    ) is sample  # fmt: skip
