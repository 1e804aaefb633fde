"""Whether a comparison of arms is fair in the units of the processor that multiply.

A tile unit multiplies several times as fast as the vectors beside it, and not every precision
has kernels for it (fp16 weights have none). An arm on tiles against one on vectors would show
what the units differ in, not what the weights do: so a speed-up of prompts and batches is only
called fair where both arms use the same kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from workbench.engine.engine import Engine

VECTORS = "vectors"


def uneven_units(units: Mapping[str, Iterable[str]]) -> str:
    """Why speed-ups of prompts and batches are not fair; '' where all arms use the same kind.

    units: of each arm, as :attr:`Engine.units` has them; an arm without any says nothing of them.
    """
    units = {arm: used for arm, used in units.items() if used}
    kinds = {arm: frozenset(unit == VECTORS for unit in used) for arm, used in units.items()}
    if len(set(kinds.values())) <= 1:
        return ""
    each = "; ".join(f"{arm}: {' and '.join(used)}" for arm, used in units.items())
    return (
        f"the arms multiply long prompts and large batches on different units ({each}), so their "
        "speed-ups there are not those of the weights alone"
    )


def backends(engines: Mapping[str, Engine]) -> str:
    """What computes, for a figure's ``how``: once, or for each arm where they differ."""
    names = {arm: engine.backend for arm, engine in engines.items()}
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return "; ".join(f"{arm}: {name}" for arm, name in names.items())
