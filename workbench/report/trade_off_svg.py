"""One half of the picture as SVG: marks with intervals, lines of gates, every arm named beside it.

Plain SVG costs a few kilobytes, prints sharply and needs no script. Its colours are those of the
page or of the Lab it lies in, so it follows light and dark by itself.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from workbench.records.metric import Metric
from workbench.report.palette import ARM_COLOURS, GREY
from workbench.wording.numbers import number

WIDTH, HEIGHT = 420, 318
LEFT, RIGHT, TOP, BOTTOM = 52, 408, 34, 262
RADIUS, LETTER, LINE = 6.5, 6.7, 14
RATIOS = (
    0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5,
    7, 10, 15, 20, 30, 50, 100,
)  # fmt: skip
"""Where a logarithmic axis may have a tick."""
MOST_TICKS = 6
LETTERS_ACROSS = 54
"""Of an axis title in one line."""
FAR = 1.0
"""An interval's end stretches an axis by at most this much of what the values span."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Mark:
    """An arm: its name in words, and its figures across and up."""

    arm: str
    name: str
    x: Metric
    y: Metric


@dataclass(frozen=True)
class GateLine:
    limit: float
    text: str


@dataclass(frozen=True)
class Half:
    """baseline: the name of what all is compared with, at (1, 0)."""

    x_title: str
    y_title: str
    marks: list[Mark]
    baseline: str
    x_lines: list[GateLine] = field(default_factory=list)
    y_lines: list[GateLine] = field(default_factory=list)


def half_svg(half: Half, language: str) -> Markup:
    """The half as one ``svg`` element, for the eyes alone: its words stand beside it."""
    x_range = _range([m.x for m in half.marks], [1.0, *(g.limit for g in half.x_lines)], log=True)
    y_range = _range([m.y for m in half.marks], [0.0, *(g.limit for g in half.y_lines)])
    to_x, to_y = _scale(x_range, LEFT, RIGHT, log=True), _scale(y_range, BOTTOM, TOP)
    parts = [
        *_axes(half, x_range, y_range, language),
        *_gates(half, to_x, to_y),
        *(_whiskers(mark, to_x, to_y) for mark in half.marks),
        _baseline(to_x(1.0), to_y(0.0)),
        *(_dot(to_x(mark.x.value), to_y(mark.y.value), mark.arm) for mark in half.marks),
        *_names(half, to_x, to_y),
    ]
    return Markup(
        f'<svg class="wb-half" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">'
        + "".join(parts)
        + "</svg>"
    )


def _range(
    metrics: Sequence[Metric], anchors: Sequence[float], *, log: bool = False
) -> tuple[float, float]:
    """What an axis shows: the values and anchors, and the intervals as far as they are near."""
    make, back = (math.log, math.exp) if log else (float, float)
    values = [m.value for m in metrics if m.value is not None]
    shown = [make(v) for v in (*values, *anchors) if not log or v > 0]
    low, high = min(shown), max(shown)
    span = (high - low) or abs(high) or 1.0
    ends = [e for m in metrics for e in (m.lo, m.hi) if e is not None and (not log or e > 0)]
    near = [min(max(make(e), low - FAR * span), high + FAR * span) for e in ends]
    low, high = min([low, *near]), max([high, *near])
    return back(low - 0.08 * (high - low)), back(high + 0.08 * (high - low))


def _scale(ends: tuple[float, float], start: float, stop: float, *, log: bool = False):
    make = math.log if log else float
    low, high = make(ends[0]), make(ends[1])

    def place(value: float | None) -> float:
        inner = make(value) if value is not None and (not log or value > 0) else low
        share = min(1.0, max(0.0, (inner - low) / (high - low)))
        return start + share * (stop - start)

    return place


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    if log:
        found = [tick for tick in RATIOS if low <= tick <= high]
        while len(found) > MOST_TICKS:
            kept = [t for place, t in enumerate(found) if place % 2 == found.index(1) % 2]
            found = kept if 1 in found else found[::2]
        return found
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= MOST_TICKS)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]


def _axes(
    half: Half, x_range: tuple[float, float], y_range: tuple[float, float], language: str
) -> Iterable[str]:
    to_x, to_y = _scale(x_range, LEFT, RIGHT, log=True), _scale(y_range, BOTTOM, TOP)
    for tick in _ticks(*y_range):
        y = to_y(tick)
        yield f'<path class="wb-grid" d="M{LEFT} {y:.1f}H{RIGHT}"/>'
        yield _text(LEFT - 6, y + 4, number(tick, language), "end", "wb-tick")
    for tick in _ticks(*x_range, log=True):
        x = to_x(tick)
        yield f'<path class="wb-grid" d="M{x:.1f} {TOP}V{BOTTOM}"/>'
        yield _text(x, BOTTOM + 17, number(tick, language), "middle", "wb-tick")
    yield f'<path class="wb-zero" d="M{LEFT} {to_y(0):.1f}H{RIGHT}M{to_x(1):.1f} {TOP}V{BOTTOM}"/>'
    yield _text(4, 15, half.y_title, "start", "wb-axis")
    for place, line in enumerate(textwrap.wrap(half.x_title, LETTERS_ACROSS)):
        yield _text(RIGHT, BOTTOM + 36 + LINE * place, line, "end", "wb-axis")


def _gates(half: Half, to_x, to_y) -> Iterable[str]:
    for line in half.y_lines:
        yield f'<path class="wb-gate" d="M{LEFT} {to_y(line.limit):.1f}H{RIGHT}"/>'
    for line in half.x_lines:
        yield f'<path class="wb-gate" d="M{to_x(line.limit):.1f} {TOP}V{BOTTOM}"/>'


def _whiskers(mark: Mark, to_x, to_y) -> str:
    x, y = to_x(mark.x.value), to_y(mark.y.value)
    paths = []
    left, right = _ends(mark.x, to_x)
    low, high = _ends(mark.y, to_y)
    paths += [f"M{left:.1f} {y:.1f}H{right:.1f}"] if left != right else []
    paths += [f"M{x:.1f} {low:.1f}V{high:.1f}"] if low != high else []
    return f'<path class="wb-interval" d="{"".join(paths)}"/>' if paths else ""


def _ends(metric: Metric, place: Callable[[float | None], float]) -> tuple[float, float]:
    """Where the interval of ``metric`` begins and ends; an open end goes to the frame."""
    if metric.lo is None and metric.hi is None:
        return place(metric.value), place(metric.value)
    low = place(-math.inf if metric.lo is None else metric.lo)
    return low, place(math.inf if metric.hi is None else metric.hi)


def _baseline(x: float, y: float) -> str:
    return f'<circle class="wb-base" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"/>'


def _dot(x: float, y: float, arm: str) -> str:
    colour = ARM_COLOURS.get(arm, GREY)
    return (
        f'<circle class="wb-dot" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{colour}"'
        f' data-arm="{escape(arm)}"/>'
    )


def _names(half: Half, to_x, to_y) -> Iterable[str]:
    """The name of each mark and line, where it covers neither a mark nor another name."""
    marks = [(to_x(m.x.value), to_y(m.y.value), m.name) for m in half.marks]
    marks.append((to_x(1.0), to_y(0.0), half.baseline))
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y, _ in marks]
    taken += [(LEFT, to_y(0) - 1, RIGHT, to_y(0) + 1), (to_x(1) - 1, TOP, to_x(1) + 1, BOTTOM)]
    for mark in half.marks:
        (left, right), (low, high) = _ends(mark.x, to_x), _ends(mark.y, to_y)
        x, y = to_x(mark.x.value), to_y(mark.y.value)
        taken += [(left, y - 1, right, y + 1), (x - 1, high, x + 1, low)]
    for line in half.y_lines:
        y = to_y(line.limit)
        taken.append((LEFT, y - 1, RIGHT, y + 1))
        yield from _put(RIGHT - 4, y, [line.text], taken, "wb-gate-name", sides=(-1,))
    for line in half.x_lines:
        x = to_x(line.limit)
        taken.append((x - 1, TOP, x + 1, BOTTOM))
        yield from _put(x, TOP + 10, textwrap.wrap(line.text, 16), taken, "wb-gate-name")
    for x, y, name in marks:
        yield from _put(x, y, textwrap.wrap(name, 16), taken, "wb-name")


def _put(
    x: float, y: float, lines: list[str], taken: list[Box], kind: str,
    sides: tuple[int, ...] = (1, -1),
) -> Iterable[str]:  # fmt: skip
    """The lines beside (x, y), at the first free place; a thin line leads to one further away."""
    width, height = LETTER * max(map(len, lines)), LINE * len(lines)
    places = [
        (side, away, _box(x, y, side, away, width, height))
        for away in (0, *(sign * step for step in range(7, 200, 7) for sign in (-1, 1)))
        for side in sides
    ]
    side, away, box = next((one for one in places if _free(one[2], taken)), places[0])
    taken.append(box)
    edge = box[0] if side > 0 else box[2]
    if abs(away) > height / 2 + 8 and kind == "wb-name":
        near = box[3] if away < 0 else box[1]
        yield f'<path class="wb-lead" d="M{x:.1f} {y:.1f}L{edge:.1f} {near:.1f}"/>'
    for place, line in enumerate(lines):
        anchor = "start" if side > 0 else "end"
        yield _text(edge, box[1] + 11 + place * LINE, line, anchor, kind)


def _box(x: float, y: float, side: int, away: float, width: float, height: float) -> Box:
    left = x + 11 if side > 0 else x - 11 - width
    top = y - height / 2 + away
    return (left, top, left + width, top + height)


def _free(box: Box, taken: Iterable[Box]) -> bool:
    inside = box[0] >= LEFT and box[2] <= RIGHT and box[1] >= TOP and box[3] <= BOTTOM
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
        for other in taken
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
