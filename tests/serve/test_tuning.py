"""What is made of a sweep: the chosen settings, figures, text, and what an arm carries."""

from __future__ import annotations

import pytest

from workbench.errors import StageError
from workbench.load.piece import LengthLimits
from workbench.measure.meters import EnergySession
from workbench.measure.statistics import Estimate
from workbench.serve import offer, tuning
from workbench.serve.carries import Carries
from workbench.serve.rate_search import LargestRate, Point, PointOutcome
from workbench.serve.spec import ServeSpec
from workbench.serve.tuned import (
    best_settings,
    points_table,
    searches_table,
    settings_text,
    tuned_answer,
    tuned_figures,
)
from workbench.serve.tuning import Searched, Setting, settings
from workbench.stages.deploy_rollback_tuning import with_tuning

LOAD_PER_S = 10.0


def point(
    rate: float,
    outcome: PointOutcome = "held",
    met: tuple[float, float | None, float | None] = (0.99, 0.96, 1.0),
    energy_j: float | None = None,
) -> Point:
    share = {"interactive": Estimate(*met, 500, "")}
    no_energy = "" if energy_j else "rapl: not there"
    return Point(rate, outcome, 5.0, 500, rate, share, energy_j=energy_j, no_energy=no_energy)


def searched(
    setting: Setting, *points: Point, arm: str = "hybrid", requests: str = "profile"
) -> Searched:
    held = [p.rate_per_s for p in points if p.outcome == "held"]
    failed = [p.rate_per_s for p in points if p.outcome != "held"]
    if held:
        found = LargestRate("found", max(held), min(failed, default=None), True, "why", points)
    else:
        found = LargestRate("none", None, min(failed), False, "failed at 5", points)
    return Searched(arm, requests, setting, found)


def test_settings_are_crossed_and_one_slot_waits_for_nobody() -> None:
    assert settings([1, 4], [0.0, 20.0]) == [Setting(1), Setting(4), Setting(4, 20.0)]


def test_the_cheapest_and_the_thriftiest_carry_the_load() -> None:
    """Two slots are thriftiest, but too slow for the load."""
    found = [
        searched(Setting(2), point(8.0, energy_j=1.0)),
        searched(Setting(4), point(30.0, energy_j=3.0), point(40.0, "overloaded")),
        searched(Setting(8), point(25.0, energy_j=2.0)),
    ]
    (best,) = best_settings(found, LOAD_PER_S)
    assert (best.cheapest.setting.slots, best.thriftiest.setting.slots) == (4, 8)
    (best,) = best_settings(found[:1], LOAD_PER_S)
    assert best.cheapest.setting.slots == 2, "none carries it: the best of what there is"
    text = settings_text(found, LOAD_PER_S)
    assert text.splitlines() == [
        "# hybrid, least machine time: 30 requests/s of the load within its targets, 3 times its "
        "rate, 3 J a request",
        "workbench serve RUN --slots 4 --batch-wait-ms 0",
        "deploy_rollback: {slots: 4, batch_wait_ms: 0}",
        "# hybrid, least energy: 25 requests/s of the load within its targets, 2.5 times its rate, "
        "2 J a request",
        "workbench serve RUN --slots 8 --batch-wait-ms 0",
        "deploy_rollback: {slots: 8, batch_wait_ms: 0}",
    ]
    table = searches_table(found, LOAD_PER_S)
    assert table["cheapest"].tolist() == [False, True, False]
    assert table["thriftiest"].tolist() == [False, False, True]
    assert points_table(found)["outcome"].tolist() == ["held", "held", "overloaded", "held"]


def test_what_was_not_found_has_its_reason() -> None:
    found = [searched(Setting(4), point(5.0, "missed", (0.5, None, None)))]
    assert settings_text(found, LOAD_PER_S) == "# hybrid: no setting: no rate held: failed at 5\n"
    figures = {m.name: m for m in tuned_figures(found, LOAD_PER_S, 2.0, "EUR")}
    assert figures["largest_rate_per_s"].reason == "no rate held: failed at 5"
    assert all(m.value is None for m in figures.values())

    found = [searched(Setting(4, 20.0), point(36.0))]
    figures = {m.name: m for m in tuned_figures(found, LOAD_PER_S, 2.0, "EUR")}
    rate = figures["largest_rate_per_s"]
    assert (rate.value, rate.lo, rate.basis) == (36.0, None, "sample")
    assert rate.labels == {
        "arm": "hybrid", "requests": "profile", "slots": "4", "batch_wait_ms": "20",
    }  # fmt: skip
    assert "not metered: rapl: not there" in figures["tuned_energy_j_per_request"].reason
    price = figures["tuned_cost_per_1k_requests"]
    assert price.value == pytest.approx(2.0 / 3600 / 36 * 1000) and price.unit == "EUR"
    assert figures["largest_rate_over_load"].value == 3.6
    assert "not metered: rapl" in settings_text(found, LOAD_PER_S)


def test_a_server_that_does_not_start_leaves_its_searches_not_measured(
    tmp_path, monkeypatch
) -> None:
    """The first setting's server dies; nothing is asked of it again, the second one is tried."""
    asked = []

    def dies(spec, folder):
        asked.append(spec.slots)
        raise StageError("the server ended with code 1; the end of its log:\n    a\n    no memory")

    monkeypatch.setattr(tuning, "server_process", dies)
    slo = {"interactive": {"ttft_ms": 500.0}, "batch": {"e2e_s": None}}
    spec = ServeSpec({"hybrid": tmp_path}, fallback="hybrid", route="hybrid")
    plan = tuning.TuningPlan(
        spec, settings([2, 4], [0.0]), [1, 999], 512, offer.Terms(slo, 0.95, 10.0), 60.0
    )
    with EnergySession([]) as meters:
        found = tuning.sweep(plan, None, LengthLimits(), meters, tmp_path)
    assert asked == [2, 4]
    assert [each.found.kind for each in found] == ["not_measured"] * 6
    died = "the server ended with code 1; the end of its log: no memory"
    untargeted = "requests of class batch have no target (profile_load.batch_slo)"
    assert [each.found.why for each in found] == [died, untargeted, died] * 2


def answer(*found: Searched, cut_share: float = 0.0) -> Carries | None:
    return tuned_answer("hybrid", found, LOAD_PER_S, cut_share=cut_share, wanted_share=0.95)


def test_the_tuning_says_whether_an_arm_carries_the_load() -> None:
    wide = (0.97, None, None)
    good, open_ = searched(Setting(4), point(20.0)), searched(Setting(4), point(20.0, met=wide))
    fails = searched(Setting(2), point(4.0), point(6.0, "overloaded"))
    misses = searched(Setting(2), point(9.0, "missed", (0.5, 0.4, 0.6)))
    unsure = searched(Setting(2), point(9.0, "missed", (0.9, None, None)))
    assert answer(good) == answer(fails, good) == Carries("yes", "tuned", 2.0)
    assert answer(good, cut_share=0.2) == Carries("not_measured", "tuned_cut", 2.0)
    assert answer(open_) == Carries("not_measured", "tuned_open", 2.0)
    assert answer(fails) == Carries("no", "tuned", 0.6)
    assert answer(fails, misses) == Carries("no", "tuned", 0.9)
    assert answer(unsure) is None and answer() is None
    assert answer(searched(Setting(4), point(20.0), requests="tokens_1")) is None


def test_the_tuning_adds_to_what_the_replay_says() -> None:
    good = [searched(Setting(4), point(20.0))]
    fails = [searched(Setting(2), point(4.0), point(6.0, "overloaded"))]

    def said(replay: Carries, found: list[Searched]) -> Carries:
        more = {"cut_share": 0.0, "wanted_share": 0.95}
        return with_tuning({"hybrid": replay}, found, LOAD_PER_S, **more)["hybrid"]

    yes, slower = Carries("yes", "met", 1.0), Carries("not_measured", "slower", 0.3)
    missed = Carries("no", "missed", 0.9)
    assert said(yes, fails) == yes
    assert said(slower, good) == said(missed, good) == Carries("yes", "tuned", 2.0)
    assert said(slower, fails) == Carries("no", "tuned", 0.6)
    assert said(slower, []) == slower and said(missed, []) == missed
