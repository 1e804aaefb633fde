"""Claims of the public literature beside what this run measured.

A claim is a number on its author's machine, under its author's conditions. Each carries its
source; its conditions and what lies behind it are texts of the catalogue
(``claim.<id>.conditions``, ``claim.<id>.behind``). Beside it stand this run's figures for the
same quantity, one row each, told apart by ``source`` (``probe``: a real shape with random
weights; ``trained``: the model trained in this run), or one row that says why there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.operations import operation_ratios
from workbench.wording.labels import label_text
from workbench.wording.text import Texts

Records = Mapping[str, StageRecord]


@dataclass(frozen=True)
class Claim:
    """value: a ratio, full precision over ternary for sizes and times. kind: ``measured`` by
    the authors, or ``theoretical``. figures: finds this run's figures for the same quantity."""

    id: str
    value: float
    kind: Literal["measured", "theoretical"]
    source: str
    figures: Callable[[Records], list[Metric]]


@dataclass(frozen=True)
class ClaimRow:
    """A claim and one figure of this run, or the reason why there is none."""

    claim: str
    title: str
    claimed: float
    claimed_kind: str
    source: str
    conditions: str
    behind: str
    metric: str = ""
    labels: str = ""
    measured: float | None = None
    unit: str = ""
    lo: float | None = None
    hi: float | None = None
    n: int | None = None
    kind: str = "not measured"
    how: str = ""
    reason_code: str = ""
    reason: str = ""


def claim_rows(records: Records) -> list[ClaimRow]:
    """Every claim, each with the figures of this run that belong beside it."""
    return [row for claim in CLAIMS for row in _rows(claim, records)]


def claims_frame(rows: list[ClaimRow]) -> pd.DataFrame:
    return pd.DataFrame([asdict(r) for r in rows], columns=list(ClaimRow.__dataclass_fields__))


def energy_ratio(records: Records) -> list[Metric]:
    """Energy of full precision over that of ternary, for each class metered in both arms: within
    blocks, or of a record without that figure from the energies per token.

    Where nothing was metered, the first figure that is missing, with its reason.
    """
    if within := _named("measure_ab", "energy_ratio", arm="ternary")(records):
        return within
    found = _named("measure_ab", "energy_j_per_token")(records)
    full = {_condition(m): m for m in found if m.labels.get("arm") == "full_precision"}
    ternary = {_condition(m): m for m in found if m.labels.get("arm") == "ternary"}
    pairs = [(full[condition], ternary[condition]) for condition in full if condition in ternary]
    ratios = [_over(a, b) for a, b in pairs if a.value is not None and b.value]
    return ratios or [m for m in found if m.value is None][:1]


def _over(full: Metric, ternary: Metric) -> Metric:
    """The ratio of two figures. Its interval joins their opposite ends: wider than need be,
    never narrower."""
    bounded = None not in (full.lo, full.hi, ternary.lo, ternary.hi)
    positive = bounded and min(full.lo, ternary.lo) > 0  # type: ignore[type-var]
    return Metric(
        "energy_ratio",
        full.value / ternary.value,  # type: ignore[operator]
        "x",
        how="energy_j_per_token of full_precision over that of ternary, same session",
        kind="modelled" if "modelled" in (full.kind, ternary.kind) else "derived",
        n=min((m.n for m in (full, ternary) if m.n is not None), default=None),
        lo=full.lo / ternary.hi if positive else None,  # type: ignore[operator]
        hi=full.hi / ternary.lo if positive else None,  # type: ignore[operator]
        labels=dict(ternary.labels),
    )


def _condition(metric: Metric) -> str:
    return label_text({k: v for k, v in metric.labels.items() if k != "arm"})


def _named(stage: str, name: str, **labels: str) -> Callable[[Records], list[Metric]]:
    """A finder of all figures with this name and these labels in one stage's record."""

    def find(records: Records) -> list[Metric]:
        record = records.get(stage)
        return [m for m in record.metrics if m.matches(name, labels)] if record else []

    return find


def _joined(*finders: Callable[[Records], list[Metric]]) -> Callable[[Records], list[Metric]]:
    return lambda records: [metric for find in finders for metric in find(records)]


def _nothing(records: Records) -> list[Metric]:
    return []


BITNET_B158 = "BitNet b1.58, arXiv:2402.17764"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "memory_3b",
        3.55,
        "measured",
        f"{BITNET_B158}, table 1 (7.89 GB to 2.22 GB)",
        _joined(
            _named("readiness", "memory_ratio", arm="ternary", source="probe"),
            _named("measure_ab", "memory_ratio", arm="ternary", source="trained"),
        ),
    ),
    Claim(
        "latency_3b",
        2.71,
        "measured",
        f"{BITNET_B158}, table 1 (5.07 ms to 1.87 ms a token)",
        _joined(
            _named("readiness", "decode_speedup", source="probe"),
            _named("measure_ab", "speedup", arm="ternary", source="trained"),
        ),
    ),
    Claim("latency_70b", 4.10, "measured", f"{BITNET_B158}, figure 2", _nothing),
    Claim(
        "throughput_70b",
        8.9,
        "measured",
        f"{BITNET_B158}, table 3 (333 to 2,977 tokens/s)",
        _named("measure_ab", "throughput_ratio", arm="ternary", source="trained"),
    ),
    Claim(
        "energy_70b",
        41.2,
        "theoretical",
        f"{BITNET_B158}, figure 3",
        _joined(operation_ratios, energy_ratio),
    ),
)


def _rows(claim: Claim, records: Records) -> list[ClaimRow]:
    texts = Texts()
    head = {
        "claim": claim.id,
        "title": texts(f"claim.{claim.id}.title"),
        "claimed": claim.value,
        "claimed_kind": claim.kind,
        "source": claim.source,
        "conditions": texts(f"claim.{claim.id}.conditions"),
        "behind": texts(f"claim.{claim.id}.behind"),
    }
    found = claim.figures(records)
    if not found:
        code = "no_70b" if claim.figures is _nothing else "no_figure"
        return [ClaimRow(**head, reason_code=code, reason=texts(f"reason.{code}"))]
    return [
        ClaimRow(
            **head,
            metric=m.name,
            labels=label_text(m.labels),
            measured=m.value,
            unit=m.unit,
            lo=m.lo,
            hi=m.hi,
            n=m.n,
            kind=m.kind,
            how=m.how,
            reason=m.reason or "" if m.value is None else "",
        )
        for m in found
    ]
