"""The arm ``speculative``: what its counts and its pilot say, and what the verdict makes of it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from workbench.engine.speculative import SpeculationCounts
from workbench.measure.ab_figures import speculation_figures
from workbench.pilot.sections.measure_ab import USUAL_ARMS, MeasureAb


def test_acceptance_and_tokens_of_a_verification_come_from_the_counts() -> None:
    counts = SpeculationCounts(verifications=40, guessed=100, accepted=80, written=120)
    acceptance, written = speculation_figures("speculative", counts)
    assert (acceptance.value, written.value) == (0.8, 3.0)
    assert acceptance.how == "80 of 100 guesses kept, in 40 rounds"
    none = list(speculation_figures("speculative", SpeculationCounts()))
    assert [metric.value for metric in none] == [None, None]
    never = SpeculationCounts(verifications=5, written=5)
    assert [m.value for m in speculation_figures("speculative", never)] == [None, 1.0]


def test_the_arm_is_asked_for_and_needs_what_drafts_for_it() -> None:
    assert "speculative" not in USUAL_ARMS
    arms = MeasureAb(arms=["speculative", "ternary", "full_precision"]).own_arms
    assert arms == ["full_precision", "speculative", "ternary"]
    with pytest.raises(ValidationError, match="drafted by ternary: give both"):
        MeasureAb(arms=["full_precision", "speculative"])
