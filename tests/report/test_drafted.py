"""The verdict's line on full precision drafted by ternary, in both languages."""

from __future__ import annotations

from types import SimpleNamespace

from workbench.records.metric import Metric
from workbench.report.verdict import _drafted
from workbench.wording.text import Texts


def measured(*metrics: Metric, exact: bool = True) -> SimpleNamespace:
    def metric(name: str, **labels: str) -> Metric | None:
        return next((m for m in metrics if m.matches(name, labels)), None)

    return SimpleNamespace(
        metrics=list(metrics), metric=metric, facts={"drafted_to_the_bit": exact}
    )


def test_it_says_equal_quality_the_speed_and_the_memory_of_both() -> None:
    labels = {"arm": "speculative", "source": "trained"}
    figures = [
        Metric("speedup", 1.1, "x", "", labels=labels | {"class": "interactive_1"}),
        Metric("speedup", 1.9, "x", "", labels=labels | {"class": "interactive_512"}),
        Metric("memory_ratio", 1 / 1.17, "x", "", "derived", labels=labels),
        Metric("draft_acceptance", 0.81, "share", "", labels=labels),
    ]
    (sentence,) = _drafted(measured(*figures))
    english, russian = (Texts(lang)(sentence.code, **sentence.values) for lang in ("en", "ru"))
    assert (
        "quality equal by construction;" in english
        and "1.9 times" in english
        and "takes 1.17" in english
    )
    assert "81 % of the guesses were right" in english
    assert "качество равно по построению" in russian and "1,9" in russian and "1,17" in russian
    by = [
        Metric("draft_share", share, "share", "", labels=labels | {"draft": draft})
        for draft, share in (("model", 0.7), ("prompt_lookup", 0.3))
    ]
    _, shares = _drafted(measured(*figures, *by))
    assert "70 % of the guesses were the ternary model's, 30 % were looked up" in Texts()(
        shares.code, **shares.values
    )
    assert "70 %" in Texts("ru")(shares.code, **shares.values)
    assert _drafted(measured(*figures[2:])) == []
    (rounded,) = _drafted(measured(*figures, exact=False))
    assert "but for the last bits" in Texts()(rounded.code, **rounded.values)
