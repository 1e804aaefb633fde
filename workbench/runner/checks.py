"""What can be known to fail before the first kernel starts, all of it at once.

The fields were checked one by one when the pilot was resolved. A stage module may also have
``check(pilot) -> list[str]``: sentences about what its inputs or a combination of fields
make impossible. One that begins with a field's name is shown with the line of that field.
"""

from __future__ import annotations

from collections.abc import Iterable

from workbench.errors import ConfigError
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.terminal import said_when_slow
from workbench.roadmap import STAGES
from workbench.stages.find import stage_check


def check_pilot(resolved: ResolvedPilot, stages: Iterable[str] = STAGES) -> None:
    """Raise one ConfigError with every problem that the own checks of ``stages`` find.

    The check of a stage is imported with it, torch and transformers where it needs them: what a
    stage costs that needs neither is not seconds of imports.
    """
    problems: list[str] = []
    errors: list[ConfigError] = []
    with said_when_slow("checking the pilot: what its stages say of it, before anything starts"):
        for name in stages:
            check = stage_check(name)
            try:
                problems += check(resolved.pilot) if check else []
            except ConfigError as error:
                errors.append(error)
                problems.append(str(error))
    if len(errors) == len(problems) == 1:  # it says itself what to do, once
        only = errors[0]
        raise ConfigError(
            f"{resolved.where(only.got)}: {only.got}",
            allowed=only.allowed,
            next_step=f"{only.next_step or 'correct the above'}; nothing was started",
        )
    if problems := list(dict.fromkeys(problems)):  # stages may share what is wrong
        raise ConfigError(
            "\n".join(f"{resolved.where(problem)}: {problem}" for problem in problems),
            next_step="correct the above; nothing was started",
        )
