"""The arm ``speculative``: what its counts and its pilot say, and what the verdict makes of it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from workbench.engine.speculation_counts import DraftCounts, SpeculationCounts
from workbench.measure.ab_figures import speculation_figures
from workbench.pilot.sections.measure_ab import USUAL_ARMS, MeasureAb


def test_acceptance_and_tokens_of_a_verification_come_from_the_counts() -> None:
    drafts = {"model": DraftCounts(25, 75, 65), "prompt_lookup": DraftCounts(9, 25, 15)}
    counts = SpeculationCounts(verifications=40, written=120, drafts=drafts)
    acceptance, written, *shares = speculation_figures("speculative", counts)
    assert (acceptance.value, written.value) == (0.8, 3.0)
    assert acceptance.how == "80 of 100 guesses kept, in 40 rounds"
    assert [(s.labels["draft"], s.value) for s in shares] == [
        ("model", 0.75),
        ("prompt_lookup", 0.25),
    ]
    assert shares[0].how == "75 of 100 guesses, of which 65 were kept"
    none = list(speculation_figures("speculative", SpeculationCounts()))
    assert [metric.value for metric in none] == [None, None]
    never = SpeculationCounts(5, 5, drafts={"model": DraftCounts()})
    assert [m.value for m in speculation_figures("speculative", never)] == [None, 1.0, None]


def test_the_arm_is_asked_for_and_needs_what_drafts_for_it() -> None:
    assert "speculative" not in USUAL_ARMS
    arms = MeasureAb(arms=["speculative", "ternary", "full_precision"]).own_arms
    assert arms == ["full_precision", "speculative", "ternary"]
    with pytest.raises(ValidationError, match="drafted by ternary: give both"):
        MeasureAb(arms=["full_precision", "speculative"])
