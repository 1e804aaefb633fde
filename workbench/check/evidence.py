"""What a model's files prove: of each matrix its codes and scales, and what is wrong with them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.paths import shown
from workbench.ternary.policy import Precision
from workbench.wording.counts import number_of


@dataclass(frozen=True)
class Matrix:
    """One matrix [N, K]. shares: of the codes -1, 0, +1; None where it is not ternary.
    scales: how many it has. scale_min, scale_max: of them; None where it has none."""

    name: str
    precision: Precision
    shape: tuple[int, int]
    shares: tuple[float, float, float] | None = None
    scales: int = 0
    scale_min: float | None = None
    scale_max: float | None = None

    @classmethod
    def ternary(cls, name: str, codes_NK: Tensor, scale: Tensor) -> Matrix:
        """codes_NK: any integers of which -1, 0, 1 are counted. scale: one or more, float."""
        N, K = codes_NK.shape
        minus, zero, plus = (
            int((codes_NK == code).sum()) / codes_NK.numel() for code in (-1, 0, 1)
        )
        low, high = float(scale.min()), float(scale.max())
        return cls(name, "ternary", (N, K), (minus, zero, plus), scale.numel(), low, high)


@dataclass
class TernaryCheck:
    """What :func:`workbench.check.ternary.check_ternary` found.

    kind: ``packed folder``, ``master folder``, ``Hugging Face BitNet folder``, ``GGUF file`` or
    ``ONNX file``.
    threshold: the threshold version's id; None where the format does not say. stored: how ternary
    matrices are stored. digests: weight file -> its SHA-256. problems: sentences that start with
    the tensor or file at fault; none in a file that is what it says.
    """

    path: Path
    kind: str
    threshold: str | None = None
    stored: str = "codes and scales"
    digests: dict[str, str] = field(default_factory=dict)
    matrices: list[Matrix] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is a ternary matrix, and nothing is wrong."""
        return not self.problems and bool(self.ternary)

    @property
    def ternary(self) -> list[Matrix]:
        return [matrix for matrix in self.matrices if matrix.precision == "ternary"]

    @property
    def ternary_share(self) -> float:
        """Of the weights in all matrices, how many are ternary: 0 to 1."""
        sizes = {m.name: m.shape[0] * m.shape[1] for m in self.matrices}
        return sum(sizes[m.name] for m in self.ternary) / max(1, sum(sizes.values()))

    def __str__(self) -> str:
        lines = [f"{shown(self.path)}: {self.kind}, threshold {self.threshold or 'not recorded'}"]
        lines += [f"  sha256 {digest}  {name}" for name, digest in self.digests.items()]
        width = max((len(m.name) for m in self.matrices), default=0)
        if self.matrices:
            lines.append(
                f"  {'matrix':{width}}  {'precision':14}  {'shape':>16}  "
                f"{'-1':>6}  {'0':>6}  {'+1':>6}  scales"
            )
        lines += [_row(matrix, width) for matrix in self.matrices]
        if not self.ok:
            lines += ["NOT a sound ternary model:"]
            lines += [f"  {problem}" for problem in self.problems]
        else:
            lines.append(
                f"{len(self.ternary)} of {number_of(len(self.matrices), 'matrix')} hold only -1, "
                f"0, +1 ({self.ternary_share:.1%} of the weights), with finite scales above 0; "
                f"stored as {self.stored}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "ok": self.ok}


def _row(matrix: Matrix, width: int) -> str:
    shape = f"[{matrix.shape[0]}, {matrix.shape[1]}]"
    shares = "".join(f"{share:8.1%}" for share in matrix.shares) if matrix.shares else " " * 24
    scales = ""
    if matrix.scale_min is not None:
        low, high = f"{matrix.scale_min:.4g}", f"{matrix.scale_max:.4g}"
        scales = low if low == high else f"{low} to {high}"
        scales += f" ({matrix.scales})" if matrix.scales > 1 else ""
    return f"  {matrix.name:{width}}  {matrix.precision:14}  {shape:>16}{shares}  {scales}".rstrip()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scale_problem(name: str, scale: Tensor) -> str | None:
    """What is wrong with a matrix's scales, a sentence; None where they are finite and above 0."""
    if bool((scale.isfinite() & (scale > 0)).all()):
        return None
    return f"{name} holds a value that is not finite and above 0"


def not_finite(name: str, tensor: Tensor) -> str | None:
    """A sentence about a tensor of floats that are not all finite; None for any other."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return None
    return f"{name} holds values that are not finite"
