"""Which files of a folder are a corpus: patterns of what to include and what to leave out.

``*`` and ``?`` stand for characters of one name, ``**`` for any folders between. A pattern without
a slash means a file of that name wherever it lies. A pattern that fits nothing is a slip of the
pen, and is refused with what there is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import ConfigError
from workbench.wording.counts import number_of

EXAMPLES = 6
UNNAMED = "fits no include pattern"


@dataclass(frozen=True)
class Selection:
    """taken: names of files, in their order. left_out: pattern that left files out -> how many;
    :data:`UNNAMED` for those that no pattern of ``include`` fits."""

    taken: list[str]
    left_out: dict[str, int]

    def __str__(self) -> str:
        out = ", ".join(f"{count} by {pattern}" for pattern, count in self.left_out.items())
        return f"{number_of(len(self.taken), 'file')} taken" + (f", left out: {out}" if out else "")


def select(
    names: Sequence[str], include: Sequence[str], exclude: Sequence[str], where: str
) -> Selection:
    """names: relative, with slashes. include: none takes all.

    Raises ConfigError, about ``where``, for a pattern that fits none and where nothing is left.

    >>> select(["a.md", "b/c.md", "b/d.txt"], ["**/*.md"], ["b/*"], "x").taken
    ['a.md']
    """
    wanted = {pattern: _compiled(pattern) for pattern in include}
    unwanted = {pattern: _compiled(pattern) for pattern in exclude}
    for field, patterns in (("include", wanted), ("exclude", unwanted)):
        for pattern, regex in patterns.items():
            if not any(map(regex.fullmatch, names)):
                raise ConfigError(
                    f"{where}: data.{field}: {pattern!r} fits none of "
                    f"{number_of(len(names), 'file')}",
                    allowed=f"patterns of what is there: {_examples(names)}",
                    next_step="*.md fits names wherever they lie, docs/**/*.md those below docs",
                )
    taken, left_out = [], Counter[str]()
    for name in names:
        out = next((p for p, regex in unwanted.items() if regex.fullmatch(name)), None)
        if out is None and wanted and not any(r.fullmatch(name) for r in wanted.values()):
            out = UNNAMED
        if out is None:
            taken.append(name)
        else:
            left_out[out] += 1
    if not taken:
        raise ConfigError(
            f"{where}: data.include and data.exclude leave none of {number_of(len(names), 'file')}",
            allowed=f"patterns that leave some of what is there: {_examples(names)}",
        )
    return Selection(taken, dict(left_out))


def _examples(names: Sequence[str]) -> str:
    step = max(1, len(names) // EXAMPLES)
    some = names[::step][:EXAMPLES]
    return ", ".join(some) + (", ..." if len(names) > len(some) else "")


def _compiled(pattern: str) -> re.Pattern[str]:
    whole = pattern if "/" in pattern else f"**/{pattern}"
    made, place = "", 0
    for found in re.finditer(r"\*\*/|\*\*|\*|\?", whole):
        made += re.escape(whole[place : found.start()])
        made += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}[found[0]]
        place = found.end()
    return re.compile(made + re.escape(whole[place:]), re.DOTALL)
