"""Claims stand beside this run's figures only; money comes from metered energy or is a model."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.records.metric import Metric
from workbench.report.claims import claim_rows, energy_ratio
from workbench.report.cost import LOAD_ROWS, cost_rows


def of_turns(rows):
    """All but those of the load, which need timed batches that the sample does not have."""
    assert {r.reason for r in rows if r.per in LOAD_ROWS} == {
        "needs a load profile and timed batches of the arms"
    }
    return [r for r in rows if r.per not in LOAD_ROWS]


def by_claim(rows):
    return {row.claim: [r for r in rows if r.claim == row.claim] for row in rows}


def test_each_claim_has_this_runs_figures_or_a_reason(make_run) -> None:
    rows = by_claim(claim_rows(make_run().records()))
    sources = [r.labels for r in rows["memory_3b"]]
    assert sources == ["arm=ternary shape=bitnet-700m source=probe", "arm=ternary source=trained"]
    assert rows["memory_3b"][0].measured == 2.93
    assert rows["latency_70b"][0].measured is None
    assert rows["latency_70b"][0].reason_code == "no_70b"
    assert {r.labels.split()[1] for r in rows["throughput_70b"]} == {
        "batch=1",
        "batch=4",
        "batch=8",
    }
    operations, moved, metered = rows["energy_70b"]
    assert {r.claimed_kind for r in rows["energy_70b"]} == {"theoretical"}
    assert (operations.metric, moved.metric) == ("operations_energy_ratio", "bytes_moved_ratio")
    assert "no ternary model was trained" in operations.reason == moved.reason
    assert metered.measured is None and "no_meter" in metered.reason
    assert all(r.source and r.conditions and r.behind for own in rows.values() for r in own)


def test_claims_without_any_record_say_so() -> None:
    rows = claim_rows({})
    assert all(row.measured is None and row.reason for row in rows)
    assert {row.claimed for row in rows} == {3.55, 2.71, 4.1, 8.9, 41.2}


def test_the_energy_ratio_joins_opposite_ends(make_run) -> None:
    ratio, other = energy_ratio(make_run(energy=True).records())
    assert (ratio.labels["class"], other.labels["class"]) == ("interactive_1", "interactive_512")
    assert ratio.kind == "derived"
    assert ratio.value == pytest.approx(1.9)
    assert (ratio.lo, ratio.hi) == pytest.approx((1.9 * 0.9 / 1.1, 1.9 * 1.1 / 0.9))


def test_a_ratio_of_modelled_energies_stays_a_model(make_run) -> None:
    records = make_run(energy=True).records()
    record = records["measure_ab"]
    record.metrics = [
        replace(m, kind="modelled") if m.name == "energy_j_per_token" else m for m in record.metrics
    ]
    assert {m.kind for m in energy_ratio(records)} == {"modelled"}
    tokens = [r for r in cost_rows(records, Cost()) if r.per == "1m_tokens"]
    assert {r.energy_kind for r in tokens} == {"modelled"}


def test_metered_energy_becomes_money(make_run) -> None:
    records = make_run(energy=True).records()
    cost = Cost(tariff_per_kwh=0.2, pue=1.5, requests_per_day=50_000.0)
    rows = cost_rows(records, cost)
    joules = records["measure_ab"].metric("energy_j_per_request", arm="ternary").value
    thousand = next(r for r in rows if r.per == "1k_requests" and "arm=ternary" in r.labels)
    assert thousand.value == pytest.approx(1000 * joules / 3.6e6 * 1.5 * 0.2)
    assert (thousand.energy_kind, thousand.kind) == ("measured", "assumed")
    assert not thousand.sample, "the tariff is the pilot's own"
    assert thousand.lo == pytest.approx(0.9 * thousand.value)
    assert thousand.covers == ""
    once = next(r for r in rows if r.per == "training" and "ternary" in r.labels)
    assert once.value == pytest.approx(4000 / 3.6e6 * 1.5 * 0.2)


def test_without_a_meter_there_is_no_money(make_run) -> None:
    rows = of_turns(cost_rows(make_run().records(), Cost()))
    assert rows and all(r.value is None and r.energy_j is None for r in rows)
    assert {r.kind for r in rows} == {"not measured"}
    assert all("no_meter" in r.reason for r in rows)


def test_an_assumed_power_gives_a_model_and_says_so(make_run) -> None:
    records = make_run().records()
    cost = Cost(assumed_power_w=100.0, tariff_per_kwh=0.2, pue=1.0)
    rows = of_turns(cost_rows(records, cost))
    assert {r.energy_kind for r in rows} == {"modelled"}
    assert all("assumed 100 W" in r.how for r in rows)
    request = next(r for r in rows if r.per == "1k_requests" and "arm=ternary" in r.labels)
    latency = records["measure_ab"].metric("latency_ms", arm="ternary")
    assert request.energy_j == pytest.approx(1000 * 100 * latency.value / 1e3)
    tokens = [r for r in rows if r.per == "1m_tokens" and "arm=ternary" in r.labels]
    assert len(tokens) == 3, "one for each batch size"
    fast = records["measure_ab"].metric("decode_tokens_per_s", arm="ternary", batch="8")
    assert tokens[-1].energy_j == pytest.approx(1e6 * 100 / fast.value)
    assert tokens[-1].lo < tokens[-1].value < tokens[-1].hi


def test_a_meter_is_never_overruled_by_an_assumption(make_run) -> None:
    rows = of_turns(cost_rows(make_run(energy=True).records(), Cost(assumed_power_w=1e6)))
    assert {r.energy_kind for r in rows} == {"measured"}


PREFILL = {"full_precision": 0.5, "ternary": 0.45}
DECODE = {("full_precision", 8): 4.0, ("ternary", 8): 2.5}
"""Of a load of 1,000 prompt and 100 output tokens: 0.90 s and 0.70 s of a machine a request."""
DAY = Cost(tariff_per_kwh=0.2, pue=1.5, requests_per_day=172_800.0)


def metered(records, basis: str, watts: dict[str, float]) -> None:
    """Energies of turns of 10 s at these powers, on this basis."""
    record = records["measure_ab"]
    rows = [
        {
            "block": block, "arm": arm, "class": "batch_8", "basis": basis, "kind": "measured",
            "start_s": 0.0, "end_s": 10.0, "energy_j": 10 * power,
        }
        for block in range(8)
        for arm, power in watts.items()
    ]  # fmt: skip
    record.save_table("energies", pd.DataFrame(rows))
    record.facts["energy_basis"] = {"batch_8": basis}


def with_requests(records, **joules: float | None) -> None:
    for arm, value in joules.items():
        labels = {"arm": arm, "class": "batch_8", "source": "trained"}
        if value is None:
            records["measure_ab"].missing("energy_j_per_request", "J", "gap: 4 s", **labels)
        else:
            records["measure_ab"].measured("energy_j_per_request", value, "J", "gross", **labels)


def test_a_day_is_the_load_s_own_requests_at_the_batch_that_carries_them(tmp_path, timed_load):
    """Two requests a second of 0.90 s: two machines work 43.2 h at 1,000 W and idle 4.8 h at 400 W:
    45.12 kWh x 1.5 x 0.2 = 13.536; of 0.70 s: 33.6 h at 800 W and 14.4 h at 320 W: 31.488 kWh,
    9.4464. The PUE is declared, so the cost is assumed, as is the idle power."""
    records = timed_load(tmp_path, PREFILL, DECODE)
    with_requests(records, full_precision=1.0, ternary=1.0)
    metered(records, "node", {"full_precision": 1000.0, "ternary": 800.0})
    full, ternary = (r for r in cost_rows(records, DAY, Slo(tpot_ms=100)) if r.per == "day")
    assert (full.value, ternary.value) == pytest.approx((13.536, 9.4464))
    assert full.energy_j == pytest.approx(45.12 * 3.6e6)
    assert (full.kind, full.energy_kind, full.covers) == ("assumed", "assumed", "")
    assert "1000 prompt and 100 output tokens" in full.how
    assert "batch 8, 2 machines busy 43.2 of 48 h, idle in the others" in full.how


def test_a_day_without_a_meter_is_a_model_for_all_arms_or_nothing(tmp_path, timed_load):
    records = timed_load(tmp_path, PREFILL, DECODE)
    with_requests(records, full_precision=None, ternary=None)
    days = [r for r in cost_rows(records, DAY, Slo()) if r.per == "day"]
    assert {r.value for r in days} == {None}
    assert all("turns in fixed shapes: gap: 4 s" in r.reason for r in days)
    assert all("no power is declared" in r.reason for r in days)
    assumed = DAY.model_copy(update={"assumed_power_w": 1000.0})
    full, ternary = (r for r in cost_rows(records, assumed, Slo()) if r.per == "day")
    # 43.2 h at 1 kW and 4.8 h at 0.4 kW; 33.6 h and 14.4 h.
    assert (full.value, ternary.value) == pytest.approx((13.536, 0.3 * (33.6 + 14.4 * 0.4)))
    assert {full.energy_kind, ternary.energy_kind} == {"modelled"}


def test_boards_alone_are_said_or_extended_by_a_declared_share(tmp_path, timed_load):
    records = timed_load(tmp_path, PREFILL, DECODE)
    with_requests(records, full_precision=36.0, ternary=18.0)
    metered(records, "gpu", {"full_precision": 500.0, "ternary": 400.0})
    for row in cost_rows(records, DAY, Slo()):
        if row.per == "load_1k_accepted":
            assert row.value is None and "no answer of a served load" in row.reason
            continue
        assert row.covers == "gpu"
        assert row.energy_kind == ("assumed" if row.per in LOAD_ROWS else "measured")
    extended = cost_rows(records, DAY.model_copy(update={"board_share": 0.5}), Slo())
    for row in (r for r in extended if r.value is not None):
        assert (row.covers, row.energy_kind) == ("", "assumed")
        assert "extended to the node by the declared share 0.5" in row.how
    thousand = next(r for r in extended if r.per == "1k_requests" and "full" in r.labels)
    assert thousand.value == pytest.approx(1000 * 36 / 0.5 / 3.6e6 * 1.5 * 0.2)
    assert next(r for r in extended if r.per == "day").value == pytest.approx(13.536)


def test_one_arm_without_a_meter_puts_all_arms_on_the_declared_power(make_run) -> None:
    records = make_run(energy=True).records()
    record = records["measure_ab"]
    record.metrics = [
        Metric.missing(m.name, "J", "gap: 4 s", **m.labels)
        if m.name.startswith("energy_j") and m.labels["arm"] == "ternary"
        else m
        for m in record.metrics
    ]
    rows = cost_rows(records, Cost(assumed_power_w=100.0))
    assert {r.energy_kind for r in rows if r.per in ("1k_requests", "1m_tokens")} == {"modelled"}
    rows = cost_rows(records, Cost())
    assert {r.kind for r in rows if "ternary" in r.labels and r.per == "1k_requests"} == {
        "not measured"
    }
