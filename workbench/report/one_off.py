"""What the change costs once: training and rehearsal as this run took them, unless declared.

The training of the ternary arm has its steps' hours and its metered energy in the record of
``train_qat``, the rehearsal of the way back its replay in that of ``deploy_rollback``. Without a
meter the declared watts times these hours stand for the energy, modelled. Integration is work of
people: it is declared, or said to be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workbench.economics.case import TRAINING
from workbench.economics.quantity import Quantity
from workbench.pilot.sections.cost import Cost, OneOff
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord

REHEARSAL, INTEGRATION = "rehearsal", "integration"
UNTRAINED = ("checkpoint", "post_training", "int8", "int4")
"""Arms that no training is paid for: the checkpoint as it came, and what is rounded."""
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class OneOffs:
    """items: those declared, and those of this run. numbers: of the case. texts: what of it is
    of this run, and what is missing."""

    items: tuple[OneOff, ...]
    numbers: dict[str, Quantity]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class _Took:
    """In this run. hours: of the machine. energy: in kWh, or why it is not known."""

    hours: Quantity
    energy: Quantity | str


def one_offs(records: Mapping[str, StageRecord], cost: Cost) -> OneOffs:
    """Of the pilot and of this run together."""
    declared = {item.name: item for item in cost.one_off}
    took = {
        name: found
        for name, found in (
            (TRAINING, _training(records.get("train_qat"), cost)),
            (REHEARSAL, _rehearsal(records.get("deploy_rollback"), cost)),
        )
        if found is not None
    }
    items = [*declared.values(), *(OneOff(name=n) for n in took if n not in declared)]
    numbers: dict[str, Quantity] = {}
    left_out: dict[str, list[str]] = {}
    for item in items:
        own = took.get(item.name)
        numbers |= _numbers(item, own, cost.currency)
        if own is not None and item.kwh is None and isinstance(own.energy, str):
            left_out.setdefault(own.energy, []).append(item.name)
    texts = [f"energy of {' and '.join(of)} is left out: {why}" for why, of in left_out.items()]
    if INTEGRATION not in declared:
        texts.append("integration is not declared, and costs nothing here (report.cost.one_off)")
    unpaid = [
        name for name in took if not numbers[f"per_hour.{name}"].value
        and not numbers[f"once.{name}"].value
    ]  # fmt: skip
    if unpaid:
        texts.append(f"the hours of {' and '.join(unpaid)} have no price, and cost nothing here")
    return OneOffs(tuple(items), numbers, tuple(texts))


def _numbers(item: OneOff, took: _Took | None, currency: str) -> dict[str, Quantity]:
    declared = "declared in report.cost.one_off"
    if item == OneOff(name=item.name):  # of this run, nothing of it in the pilot
        declared = "nothing is declared in report.cost.one_off"
    hours = Quantity(item.hours or 0.0, item.kind, "h", declared)
    kwh = Quantity(item.kwh or 0.0, item.kind, "kWh", declared)
    if took is not None and item.hours is None:
        hours = took.hours
    if took is not None and item.kwh is None:
        kwh = took.energy if isinstance(took.energy, Quantity) else Quantity(
            0.0, "assumed", "kWh", "not known, left out")  # fmt: skip
    return {
        f"once.{item.name}": Quantity(item.price, item.kind, currency, declared),
        f"hours.{item.name}": hours,
        f"per_hour.{item.name}": Quantity(item.per_hour, item.kind, currency, declared),
        f"kwh.{item.name}": kwh,
    }


def _training(record: StageRecord | None, cost: Cost) -> _Took | None:
    """Of the ternary arm; None where this run trained none."""
    time = record.metric("training_time_s", arm="ternary") if record else None
    if record is None or time is None or time.value is None:
        return None
    hours = Quantity(time.value / 3600, "measured", "h", "training of this run's ternary arm")
    return _Took(hours, _energy(record.metric("training_energy_j", arm="ternary"), hours, cost))


def _rehearsal(record: StageRecord | None, cost: Cost) -> _Took | None:
    """Of the replay with the rollback; None where nothing was deployed."""
    if record is None or not record.duration_s:
        return None
    hours = Quantity(record.duration_s / 3600, "measured", "h", "stage deploy_rollback of this run")
    return _Took(hours, _energy(record.metric("deployment_energy_j"), hours, cost))


def _energy(metered: Metric | None, hours: Quantity, cost: Cost) -> Quantity | str:
    """Metered, else by the declared watts, else why it is not known."""
    if metered is not None and metered.value is not None:
        return Quantity(metered.value / JOULES_PER_KWH, metered.kind, "kWh", metered.how)
    if cost.assumed_power_w is not None:
        kwh = cost.assumed_power_w / 1e3 * hours.value
        return Quantity(kwh, "modelled", "kWh",
                        f"declared {cost.assumed_power_w:g} W x {hours.source}")  # fmt: skip
    return (metered.reason if metered else None) or "it was not metered"
