"""Budgets of time and energy: metered, kept over a kill, or refused in a sentence."""

from __future__ import annotations

import time

import pytest

import workbench.hybrid.energy as energy
import workbench.stages.hybrid_plan as hybrid_plan
import workbench.stages.hybrid_plan_budgets as budgets_module
import workbench.stages.metered as metered
from workbench.errors import StageError
from workbench.hybrid.energy import metered_products, unit_energies
from workbench.hybrid.latency import products, unit_seconds
from workbench.measure.meters import EnergySession, MissingMeter
from workbench.measure.meters.sample import Channel, Sample
from workbench.pilot.sections.hybrid_plan import HybridPlan
from workbench.pilot.sections.measure_ab import MeasureAb
from workbench.pilot.sections.meters import Meters
from workbench.pilot.sections.model import Model
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.stages.hybrid_plan_budgets import budget_problems, plan_budgets

PRECISIONS = ["ternary", "int8", "high_precision"]
WATTS = 10.0


class Counter:
    """A processor that takes 10 W whatever it does."""

    reader = "rapl"

    def __init__(self) -> None:
        self.notes: list[str] = []

    def read(self) -> list[Sample]:
        channel = Channel("rapl", "package-0", "cpu", "energy", averaging_s=0.0, lag_s=0.0)
        return [Sample(channel, time.monotonic(), time.time(), WATTS * time.monotonic())]

    def close(self) -> None:
        pass


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(energy, "ROUNDS", 2)
    monkeypatch.setattr(energy, "SHORTEST_TURN_S", {"": 0.05})


def context_of(trained: StageRecord, folder, **section) -> StageContext:
    folder.mkdir(exist_ok=True)
    pilot = Pilot(
        name="small", question="q",
        measure_ab=MeasureAb(meters=Meters(idle_s=0.05)),
        hybrid_plan=HybridPlan(when="before_training", granularity="block", **section),
    )  # fmt: skip
    record = StageRecord("hybrid_plan", folder)
    return StageContext(pilot, record, Progress(folder / "e", "x"), {"train_qat": trained})


def meters(monkeypatch, *found) -> None:
    missing = [] if found else [MissingMeter("rapl", "there is none")]
    for module in (metered, budgets_module):
        monkeypatch.setattr(module, "find_meters", lambda *_: (list(found), list(missing)))


def test_energy_is_that_of_the_windows_over_their_tokens(trained, tmp_path, quick) -> None:
    base = hybrid_plan._open_base(context_of(trained, tmp_path / "s"), trained, "full_precision")
    heard = []
    with EnergySession([Counter()], idle_s=0.05, interval_s=0.01) as session:
        windows = metered_products(base, PRECISIONS, session, lambda *at: heard.append(at))
    shapes = products(base, PRECISIONS)
    assert len(windows) == 2 * len(shapes) and heard[-1] == (len(windows), len(windows))
    lengths_s = windows["end_s"] - windows["start_s"]
    known = windows["energy_j"].notna()  # a busy machine may leave one too few samples
    assert known.mean() > 0.7
    expected_j = WATTS * lengths_s[known].to_numpy()
    assert windows["energy_j"][known].to_numpy(float) == pytest.approx(expected_j, rel=0.05)
    found, covers = unit_energies(base, PRECISIONS, windows)
    assert covers.startswith("CPU packages alone")
    seconds = unit_seconds(base, PRECISIONS, repetitions=3)
    assert set(found) == set(seconds) and min(found.values()) > 0
    whole = windows.assign(seconds=lengths_s)[known].groupby(["outputs", "inputs", "precision"])
    each = {key: WATTS * of["seconds"].sum() / of["tokens"].sum() for key, of in whole}
    unit, names = next(iter(base.units.items()))
    layers = [base.model.get_submodule(name) for name in names]
    expected = sum(each[layer.out_features, layer.in_features, "int8"] for layer in layers)
    assert found[unit, "int8"] == pytest.approx(expected, rel=0.05)
    windows["energy_j"] = windows["energy_j"].where(windows["precision"] != "int8")
    windows.loc[windows["precision"] == "int8", "how"] = "gap: 10 s"
    with pytest.raises(StageError, match="gap: 10 s") as caught:
        unit_energies(base, PRECISIONS, windows)
    assert "never estimated" in caught.value.allowed and caught.value.next_step


def test_without_a_meter_a_budget_of_energy_is_refused(trained, tmp_path, monkeypatch) -> None:
    meters(monkeypatch)
    of = context_of(trained, tmp_path / "s", max_energy_ratio=0.5)
    base = hybrid_plan._open_base(of, trained, "full_precision")
    with pytest.raises(StageError, match="no meter answers") as caught:
        plan_budgets(of, base)
    assert "rapl: there is none" in caught.value.got
    assert "power meter" in caught.value.allowed and "meter list" in caught.value.next_step


def test_budgets_are_measured_once_and_kept_over_a_kill(
    trained, tmp_path, monkeypatch, quick
) -> None:
    meters(monkeypatch, Counter())
    asked = {"max_energy_ratio": 0.5, "max_latency_ratio": 0.7}
    of = context_of(trained, tmp_path / "s", **asked)
    base = hybrid_plan._open_base(of, trained, "full_precision")
    first = plan_budgets(of, base)
    assert [budget.name for budget in first] == ["energy_j", "seconds"]
    for budget, ratio in zip(first, (0.5, 0.7), strict=True):
        whole = budget.taken(dict.fromkeys(base.units, "high_precision"))
        assert budget.limit == pytest.approx(ratio * whole) and whole > 0
    assert {"plan_energies"} == set(of.record.tables)
    assert any("metered: gross, CPU packages alone" in note for note in of.record.notes)
    meters(monkeypatch)  # gone, and not needed any more
    again = context_of(trained, tmp_path / "s", **asked)
    assert plan_budgets(again, base) == first, "the same plan after a kill"
    assert {"plan_energies"} == set(again.record.tables)


def test_what_cannot_be_kept_is_refused_before_anything_starts(monkeypatch) -> None:
    def problems(model: Model | None = None, **section) -> list[str]:
        hybrid = HybridPlan(**section)
        return budget_problems(
            Pilot(name="x", question="q", model=model or Model(), hybrid_plan=hybrid)
        )

    meters(monkeypatch)
    first = {"when": "before_training"}
    assert problems() == [] and problems(max_latency_ratio=0.5, **first) == []
    (said,) = problems(max_energy_ratio=0.5, **first)
    assert said.startswith("hybrid_plan.max_energy_ratio: 0.5, but no meter answers (rapl: there")
    assert "allowed: a power meter" in said and "workbench meter list" in said
    for name in ("max_latency_ratio", "max_energy_ratio"):
        (said,) = problems(**{name: 0.5})
        assert said.startswith(f"hybrid_plan.{name}: 0.5, but the hybrid's layers are exchanged")
    meters(monkeypatch, Counter())
    assert problems(max_energy_ratio=0.5, **first) == []
