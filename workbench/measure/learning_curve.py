"""How a gap goes on with more training, from the part of its curve that was seen.

A saturating power law with a term for the learning rate's way down:

    gap(x) = end + change * (x^-b - 1) - d * (A(x) - A(1))

x are tokens over those of the whole run (1 at its end), counted from an origin; ``end - change`` is
what no amount of tokens repays (a gap may also grow towards what the capacity allows: change below
0), and A the share by which the learning rate has fallen from its peak. A stretched schedule ends
with the same A, so a longer run ends on end + change * (x^-b - 1). (That a loss follows the tokens
and the way down apart: Tissue et al. 2024, arXiv:2408.11029, here without the memory of its second
term.)

Of so few and noisy points no single fit is right, and a bootstrap of one is far too sure: many
exponents fit alike and differ by decades in what they foretell. So exponent and origin stand on a
grid. At each point of it end, change and d are weighted least squares in closed form, held to the
size of the curve itself; it counts by how well it fits, integrated over them and the noise, and
draws come from the whole grid (Student's t: the noise is known from the residuals alone). No such
law is exact and residuals follow one another, so a point counts for less than one: for
``TRUST`` of it, and less where its rest is like that of the point before. That is what makes the
intervals hold as often as they say (docs/studies.md has how often). Bounds: exponents around the
published ones; no floor below zero under a gap above it, ternary weights better than what they
approximate; origins from the run's first token to so long before the threshold was fully on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from workbench.wording.counts import number_of

EXPONENTS = np.geomspace(0.1, 1.6, 25)
"""Of a power law in tokens; published ones of losses lie between 0.1 and 0.5, of gaps up to 1."""
HEAD_STARTS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""What the full-precision part taught, in tokens with the threshold on, over those seen so."""
EXPECTED_CHANGE, EXPECTED_ANNEALING = 1.0, 0.5
"""Standard deviations, before anything was seen, of change and d over the size of the curve."""
TRUST = 0.35
"""Independent observations that a point of the curve counts for."""
FEWEST_POINTS = 6
"""Below it the unknowns and the noise are not told apart."""
DRAWS = 4000
FARTHEST = 1e4
"""Times the tokens that were trained: what needs more is not foretold from such a curve."""


@dataclass(frozen=True)
class Curve:
    """Points of one training, in the order of its tokens.

    tokens: seen since the training began. gap: bits a byte. weight: observations in each point.
    annealed: 1 - learning rate / peak at each. threshold_tokens: seen when the threshold was fully
    on; the points begin there.
    """

    tokens: np.ndarray
    gap: np.ndarray
    weight: np.ndarray
    annealed: np.ndarray
    threshold_tokens: float = 0.0

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> Curve:
        """The curve as it stood after its first ``count`` points."""
        return Curve(
            self.tokens[:count], self.gap[:count], self.weight[:count], self.annealed[:count],
            self.threshold_tokens,
        )  # fmt: skip


@dataclass(frozen=True)
class CurveDraws:
    """Draws of the curve, an entry each; see the module. noise: standard deviation of a point of
    weight 1."""

    last_tokens: float
    last_annealed: float
    origin: np.ndarray
    exponent: np.ndarray
    end: np.ndarray
    change: np.ndarray
    annealing: np.ndarray
    noise: np.ndarray
    seed: int = 0

    def gap(self, tokens: np.ndarray, annealed: np.ndarray) -> np.ndarray:
        """[draws, points] bits a byte, without the noise of a point."""
        origin = self.origin[:, None]
        share = (tokens[None, :] - origin) / (self.last_tokens - origin)
        fallen = share ** -self.exponent[:, None] - 1
        way = annealed - self.last_annealed
        return self.end[:, None] + self.change[:, None] * fallen - self.annealing[:, None] * way

    def ends(self, tokens: np.ndarray) -> np.ndarray:
        """[draws, points] the gap at the end of a training of so many tokens, this one stretched:
        origin and way down keep their shares."""
        times = tokens[None, :] / self.last_tokens
        fallen = times ** -self.exponent[:, None] - 1
        return self.end[:, None] + self.change[:, None] * fallen

    def seen(self, tokens: np.ndarray, annealed: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """[draws, points] as they would be measured, with the noise of points of that weight."""
        noise = np.random.default_rng(self.seed + 1).standard_normal((len(self.end), len(tokens)))
        return self.gap(tokens, annealed) + noise * self.noise[:, None] / np.sqrt(weight)

    def tokens_until(self, fall: float) -> np.ndarray:
        """[draws] tokens of a training, this one stretched, that ends ``fall`` bits a byte below
        the end of this one; inf where it never does, or not within ``FARTHEST`` times."""
        if fall <= 0:
            return np.full(len(self.end), self.last_tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = 1 - fall / self.change
            times = np.where((self.change > 0) & (rest > 0), rest ** (-1 / self.exponent), np.inf)
        return np.where(times <= FARTHEST, times * self.last_tokens, np.inf)


def fit(curve: Curve, *, draws: int = DRAWS, seed: int = 0) -> CurveDraws:
    """Raises ValueError for fewer than ``FEWEST_POINTS`` points."""
    if len(curve) < FEWEST_POINTS:
        raise ValueError(f"{number_of(len(curve), 'point')}, at least {FEWEST_POINTS}")
    random = np.random.default_rng(seed)
    axes = np.meshgrid(_origins(curve), EXPONENTS, indexing="ij")
    origin, exponent = (axis.ravel() for axis in axes)
    share = (curve.tokens - origin[:, None]) / (curve.tokens[-1] - origin[:, None])
    linear = _Linear.of(curve, share ** -exponent[:, None] - 1)
    odds = np.exp(linear.log_weight - logsumexp(linear.log_weight))
    chosen = random.choice(len(origin), 4 * draws, p=odds)
    end, change, annealing, noise = linear.draw(chosen, random)
    believed = np.flatnonzero((change <= 0) | (end - change >= np.minimum(end, 0.0)))
    kept = believed[:draws] if len(believed) >= draws // 20 else np.arange(draws)
    return CurveDraws(
        float(curve.tokens[-1]), float(curve.annealed[-1]), origin[chosen][kept],
        exponent[chosen][kept], end[kept], change[kept], annealing[kept], noise[kept], seed,
    )  # fmt: skip


def _origins(curve: Curve) -> list[float]:
    """Tokens from which x counts."""
    begun = min(curve.threshold_tokens, float(curve.tokens[0]))
    length = float(curve.tokens[-1]) - begun
    return [0.0, *(begun - length * share for share in HEAD_STARTS)]


@dataclass(frozen=True)
class _Linear:
    """end, change and d by weighted least squares at each of G points of the grid.

    solved: [G, 3]. spread: [G, 3, 3], of unit noise. size: [G] squares of the rest. freedom: of
    Student's t. counted: observations that a point counts for.
    """

    solved: np.ndarray
    spread: np.ndarray
    size: np.ndarray
    log_weight: np.ndarray
    freedom: float
    counted: float
    points: int

    @classmethod
    def of(cls, curve: Curve, fallen: np.ndarray) -> _Linear:
        """fallen: [G, n], x^-b - 1."""
        way = np.broadcast_to(curve.annealed[-1] - curve.annealed, fallen.shape)
        design = np.stack([np.ones_like(fallen), fallen, way], axis=2)
        weighted = design * curve.weight[:, None]
        scale = max(float(np.ptp(curve.gap)), float(abs(curve.gap).mean()), 1e-6)
        held = np.array([0.0, EXPECTED_CHANGE, EXPECTED_ANNEALING]) * scale
        prior = np.diag([0.0, *(_noise(curve) / held[1:]) ** 2])
        inner = np.einsum("gni,gnj->gij", weighted, design)
        right = np.einsum("gni,n->gi", weighted, curve.gap)
        solved = np.linalg.solve(inner + prior, right[..., None])[..., 0]
        rest = (curve.gap - np.einsum("gni,gi->gn", design, solved)) * np.sqrt(curve.weight)
        size = np.maximum((rest**2).sum(axis=1), 1e-18)
        counted = TRUST * _alone(rest[size.argmin()])
        inner = counted * inner + prior
        freedom = max(3.0, len(curve) * counted - 1)
        _, log_size = np.linalg.slogdet(inner)
        log_weight = -0.5 * log_size - 0.5 * freedom * np.log(size)
        return cls(solved, np.linalg.inv(inner), size, log_weight, freedom, counted, len(curve))

    def draw(
        self, chosen: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(end, change, d, noise of a point of weight 1) of the chosen points of the grid."""
        wide = np.sqrt(self.freedom / random.chisquare(self.freedom, len(chosen)))
        noise = np.sqrt(self.size[chosen] / max(1, self.points - 3))
        normal = random.standard_normal((len(chosen), 3)) * (noise * wide)[:, None]
        root = np.linalg.cholesky(self.spread)[chosen]
        end, change, annealing = (self.solved[chosen] + np.einsum("gij,gj->gi", root, normal)).T
        return end, change, annealing, noise


def _noise(curve: Curve) -> float:
    """Standard deviation of a point of weight 1, by the second differences of the points."""
    bent = curve.gap[:-2] - 2 * curve.gap[1:-1] + curve.gap[2:]
    inverse = 1 / curve.weight
    expected = inverse[:-2] + 4 * inverse[1:-1] + inverse[2:]
    return float(np.sqrt(np.mean(bent**2 / expected))) or 1e-9


def _alone(rest: np.ndarray) -> float:
    """Share of the points that count as independent, by how much each follows the one before."""
    size = float(rest @ rest)
    follow = float(rest[1:] @ rest[:-1]) / size if size > 0 else 0.0
    follow = min(0.9, max(0.0, follow))
    return (1 - follow) / (1 + follow)
