"""A server as a child process: started, watched, and gone when the block ends."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from workbench.child import child, end_of_log, how_it_ended
from workbench.errors import StageError
from workbench.machine.memory import process_tree_bytes
from workbench.paths import shown
from workbench.serve.kept_route import TOKEN_HEADER, TOKEN_VARIABLE
from workbench.serve.spec import Ready, ServeSpec

START_S = 600.0
"""A large model takes minutes to read."""
ASK_S = 60.0
"""For an answer about the server itself."""


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers. ``log``: what it printed. token: of its route."""

    process: subprocess.Popen[str]
    ready: Ready
    log: Path
    token: str = field(repr=False)

    @property
    def address(self) -> str:
        return self.ready.address

    @property
    def resident_bytes(self) -> int:
        """Memory of its processes at this moment; pages that they share count once. To look often,
        take :class:`TreeMemory`. Raises StageError when it has ended."""
        try:
            return process_tree_bytes(self.process.pid)
        except psutil.Error:
            self.check()
            raise

    @property
    def process_ids(self) -> list[int]:
        """This server's process and those that it has started; none when it has ended."""
        try:
            own = psutil.Process(self.process.pid)
            return [own.pid, *(each.pid for each in own.children(recursive=True))]
        except psutil.Error:
            return []

    def switch(self, arm: str, reason: str, force: bool = False) -> float:
        """Order a route; the ``time.monotonic()`` of the order. force: in spite of the hold.
        Raises StageError."""
        ordered_s = time.monotonic()
        order = {"arm": arm, "reason": reason, "force": force}
        self._ask("POST", "/workbench/route", order)
        return ordered_s

    def switches(self) -> list[dict[str, Any]]:
        """Those so far, ``time_s`` by ``time.monotonic()``. Raises StageError."""
        return self._ask("GET", "/workbench/route")["switches"]

    def arm_states(self) -> dict[str, dict[str, Any]]:
        """Arm -> ``state`` (up, out), ``pid`` and ``restarts``. Raises StageError."""
        return self._ask("GET", "/health")["arms"]

    def drill(self, arm: str, fault: str = "none", **order: float) -> None:
        """Let the arm suffer so; see :class:`.app.DrillOrder`. Raises StageError."""
        self._ask("POST", "/workbench/drill", {"arm": arm, "fault": fault, **order})

    def gpu_bytes(self) -> int | None:
        """The most that it has held on its GPU; None without one. Raises StageError."""
        return self._ask("GET", "/health")["gpu_bytes"]

    def _ask(self, method: str, path: str, fields: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection(self.ready.host, self.ready.port, timeout=ASK_S)
        try:
            with closing(connection):
                body = None if fields is None else json.dumps(fields)
                headers = {"content-type": "application/json", TOKEN_HEADER: self.token}
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            time.sleep(1.0)  # a process that dies closes its connections first
            self.check()
            raise StageError(
                f"the server did not answer {path}: {type(error).__name__}: {error}",
                next_step=f"read {shown(self.log)}",
            ) from error
        if answer.status != 200:
            raise StageError(
                f"the server answered {path} with HTTP {answer.status}: {text[:200]!r}",
                next_step=f"read {shown(self.log)}",
            )
        return json.loads(text)

    def check(self) -> None:
        """Raise StageError with the end of the log if the server has ended."""
        if (code := self.process.poll()) is not None:
            raise _ended(code, self.log)


@contextmanager
def server_process(spec: ServeSpec, folder: Path) -> Iterator[ServerProcess]:
    """Start a server, wait until it answers, and stop it when the block ends.

    folder: takes ``serve.json``, ``ready.json`` and ``server.log``.
    Raises StageError with the end of its log when it ends before it answers.
    """
    spec_path, ready_path, log = (
        folder / name for name in ("serve.json", "ready.json", "server.log")
    )
    ready_path.unlink(missing_ok=True)
    spec.save(spec_path)
    arguments = str(spec_path), str(ready_path), str(os.getpid())
    token = secrets.token_urlsafe()
    environment = {TOKEN_VARIABLE: token}
    with child("workbench.serve.main", *arguments, log=log, environment=environment) as process:
        yield ServerProcess(process, _wait_ready(process, ready_path, log), log, token)


def _wait_ready(process: subprocess.Popen[str], ready_path: Path, log: Path) -> Ready:
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        if (code := process.poll()) is not None:
            raise _ended(code, log)
        if ready_path.exists():
            ready = Ready.load(ready_path)
            if _answers(ready):
                return ready
        time.sleep(0.05)
    raise StageError(
        f"the server did not answer within {START_S:.0f} s",
        next_step=f"read {shown(log)}; a smaller preset loads faster",
    )


def _answers(ready: Ready) -> bool:
    connection = http.client.HTTPConnection(ready.host, ready.port, timeout=5)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def _ended(code: int, log: Path) -> StageError:
    return StageError(
        f"the server {how_it_ended(code)}; the end of its log:\n    {end_of_log(log)}",
        next_step=f"the whole log is {shown(log)}; the same command starts the stage again",
    )
