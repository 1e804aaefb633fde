"""Arms that are other servers, as a command line gives them: ``NAME=URL``, and options by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from workbench.errors import ConfigError
from workbench.serve.spec import UpstreamSpec

LONGEST_S = 86_400.0


@dataclass(frozen=True)
class UpstreamOptions:
    """models: ``NAME=MODEL``. key_envs: ``NAME=VARIABLE`` with its key. connect_s, silence_s,
    health_s: ``SECONDS`` of all upstreams, or ``NAME=SECONDS`` of one; what they bound says
    :class:`.spec.UpstreamSpec`. Of two for one upstream the later counts, its own before all's."""

    models: Sequence[str] = ()
    key_envs: Sequence[str] = ()
    connect_s: Sequence[str] = ()
    silence_s: Sequence[str] = ()
    health_s: Sequence[str] = ()

    def given(self) -> list[str]:
        """The options that were given, as they are written."""
        return [_option(each.name) for each in fields(self) if getattr(self, each.name)]


def upstreams_of(
    given: Sequence[Path | str], options: UpstreamOptions | None = None
) -> dict[str, UpstreamSpec]:
    """Arms that are other servers, from ``NAME=URL``; further addresses of a name are replicas of
    it. None where folders are given.

    Raises ConfigError for a mixture of both, a wrong address, a name that is not given and a
    time-out that is none.
    """
    options = options or UpstreamOptions()
    found = _addresses(given)
    if not found:
        if unused := options.given():
            raise ConfigError(
                f"{', '.join(unused)} without an upstream",
                allowed="in front of servers that run: NAME=URL, e.g. "
                "today=http://127.0.0.1:8001/v1",
            )
        return {}
    models = _by_name(found, "--upstream-model", options.models)
    keys = _by_name(found, "--upstream-key-env", options.key_envs)
    made = {
        name: UpstreamSpec(first, models.get(name), keys.get(name), others=tuple(others))
        for name, (first, *others) in found.items()
    }
    for name, seconds in _seconds(found, "--upstream-connect-s", options.connect_s).items():
        made[name] = replace(made[name], connect_s=seconds)
    for name, seconds in _seconds(found, "--upstream-silence-s", options.silence_s).items():
        made[name] = replace(made[name], silence_s=seconds)
    for name, seconds in _seconds(found, "--upstream-health-s", options.health_s).items():
        made[name] = replace(made[name], health_s=seconds)
    for each in made.values():
        for replica in each.replicas:
            assert replica.endpoint  # raises ConfigError
    return made


def _addresses(given: Sequence[Path | str]) -> dict[str, list[str]]:
    """By name, in order."""
    pairs = [str(each).partition("=") for each in given]
    if not any("://" in address for _, _, address in pairs):
        if any("://" in str(each) for each in given):
            raise ConfigError(
                f"{next(str(e) for e in given if '://' in str(e))} has no name",
                allowed="NAME=URL, e.g. today=http://127.0.0.1:8001/v1",
            )
        return {}
    found: dict[str, list[str]] = {}
    for (name, _, address), each in zip(pairs, given, strict=True):
        if not name or "://" not in address:
            raise ConfigError(
                f"{each} beside upstreams",
                allowed="NAME=URL for every arm, and again for each further replica of it",
                next_step="give a model folder a workbench serve of its own, and name its URL",
            )
        own = found.setdefault(name, [])
        if address in own:
            raise ConfigError(f"{each} twice", allowed="another address for each replica of an arm")
        own.append(address)
    return found


def _by_name(known: Collection[str], option: str, pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in known or not value:
            raise ConfigError(f"{option} {pair}", allowed=f"NAME=..., NAME of {', '.join(known)}")
        found[name] = value
    return found


def _seconds(known: Collection[str], option: str, given: Sequence[str]) -> dict[str, float]:
    of_all: dict[str, float] = {}
    of_one: dict[str, float] = {}
    for each in given:
        name, separator, text = each.rpartition("=")
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= LONGEST_S or (separator and name not in known):
            raise ConfigError(
                f"{option} {each}",
                allowed=f"seconds above 0, a day at most, or NAME=SECONDS, NAME of "
                f"{', '.join(known)}",
            )
        if separator:
            of_one[name] = seconds
        else:
            of_all = dict.fromkeys(known, seconds)
    return of_all | of_one


def _option(field: str) -> str:
    return "--upstream-" + {"models": "model", "key_envs": "key-env"}.get(
        field, field.replace("_", "-")
    )
