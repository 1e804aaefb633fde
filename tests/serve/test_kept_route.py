"""The route over a restart, of servers that stand before others: the file of ``--state``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from workbench.cli import main
from workbench.errors import ConfigError, StageError
from workbench.serve.canary import Canary, CanaryPlan
from workbench.serve.kept_route import KeptRoute, change_route
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, RouteHeld, ServedArm, Switch
from workbench.serve.router import Router
from workbench.serve.served_run import serve_run
from workbench.serve.spec import Ready, ServeSpec

BOTH = ["today=http://127.0.0.1:1/v1", "candidate=http://127.0.0.1:2/v1"]
PLAN = CanaryPlan((0.05, 1.0), step_s=1.0, step_requests=1)
EVIDENCE = {"of": {}, "monitors": {}}
TAKEN_BACK = Switch(0.0, "candidate", "today", 1.0, "rule: 5 of 9 failed", "rule", held_s=30.0)


@pytest.fixture
def started(monkeypatch) -> list[ServeSpec]:
    """What was served; each server takes its candidate back at once."""
    found: list[ServeSpec] = []

    def start(
        given: ServeSpec, announce: Any, token: str, on_switch: Any, on_evidence: Any
    ) -> None:
        found.append(given)
        announce(Ready("127.0.0.1", 9, 1, 1, 1, {}))
        if given.route == "candidate":
            on_evidence(EVIDENCE)
            if len(found) != 3:
                on_switch(TAKEN_BACK)

    monkeypatch.setattr("workbench.serve.served_run.serve", start)
    return found


def test_a_candidate_that_was_taken_back_stays_so_over_a_restart(started, tmp_path, capsys) -> None:
    state = tmp_path / "route.json"
    for _ in range(2):
        serve_run(BOTH, state=state, canary=PLAN)
    assert [(spec.route, spec.weight) for spec in started] == [("candidate", 0.05), ("today", 1.0)]
    assert started[0].held_s == 0.0 and 29.0 < started[1].held_s <= 30.0
    assert {spec.candidate for spec in started} == {"candidate"}
    assert started[1].canary == PLAN, "it goes on once somebody orders the candidate"
    said = capsys.readouterr().out
    assert "workbench route " in said and "not kept" not in said

    with pytest.raises(StageError, match="it may grow again in"):
        change_route(state, "candidate", 0.05)
    with pytest.raises(ConfigError, match="today, candidate"):
        change_route(state, "hybrid", 1.0)
    assert "candidate answers 5%" in change_route(state, "candidate", 0.05, force=True)
    serve_run(BOTH, state=state, canary=PLAN)
    assert (started[2].route, started[2].weight) == ("candidate", 0.05)
    assert started[2].evidence is None, "what was taken back begins anew"
    serve_run(BOTH, state=state, canary=PLAN)
    assert (started[3].weight, started[3].evidence) == (0.05, EVIDENCE)

    others = ["else=http://127.0.0.1:3/v1", BOTH[0]]
    with pytest.raises(ConfigError, match="is of today, candidate"):
        serve_run(others, state=state)
    with pytest.raises(ConfigError, match="a file in a folder that is there"):
        serve_run(BOTH, state=tmp_path / "no folder" / "route.json")
    serve_run(BOTH)
    assert "the route is not kept" in capsys.readouterr().out


def test_a_hold_goes_on_over_a_restart() -> None:
    async def grown() -> Router:
        arms = [ServedArm(name, None, 1) for name in ("today", "candidate")]
        router = Router(arms, fallback="today", route=Route("today"), held_s=60.0)
        with pytest.raises(RouteHeld):
            router.switch("candidate", 0.1)
        canary = Canary(PLAN, router, candidate="candidate")
        assert canary.state == "taken back"
        router.switch("candidate", 0.05, force=True)
        assert canary.state == "ascending"
        return router

    assert asyncio.run(grown()).switches[-1].held_s == 0.0


def test_a_candidate_has_one_life_over_restarts() -> None:
    """Two errors before, two after: together what four in one life are."""

    def router(rule: RollbackRule | None) -> Router:
        arms = [ServedArm(name, None, 1) for name in ("today", "candidate")]
        made = Router(arms, fallback="today", route=Route("candidate", 0.5), rule=rule)
        made.trial.with_pairs()
        return made

    def fails(routed: Router, times: int) -> None:
        monitor = routed.trial._monitor
        for number in range(times):
            monitor.arrived((id(routed), number), True, 0.5, ("errors",))
            monitor.known("errors", (id(routed), number), True)
            monitor.compared("disagreement", 0.9)

    rule = RollbackRule()
    whole, first, second = router(rule), router(rule), router(rule)
    fails(whole, 4)
    fails(first, 2)
    kept = json.loads(json.dumps(first.trial.kept()))
    assert second.trial.go_on_from(kept)
    assert second.trial.report() == pytest.approx(first.trial.report(), abs=1e-12)
    fails(second, 2)
    assert second.trial.report() == pytest.approx(whole.trial.report(), abs=1e-9)
    assert second.trial.said() == whole.trial.said()
    assert second.trial.evidence() > 0
    for other in (router(None), router(RollbackRule(max_error_share=0.2))):
        assert not other.trial.go_on_from(kept) and other.trial.evidence() == 0
    broken = router(rule)
    assert not broken.trial.go_on_from({**kept, "monitors": {"errors": {}}})
    assert broken.trial.evidence() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--show", "--back"], "--back and --show"),
        (["--to", "candidate", "--show"], "--to candidate and --show"),
        (["--weight", "0.1"], "without an arm"),
    ],
)
def test_orders_that_contradict_are_wrong_commands(
    started, tmp_path: Path, monkeypatch, capsys, options: list[str], says: str
) -> None:
    state = tmp_path / "route.json"
    serve_run(BOTH, state=state)

    def ordered(*more: str) -> object:
        monkeypatch.setattr("sys.argv", ["workbench", "route", str(state), *more])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code

    assert ordered(*options) == 2 and says in capsys.readouterr().err
    before = KeptRoute.of(state)
    assert ordered("--show") in (0, None) and "today answers 100%" in capsys.readouterr().out
    assert KeptRoute.of(state) == before
