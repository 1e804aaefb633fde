"""One row of the training benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from workbench.measure.statistics import Estimate


@dataclass(frozen=True)
class TrainRow:
    """value: the mean over ``n`` blocks (of ratios the geometric mean over pairs of blocks);
    lo, hi: its 95 % interval. shape: preset, sequences a step x tokens of each."""

    name: str
    arm: str
    shape: str
    value: float
    lo: float | None
    hi: float | None
    unit: str
    n: int
    how: str

    @classmethod
    def of(
        cls, name: str, arm: str, shape: str, estimate: Estimate, unit: str = "tokens/s"
    ) -> TrainRow:
        return cls(
            name,
            arm,
            shape,
            estimate.value or 0.0,
            estimate.lo,
            estimate.hi,
            unit,
            estimate.n,
            estimate.method or estimate.reason or "",
        )

    def as_json(self, **where: str) -> str:
        """One line of JSON; ``where`` says where it was measured."""
        rounded = {
            k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in asdict(self).items()
        }
        return json.dumps({**rounded, **where})

    def as_text(self) -> str:
        """One line of the table."""
        spread = "" if self.lo is None else f"{self.lo:.4g} to {self.hi:.4g}"
        return (
            f"{self.name:22} {self.arm:20} {self.shape:22} {self.value:10.4g} {self.unit:9} "
            f"{spread}"
        )


HEADER = f"{'what':22} {'arm':20} {'shape':22} {'mean':>10} {'unit':9} 95 % interval"
