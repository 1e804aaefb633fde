"""Which weights become -1, 0 or +1: the threshold version.

Three rounding rules, several statistics and three granularities coexist in public code, and a
checkpoint trained under one gives other numbers under another. So the whole rule is one value
that travels in every checkpoint and artefact; loading under another is an error naming both.

With s the statistic over a cell (tensor, row, or 128 inputs of a row):

- ``absmean``  s = mean |w|,   code = clamp(round(w/s), -1, 1), value = code * s
- ``absmedian`` the same with the (lower) median of |w|
- ``twn``      code = sign(w) where |w| > ratio * mean |w|, value = code * mean of those |w|
- ``learned``  s = alpha / 1.5 with a trained alpha (ParetoQ's SEQ; it starts at max |w|)
- ``least_squares`` no training rule: codes and scale that minimise the squared error of the
  weights (:mod:`workbench.ternary.post_training`)

With a ``rotation`` the weights are first turned, in blocks of inputs, by a Hadamard matrix, and so
is what the layer takes: y = Q3(W H) Q8(H x), where H H = 1, so unrounded nothing changes. Outliers
are spread over their block, which the rounding of weights and activations has less to lose by. A
layer's block is the largest power of two that divides its width, and at most ``rotation``.

Sources: BitNet b1.58 (arXiv 2402.17764), TWN (1605.04711), LSQ (1902.08153), ParetoQ (2502.02631).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from workbench.errors import ConfigError
from workbench.pilot.problems import validated
from workbench.pilot.sections.model import Threshold

ThresholdRule = Literal["absmean", "absmedian", "twn", "learned", "least_squares"]
Granularity = Literal["tensor", "row", "group128"]
Rounding = Literal["half_even", "half_up", "half_away"]
Rotation = Literal["none", 128, 256, 512, 1024]

StrictPositive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class ThresholdVersion:
    """rounding: where |w/s| is exactly one half; ``half_up`` is floor(x + 0.5).
    eps: least value of the statistic. ratio: of the mean magnitude, for ``twn`` only.
    rotation: the largest block of inputs that is turned together, or ``none``.

    >>> from workbench.api import ThresholdVersion
    >>> str(ThresholdVersion(granularity="row"))
    'absmean/row/half_even/eps1e-5'
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    rule: ThresholdRule = "absmean"
    granularity: Granularity = "tensor"
    rounding: Rounding = "half_even"
    eps: StrictPositive = 1e-5
    ratio: StrictPositive = 0.75
    rotation: Rotation = "none"

    @property
    def id(self) -> str:
        """Short text such as ``absmean/tensor/half_even/eps1e-5``, or that and ``/rot512``."""
        rule = f"twn{self.ratio:g}" if self.rule == "twn" else self.rule
        eps = f"{self.eps:g}".replace("e-0", "e-")
        turned = "" if self.rotation == "none" else f"/rot{self.rotation}"
        return f"{rule}/{self.granularity}/{self.rounding}/eps{eps}{turned}"

    @property
    def rotates(self) -> int:
        """The largest block of the rotation; 0 for none."""
        return 0 if self.rotation == "none" else self.rotation

    def __str__(self) -> str:
        return self.id

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_section(cls, section: Threshold) -> ThresholdVersion:
        return cls(**section.model_dump())

    @classmethod
    def from_json(cls, value: Any, where: str) -> ThresholdVersion:
        """Read what :meth:`to_json` wrote. Raises ConfigError; ``where`` names the file.

        A version written before there were rotations has none."""
        known = {"rotation": "none", **value} if isinstance(value, dict) else value
        return validated(cls, known, where)

    def require(self, expected: ThresholdVersion | None, where: str) -> None:
        """Raise ConfigError naming both versions unless ``expected`` is None or this one."""
        if expected is not None and expected.id != self.id:
            raise ConfigError(
                f"{where} has threshold version {self.id}, but {expected.id} is asked",
                next_step="set model.threshold to the file's version, or train again under yours",
            )
