"""What the text will be enough for, told before anything starts: two things that a run would only
say after the training.

Whether a document is held out is decided by its id, so the held-out ones can be counted by looking
at the documents alone; one that shares too much with the training text is left out later, so there
are at most so many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from workbench.data.corpus import Ahead, look_ahead
from workbench.measure.fewest import FEWEST_DOCUMENTS
from workbench.paths import shown
from workbench.pilot.spec import Pilot
from workbench.report.next_steps import MOST_HELD_OUT
from workbench.wording.counts import number_of

SPARE = 1.1
"""Documents held out for each that is needed: some will be left out."""
SPARE_UNSEEN = 1.25
"""The same where it is not known which documents these will be."""
JUDGED = ("quality_gap", "bits_per_byte", "corpus_quality_gap", "corpus_bits_per_byte")
"""How the metrics begin that are made of held-out documents."""


def text_ahead(pilot: Pilot) -> Iterator[str]:
    """Sentences about what ``data.max_bytes`` leaves out of local text, and about too few documents
    to judge for an interval of the quality, with what to change."""
    ahead = look_ahead(pilot.data, pilot.seed, FEWEST_DOCUMENTS)
    for corpus, size, share in ahead.taken:
        yield (
            f"data.max_bytes takes {share * size / 1e6:.1f} MB, and {shown(Path(corpus))} has "
            f"{size / 1e6:.1f}: --set data.max_bytes={_rounded(pilot.data.max_bytes / share)} "
            "takes all of it"
        )
    held = max(1, sum(point < pilot.data.holdout_share for point in ahead.points))
    judged = pilot.measure_ab.quality_documents
    if ahead.whole and ahead.points and held < FEWEST_DOCUMENTS:
        yield (
            f"{number_of(held, 'document')} of {len(ahead.points)} will be held out, at most "
            f"(data.holdout_share {pilot.data.holdout_share:g}), and {_too_few(pilot)}: "
            f"{_more_held_out(pilot, ahead)}"
        )
    if judged < FEWEST_DOCUMENTS:
        yield (
            f"{number_of(judged, 'held-out document')} will be judged "
            f"(measure_ab.quality_documents), and {_too_few(pilot)}: "
            f"--set measure_ab.quality_documents={FEWEST_DOCUMENTS} or more"
        )


def _too_few(pilot: Pilot) -> str:
    gates = dict.fromkeys(
        gate.metric for gate in pilot.report.gates if gate.metric.startswith(JUDGED)
    )
    undecided = f", so the gate {' and '.join(gates)} cannot be decided" if gates else ""
    return f"an interval of the quality needs {FEWEST_DOCUMENTS}{undecided}"


def _more_held_out(pilot: Pilot, ahead: Ahead) -> str:
    """What to change so that there are enough, and some to spare."""
    wanted = math.ceil(SPARE * FEWEST_DOCUMENTS)
    ways = []
    if wanted < len(ahead.points):
        share = math.ceil(100 * ahead.points[wanted - 1] + 0.5) / 100
        if share <= MOST_HELD_OUT:
            ways.append(f"--set data.holdout_share={share:g}")
    if ahead.taken:
        all_of_it = len(ahead.points) / min(share for _, _, share in ahead.taken)
        share = math.ceil(100 * SPARE_UNSEEN * FEWEST_DOCUMENTS / all_of_it) / 100
        if share <= pilot.data.holdout_share:
            ways.append("all of the text")
        elif share <= MOST_HELD_OUT:
            ways.append(f"all of the text and --set data.holdout_share={share:g}")
    needed = math.ceil(wanted / pilot.data.holdout_share / 10) * 10
    ways.append(f"more text, about {number_of(needed, 'document', form=',')} at this share")
    return ", or ".join(ways)


def _rounded(size: float) -> int:
    """Up to two digits."""
    step = 10 ** max(0, math.floor(math.log10(size)) - 1)
    return math.ceil(size / step) * step
