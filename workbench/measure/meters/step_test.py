"""The step test of a session: idle, load, idle, and what each meter made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from workbench.measure.meters.clock import Clock
from workbench.measure.meters.counter import learn_lag
from workbench.measure.meters.response import Response, learn_response
from workbench.measure.meters.sample import Channel
from workbench.measure.meters.sampled import Samples

STEP_S = 8.0
STEP_PERIODS = 10
"""Shortest load of a step test, also in rows of the slowest log; then thrice as long, while the lag
that was found is not small beside it."""
STEP_TRIES = 3


def learned_by_steps(
    load: Callable[[], object],
    wanted: Sequence[Channel],
    samples: Samples,
    clock: Clock,
    read: Callable[[], None],
) -> dict[Channel, Response | None]:
    """Of each of ``wanted`` how late and how averaged it is; None where it saw no step.

    load: a piece of work, shorter than the test, repeated as long as that lasts. read: keeps what
    the meters show now.
    """

    def step(length_s: float) -> dict[Channel, Response | None]:
        clock.sleep(length_s)
        begin_s = clock.monotonic_s()
        while clock.monotonic_s() < begin_s + length_s:
            load()
        end_s = clock.monotonic_s()
        clock.sleep(length_s)
        read()
        found = {}
        for channel in wanted:
            times_s, values = samples.series(channel)
            near = times_s >= begin_s - length_s
            learn = learn_response if channel.quantity == "power" else learn_lag
            found[channel] = learn(times_s[near], values[near], (begin_s, end_s))
        return found

    found: dict[Channel, Response | None] = {}
    length_s = max(STEP_S, STEP_PERIODS * max(samples.period_s(channel) for channel in wanted))
    for tried in range(STEP_TRIES):
        found |= step(length_s)
        if all(r and abs(r.lag_s) + r.averaging_s < length_s / 2 for r in found.values()):
            break
        if tried and None in found.values():
            break  # a load that stands out of no log for thrice as long is too small for it
        length_s *= 3
    return found


def said_of(channel: Channel, response: Response | None, samples: Samples, ahead_s: float) -> str:
    """What the test learned of a channel, as a sentence. ahead_s: a row dated further ahead than
    this comes from a clock that is not this machine's."""
    if response is None:
        return (
            f"{channel.name}: the step test saw no step between idle and load, so how late it "
            "is remains unknown and it gives no figure"
        )
    text = f"{channel.name}: {response.text}, a row every {samples.period_s(channel):.3g} s"
    if samples.youngest_s[channel] < -ahead_s:
        text += f"; its clock is ahead by {-samples.youngest_s[channel]:.1f} s or more"
    return text
