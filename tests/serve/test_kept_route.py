"""The route over a restart, of servers that stand before others: the file of ``--state``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from workbench.cli import main
from workbench.errors import ConfigError, StageError
from workbench.serve.canary import Canary, CanaryPlan
from workbench.serve.kept_route import KeptRoute, change_route
from workbench.serve.routed import Route, RouteHeld, ServedArm, Switch
from workbench.serve.router import Router
from workbench.serve.served_run import serve_run
from workbench.serve.spec import Ready, ServeSpec

BOTH = ["today=http://127.0.0.1:1/v1", "candidate=http://127.0.0.1:2/v1"]
PLAN = CanaryPlan((0.05, 1.0), step_s=1.0, step_requests=1)
TAKEN_BACK = Switch(0.0, "candidate", "today", 1.0, "rule: 5 of 9 failed", "rule", held_s=30.0)


@pytest.fixture
def started(monkeypatch) -> list[ServeSpec]:
    """What was served; each server takes its candidate back at once."""
    found: list[ServeSpec] = []

    def start(given: ServeSpec, announce: Any, token: str, on_switch: Any) -> None:
        found.append(given)
        announce(Ready("127.0.0.1", 9, 1, 1, 1, {}))
        if given.route == "candidate":
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
