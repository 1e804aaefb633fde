"""The route of a server, kept in a file: in the run's folder, or where ``--state`` says.

A server that is started again goes on with the route that the last one had, a rollback and its hold
included, and ``workbench route`` finds the server and the token that its route is changed with. The
token is a secret of this user: the file is for him alone, and no record has it.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench.errors import ConfigError, StageError, reason_of
from workbench.files import read_json, replacing
from workbench.paths import shown
from workbench.records.run import Run
from workbench.serve.routed import RouteHeld

FILE = "serving.json"
TOKEN_HEADER = "x-workbench-token"
TOKEN_VARIABLE = "WORKBENCH_ROUTE_TOKEN"
ASK_S = 10.0


@dataclass(frozen=True)
class KeptRoute:
    """weight: the arm's share of the requests; the rest goes to ``fallback``. reason: of the
    latest change. address, token, certificate: of the server that had it last; it has the last only
    where it answers by HTTPS. held_until: the arm's share may not grow before (seconds since 1970).
    arms: names of all. evidence: against the candidate (:meth:`.trial.Trial.kept`)."""

    arm: str
    weight: float
    reason: str
    fallback: str
    address: str
    token: str
    certificate: str | None = None
    held_until: float = 0.0
    arms: tuple[str, ...] = ()
    evidence: dict[str, Any] | None = None

    @classmethod
    def of(cls, path: Path) -> KeptRoute | None:
        """None where nothing was kept. Raises ConfigError for a damaged file."""
        if not path.exists():
            return None
        try:
            fields = read_json(path)
            return cls(**(fields | {"arms": tuple(fields.get("arms", ()))}))
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise ConfigError(
                f"{shown(path)}: cannot be read: {error}",
                allowed="what workbench serve wrote",
                next_step="remove it; the server then starts as it did the first time",
            ) from error

    def keep(self, path: Path) -> None:
        with replacing(path) as partial:
            partial.touch(0o600)
            partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def held_s(self) -> float:
        """For so long its share may not grow, as of now."""
        return max(0.0, self.held_until - time.time())

    def said(self) -> str:
        rest = f", the rest to {self.fallback}" if self.weight < 1.0 else ""
        return f"{self.arm} answers {self.weight:.0%} of the requests{rest} ({self.reason})"


def route_file(run: Run) -> Path:
    """Where the route of a run's server is kept."""
    return run.folder / FILE


def change_route(
    of: Run | Path, arm: str | None, weight: float, *, back: bool = False, force: bool = False
) -> str:
    """Change the route of a server, or what a later one starts with; the route, in words.

    of: a run that is or was served, or the file that ``workbench serve --state`` keeps.
    arm: None with ``back`` false only shows it. back: to the fallback, at once. force: in spite
    of the hold.
    Raises ConfigError for what was never served and an unknown arm, StageError where the
    server refuses.
    """
    path = of if isinstance(of, Path) else route_file(of)
    kept = KeptRoute.of(path)
    if kept is None:
        name = shown(of) if isinstance(of, Path) else of.name
        how = f"NAME=URL... --state {name}" if isinstance(of, Path) else name
        raise ConfigError(f"{name} was never served", next_step=f"workbench serve {how}")
    if back:
        arm, weight = kept.fallback, 1.0
    if arm is None:
        live = _ask(kept, "GET")
        return _shown(kept, live) if live else f"not running; it would start so: {kept.said()}"
    order = {"arm": arm, "weight": weight, "reason": "workbench route", "force": force}
    if live := _ask(kept, "POST", order):
        return _shown(kept, live)
    if arm not in known_arms(kept):
        raise ConfigError(f"--to {arm}", allowed=", ".join(known_arms(kept)))
    grows = arm != kept.fallback and (arm != kept.arm or weight > kept.weight)
    if grows and kept.held_s and not force:
        raise StageError(str(RouteHeld(kept.held_s)), next_step="wait, or --force")
    later = replace(
        kept,
        arm=arm,
        weight=weight,
        reason="workbench route, while it was not running",
        evidence=kept.evidence if arm == kept.arm else None,
    )
    try:
        later.keep(path)
    except OSError as error:
        raise StageError(f"{shown(path)}: {reason_of(error)}") from None
    return f"not running; it will start so: {later.said()}"


def known_arms(kept: KeptRoute) -> tuple[str, ...]:
    return kept.arms or tuple(dict.fromkeys((kept.fallback, "hybrid", kept.arm)))


def _shown(kept: KeptRoute, live: dict[str, Any]) -> str:
    latest = live["switches"][-1]["reason"] if live["switches"] else kept.reason
    return replace(kept, arm=live["arm"], weight=live["weight"], reason=latest).said()


def _ask(
    kept: KeptRoute, method: str, order: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """The server's route; None where no server of this run answers."""
    parts = urlsplit(kept.address)
    connection = _connection(kept, parts.hostname or "", parts.port)
    headers = {"content-type": "application/json", TOKEN_HEADER: kept.token}
    try:
        with closing(connection):
            body = None if order is None else json.dumps(order)
            connection.request(method, "/workbench/route", body, headers)
            answer = connection.getresponse()
            text = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    if answer.status != 200:
        raise StageError(f"the server refused: {_message(text)}")
    return json.loads(text)


def _connection(kept: KeptRoute, host: str, port: int | None) -> http.client.HTTPConnection:
    """By HTTPS to the very certificate that the server was given, whatever name that has. Raises
    OSError where it cannot be read."""
    if kept.certificate is None:
        return http.client.HTTPConnection(host, port, timeout=ASK_S)
    context = ssl.create_default_context(cafile=kept.certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return http.client.HTTPSConnection(host, port, timeout=ASK_S, context=context)


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return repr(text[:200])


def route_token() -> str | None:
    """The token that the environment gives; None leaves it to the server."""
    return os.environ.get(TOKEN_VARIABLE) or None
