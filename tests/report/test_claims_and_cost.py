"""Claims stand beside this run's figures only; money comes from metered energy or is a model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.pilot.sections.report import Cost
from workbench.report.claims import claim_rows, energy_ratio
from workbench.report.cost import cost_rows


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
    (energy,) = rows["energy_70b"]
    assert energy.claimed_kind == "theoretical"
    assert energy.measured is None and "no meter" in energy.reason
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
    assert {r.kind for r in tokens} == {"modelled"}


def test_metered_energy_becomes_money(make_run) -> None:
    records = make_run(energy=True).records()
    cost = Cost(tariff_per_kwh=0.2, pue=1.5, requests_per_day=50_000.0)
    rows = cost_rows(records, cost)
    joules = records["measure_ab"].metric("energy_j_per_request", arm="ternary").value
    thousand = next(r for r in rows if r.per == "1k_requests" and "arm=ternary" in r.labels)
    assert thousand.value == pytest.approx(1000 * joules / 3.6e6 * 1.5 * 0.2)
    assert thousand.kind == "derived" and thousand.sample
    assert thousand.lo == pytest.approx(0.9 * thousand.value)
    day = next(r for r in rows if r.per == "day" and r.labels == thousand.labels)
    assert day.value == pytest.approx(50 * thousand.value)
    once = next(r for r in rows if r.per == "training" and "ternary" in r.labels)
    assert once.value == pytest.approx(4000 / 3.6e6 * 1.5 * 0.2)


def test_without_a_meter_there_is_no_money(make_run) -> None:
    rows = cost_rows(make_run().records(), Cost())
    assert rows and all(r.value is None and r.energy_j is None for r in rows)
    assert {r.kind for r in rows} == {"not measured"}
    assert all("no meter" in r.reason for r in rows)


def test_an_assumed_power_gives_a_model_and_says_so(make_run) -> None:
    records = make_run().records()
    rows = cost_rows(records, Cost(assumed_power_w=100.0, tariff_per_kwh=0.2, pue=1.0))
    assert {r.kind for r in rows} == {"modelled"}
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
    rows = cost_rows(make_run(energy=True).records(), Cost(assumed_power_w=1e6))
    assert {r.kind for r in rows} == {"derived"}
