"""An address of others as an arm: looked at before anything is measured, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ConfigError, StageError
from workbench.load.planned import PlannedRequest
from workbench.pilot.sections.measure_ab import Address
from workbench.serve.client import load_processes
from workbench.serve.endpoint import Endpoint, NetworkProbe, probe
from workbench.serve.replay import Outcome

TRIAL_TEXT, TRIAL_TOKENS = "The quick brown fox", 8
WITHOUT_LENGTHS = ("http_error", "short", "server_error")
"""Faults of a server that does not take lengths that are forced."""


@dataclass(frozen=True)
class Tried:
    """An address that answered. endpoint: with the way of asking that it takes."""

    endpoint: Endpoint
    probe: NetworkProbe


def endpoint_of(address: Address, fixed_length: bool = False) -> Endpoint:
    """Raises ConfigError for a key whose variable is not set."""
    return Endpoint(
        address.endpoint,
        address.model,
        address.api_key_env,
        address.chat,
        fixed_length,
        allow_remote=True,
    )


def address_problem(name: str, address: Address) -> str | None:
    """What of an arm's address is wrong before anything is sent to it; None if nothing is."""
    try:
        endpoint_of(address)
    except ConfigError as error:
        return f"measure_ab.arms.{name}: {error}"
    return None


def try_address(name: str, address: Address, folder: Path) -> Tried:
    """One short answer, streamed as in the replay, and the network's part of a latency.

    folder: takes the client's log. Raises StageError when it does not answer.
    """
    found = probe(endpoint_of(address))
    ways = (True, False) if address.fixed_length is None else (address.fixed_length,)
    for fixed_length in ways:
        endpoint = endpoint_of(address, fixed_length)
        outcome = _answer(endpoint, folder)
        if outcome.status == "ok":
            return Tried(endpoint, found)
        if outcome.fault not in WITHOUT_LENGTHS:
            break
    raise StageError(
        f"measure_ab.arms.{name}: {address.endpoint} did not answer a request of {TRIAL_TOKENS} "
        f"tokens: {outcome.fault}: {outcome.error}",
        allowed="an address that streams completions as OpenAI's API has them",
        next_step="start that server, or correct endpoint, model, chat or api_key_env",
    )


def _answer(endpoint: Endpoint, folder: Path) -> Outcome:
    planned = PlannedRequest(0, 0.0, 4, TRIAL_TOKENS, "interactive", False)
    with load_processes(endpoint, folder, silence_s=60.0) as client:
        (outcome,), _ = client.burst([planned], lambda _: TRIAL_TEXT)
    return outcome
