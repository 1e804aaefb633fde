"""Money rests on the energy of served traffic where every arm has it, and names its basis."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from workbench.economics.case import evaluate
from workbench.economics.what_if import what_if
from workbench.measure.load_energy import load_energy_figures
from workbench.measure.statistics import share
from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.cost import cost_rows
from workbench.report.economy import case_of
from workbench.report.economy_rows import metrics

SLO = Slo(ttft_ms=2000.0, tpot_ms=100.0)
ARMS = {"full_precision": 1000.0, "ternary": 800.0}
"""Power under the load; 400 W idle. Twelve requests in 12 s, so 600 J and 400 J above idle."""
PREFILL = {"full_precision": 0.5, "ternary": 0.45}
DECODE = {("full_precision", 8): 4.0, ("ternary", 8): 2.5}
COST = {"tariff_per_kwh": 0.2, "pue": 1.5, "requests_per_day": 43_200.0, "sample": False}


def served(records, prompt: int = 1000, output: int = 100, basis: str = "node", whole: int = 12):
    """A replay of eight blocks of 12 s with 12 requests in each, and its figures. whole: answers of
    a block that came whole."""
    record = records["measure_ab"]
    energies, requests = [], []
    for block in range(8):
        for order, (arm, watts) in enumerate(ARMS.items()):
            energies.append(
                {
                    "block": block, "order": order, "arm": arm, "start_s": 0.0, "end_s": 12.0,
                    "basis": basis, "covers": f"the {basis} (made up)", "kind": "measured",
                    "energy_j": 12 * watts, "idle_w": 400.0, "idle_error_w": 1.0, "error_j": 20.0,
                    "bias_j": 12.0, "how": "",
                }
            )  # fmt: skip
            requests += [
                {
                    "block": block, "arm": arm, "status": "ok" if k < whole else "lost",
                    "prompt_tokens": prompt, "output_tokens": output, "sent_s": 1.0 * k,
                    "last_token_s": k + 0.9,
                }
                for k in range(12)
            ]  # fmt: skip
    record.save_table("load_energies", pd.DataFrame(energies))
    record.save_table("load_requests", pd.DataFrame(requests))
    record.facts["load_energy_basis"] = dict.fromkeys(ARMS, basis)
    for metric in load_energy_figures(
        pd.DataFrame(requests), pd.DataFrame(energies), record.table("blocks"), [*ARMS], [*ARMS]
    ):
        record.add(metric)
    for arm in ARMS:
        record.missing("energy_j_per_request", "J", "not metered", arm=arm, source="trained",
                       **{"class": "batch_8"})  # fmt: skip


@pytest.fixture
def records(tmp_path, timed_load):
    return timed_load(tmp_path, PREFILL, DECODE)


def made(records, **cost):
    return case_of(records, Cost.model_validate(COST | cost), SLO)[0]


def test_the_case_takes_the_served_energy_of_every_arm(records) -> None:
    """Full precision: (1,000 - 400) W x 12 s / 12 requests = 600 J, idle 400 W; one machine carries
    0.5 requests a second: 400 + 300 = 700 W, so 1,400 J a request; ternary 400 + 200 = 600 W."""
    served(records)
    case = made(records)
    work, idle = case.numbers["work_j.full_precision"], case.numbers["idle_w"]
    assert (work.value, work.kind, idle.value) == (pytest.approx(600), "measured", 400)
    assert work.lo < 600 < work.hi and "served load, metered, node" in work.source
    assert not [name for name in case.numbers if name.startswith(("power_w", "idle_share"))]
    full, ternary = evaluate(case).values()
    assert full["energy_j_per_request"] == pytest.approx(1_400)
    assert ternary["energy_j_per_request"] == pytest.approx(1_200)
    assert "energy of all arms: served load, metered, node" in case.texts
    # By time: 0.5 s and 0.4 s of full precision's request are its prompt's and its answer's.
    assert case.arms[0].prefill_energy == pytest.approx(5 / 9)
    assert what_if(case, draws=50).figure("ternary", "energy_kwh").lo is not None
    # The machine's idle power is no difference between arms: drawn once, it leaves the saving be.
    exact = {n: replace(q, lo=None, hi=None) for n, q in case.numbers.items() if n != "idle_w"}
    idle_alone = replace(case, numbers=case.numbers | exact)
    saved = what_if(idle_alone, draws=50).figure("ternary", "energy_saving_kwh")
    assert saved.lo == pytest.approx(saved.value) == pytest.approx(saved.hi)


def test_a_bill_of_the_load_by_hand(records) -> None:
    """1,400 J x 1,000 / 3.6e6 = 0.38889 kWh x 1.5 x 0.2 = 0.11667 for 1,000 requests; 5/9 of it for
    a million prompt tokens, 4/9 x 10 for as many of answers; eleven of twelve answers come whole:
    x 12 / 11. A day has 43,200: 5.04."""
    served(records, whole=11)
    rows = {(r.per, r.labels): r for r in cost_rows(records, Cost.model_validate(COST), SLO)}
    own = {per: row for (per, arm), row in rows.items() if arm == "arm=full_precision"}
    thousand = 0.42 / 3.6
    assert own["load_1k_requests"].value == pytest.approx(thousand)
    assert own["load_1m_input_tokens"].value == pytest.approx(thousand * 5 / 9)
    assert own["load_1m_output_tokens"].value == pytest.approx(thousand * 40 / 9)
    assert own["load_1k_accepted"].value == pytest.approx(thousand * 12 / 11)
    assert own["day"].value == pytest.approx(5.04)
    for row in own.values():
        if row.per.startswith("load") or row.per == "day":
            assert row.energy_kind == "measured" and "served load, metered, node" in row.how
    assert own["day"].lo < 5.04 < own["day"].hi


def test_accepted_answers_of_own_prompts_are_what_the_bill_counts_by(records) -> None:
    """All answers come whole and 32 of 64 keep to their check: 0.11667 becomes 0.23333, and its
    interval holds that of the share, 0.372 to 0.628."""
    served(records)
    before = {
        r.per: r for r in cost_rows(records, Cost.model_validate(COST), SLO) if "full" in r.labels
    }
    record = records["measure_ab"]
    for arm, kept in (("full_precision", 32), ("ternary", 0)):
        labels = {"arm": arm, "source": "trained"}
        record.add(share(kept, 64).metric("accepted_share", "share", "checks", **labels))
    rows = {(r.per, r.labels): r for r in cost_rows(records, Cost.model_validate(COST), SLO)}
    own = rows["load_1k_accepted", "arm=full_precision"]
    assert own.value == pytest.approx(2 * before["load_1k_accepted"].value)
    exact = share(32, 64)
    assert own.lo <= own.value * 0.5 / exact.hi and own.hi >= own.value * 0.5 / exact.lo
    assert own.hi - own.lo > before["load_1k_accepted"].hi - before["load_1k_accepted"].lo
    assert rows["load_1k_requests", "arm=full_precision"] == before["load_1k_requests"]
    none = rows["load_1k_accepted", "arm=ternary"]
    assert none.value is None and "no answer keeps to its check" in none.reason
    case = made(records)
    assert case.numbers["passed.full_precision"].value == 0.5
    found = {m.labels["arm"]: m for m in metrics(case, what_if(case, draws=50))
             if m.name == "cost_per_accepted_answer"}  # fmt: skip
    thousand = next(
        m for m in metrics(case, what_if(case, draws=50))
        if m.name == "cost_per_1k_requests" and m.labels["arm"] == "full_precision"
    )  # fmt: skip
    assert found["full_precision"].value == pytest.approx(2 * thousand.value / 1e3)
    assert found["ternary"].value is None


def test_requests_of_other_lengths_are_scaled_and_modelled(records) -> None:
    """The replay cut answers to 50 tokens: 0.5 s + 0.2 s of a machine for 0.5 s + 0.4 s of the
    load's own, so x 9/7 by the split of the energy."""
    served(records, output=50)
    work = made(records).numbers["work_j.full_precision"]
    assert (work.value, work.kind) == (pytest.approx(600 * 9 / 7), "modelled")
    assert "50 output tokens, the load's 1e+03 and 100" in work.source
    record = records["measure_ab"]
    record.metrics = [
        Metric.missing(m.name, "J", "not split", **m.labels) if "fill_energy" in m.name
        or "decode_energy" in m.name else m for m in record.metrics
    ]  # fmt: skip
    assert "the energy is not split between them" in made(records).no_power


def test_boards_alone_are_said_or_extended(records) -> None:
    served(records, basis="gpu")
    assert "gpu alone, not the node" in made(records).numbers["work_j.ternary"].source
    rows = cost_rows(records, Cost.model_validate(COST), SLO)
    assert {r.covers for r in rows if r.per == "day"} == {"gpu"}
    extended = made(records, board_share=0.5)
    assert extended.numbers["work_j.ternary"].value == pytest.approx(800)
    assert extended.numbers["idle_w"].value == pytest.approx(800)
    assert extended.numbers["idle_w"].kind == "assumed"
    rows = cost_rows(records, Cost.model_validate(COST | {"board_share": 0.5}), SLO)
    assert {(r.covers, r.kind) for r in rows if r.per == "day"} == {("", "assumed")}


def test_one_arm_without_served_energy_puts_all_on_the_next_basis(records) -> None:
    served(records)
    record = records["measure_ab"]
    record.metrics = [
        Metric.missing(m.name, "J", "gap: 4 s", **m.labels)
        if m.labels.get("arm") == "ternary" and m.name == "energy_net_j_per_request" else m
        for m in record.metrics
    ]  # fmt: skip
    assert "ternary: gap: 4 s" in made(records).no_power
    declared = made(records, assumed_power_w=700.0)
    assert declared.numbers["power_w"].kind == declared.numbers["idle_share"].kind == "assumed"
    # One declared number: it is turned for all arms together, and no arm gains by it alone.
    (turn,) = [t for t in what_if(declared, draws=10).tornado if t.number.startswith("power_w")]
    assert turn.number == "power_w"
    assert any("declared 700 W under load, the same for all" in text for text in declared.texts)
    assert any("not by the served load: ternary: gap: 4 s" in text for text in declared.texts)
    kinds = {
        r.energy_kind for r in cost_rows(
            records, Cost.model_validate(COST | {"assumed_power_w": 700.0}), SLO)
        if r.per in ("day", "load_1k_requests")
    }  # fmt: skip
    assert kinds == {"modelled"}


def test_training_and_rehearsal_of_this_run_are_paid_for_once(tmp_path, records) -> None:
    """Two hours at 3 an hour, and 7.2 MJ = 2 kWh x 1.5 x 0.2 = 0.60; the rehearsal was not metered:
    half an hour x the declared 800 W = 0.4 kWh, 0.12."""
    served(records)
    trained = StageRecord("train_qat", tmp_path / "train_qat")
    trained.measured("training_time_s", 7200.0, "s", "clock", arm="ternary")
    trained.measured("training_energy_j", 7.2e6, "J", "gross, node", arm="ternary")
    replayed = StageRecord("deploy_rollback", tmp_path / "deploy", duration_s=1800.0)
    replayed.missing("deployment_energy_j", "J", "gap: 4 s")
    records |= {"train_qat": trained, "deploy_rollback": replayed}
    once = [{"name": "training", "per_hour": 3.0}, {"name": "integration", "price": 100.0}]
    case = made(records, one_off=once, assumed_power_w=800.0)
    assert case.numbers["kwh.training"].kind == "measured"
    assert case.numbers["kwh.rehearsal"].kind == "modelled"
    assert evaluate(case)["ternary"]["one_off"] == pytest.approx(6 + 0.6 + 100 + 0.12)
    unmetered = made(records, one_off=once)
    assert unmetered.numbers["kwh.rehearsal"].value == 0
    assert "energy of rehearsal is left out: gap: 4 s" in unmetered.texts
    declared = [{"name": "training", "hours": 10.0, "kwh": 5.0}]
    assert made(records, one_off=declared).numbers["hours.training"].value == 10
    bare = made(records)
    assert any("integration is not declared" in text for text in bare.texts)
    assert any("have no price" in text for text in bare.texts)
    assert evaluate(replace(bare))["ternary"]["one_off"] == pytest.approx(0.6)
