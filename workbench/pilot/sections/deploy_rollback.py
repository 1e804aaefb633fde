"""``deploy_rollback``: the load replayed against two precisions, and the way back."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from workbench.pilot.sections.base import (
    MOST_BATCH_WAIT_MS,
    MOST_SLOTS,
    Count,
    Positive,
    Section,
    Share,
)
from workbench.pilot.sections.replay import Replay
from workbench.wording.counts import number_of

Seconds = Annotated[float, Field(gt=0.0, le=7 * 24 * 3600)]
"""A week at most."""


TUNED_ARMS, SHORTEST_POINT_S = 2, 2.0
"""Of the queue's tuning: full precision and the hybrid; within less time no queue shows."""


class Rule(Section):
    """When the server goes back to full precision by itself; it never goes forward by itself. While
    both arms answer, the hybrid's share is compared with the other's at the same time; a burst
    that makes both wait takes nothing back."""

    max_error_share: Share = Field(
        0.05, description="by which the hybrid's share of failed requests may exceed the other's"
    )
    ttft_s: Positive | None = Field(
        None,
        description="a first token later than this is late: after the arrival, or after the start "
        "while the hybrid answers everything; null: one later than `slower` times what is usual of "
        "the other arm, while both answer, s",
    )
    tpot_s: Positive | None = Field(
        None, description="the same of a token after the first, on average, s"
    )
    e2e_s: Positive | None = Field(None, description="the same of a whole answer, s")
    slower: float = Field(1.5, gt=1, le=100, description="times what is usual, then it is late")
    max_slow_share: Share = Field(
        0.10,
        description="by which its share of requests with a late first token, with slow tokens, "
        "and of late answers may exceed the other's, each of the three",
    )
    max_length_share: Share = Field(
        0.15,
        description="by which its share of answers shorter than half of what is usual, and of "
        "those longer than twice that or cut at their limit, may exceed the other's",
    )
    max_disagreement: Share = Field(
        0.4,
        description="share of an answer that full precision would not say, more than of its own "
        "answers, of requests that both answer (`canary.compared_share`)",
    )
    unlikely_nats: Positive = Field(
        1.0,
        description="an answer is unlikely when full precision gives it so much less "
        "log-likelihood a token than its own answer",
    )
    max_unlikely_share: Share = Field(0.2, description="share of such answers that may be")
    false_alarms: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of hybrids within both limits that may be taken back, ever",
    )


class CanarySteps(Section):
    """How the hybrid's share grows under `workbench serve RUN`, while the rule has nothing against
    it. The rehearsal of the pilot has no time for it."""

    steps: list[float] = Field(
        [0.01, 0.05, 0.25, 0.5, 1.0], min_length=1, description="shares of the requests, growing"
    )
    step_s: Positive = Field(300.0, description="a step lasts at least so long, s")
    step_requests: Count = Field(
        100, description="requests of the hybrid's that end in a step, at least"
    )
    compared_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of the requests that both arms answer, outside the client's wait, to "
        "compare what they say; 0 compares none",
    )
    probe_s: Seconds = Field(
        60.0,
        description="so often one of `prompts`, or where there are none a held-out text, is "
        "answered by both and compared, s",
    )

    @field_validator("steps")
    @classmethod
    def steps_that_grow(cls, steps: list[float]) -> list[float]:
        if steps != sorted({step for step in steps if 0 < step <= 1}):
            raise ValueError("give growing shares above 0, at most 1")
        return steps


class Tuning(Section):
    """The queue's settings tried out: the largest rate within the targets, for each of them."""

    budget_s: float = Field(
        0.0,
        ge=0,
        le=7 * 24 * 3600,
        description="time for the load of all searches together, loading the servers comes on "
        "top; 600 is enough for two settings of a small model; 0 leaves the tuning out, s",
    )
    slots: list[int] = Field(
        [2, 8], min_length=1, description="batch limits to try: requests decoded together"
    )
    batch_wait_ms: list[float] = Field(
        [0.0, 20.0],
        min_length=1,
        description="waiting times to try, with each of slots: how long a request may wait for "
        "others to start with, ms",
    )
    output_tokens: list[int] = Field(
        [1, 512],
        description="output tokens of the requests that are tuned before the load's own, with its "
        "prompt lengths and Poisson arrivals, cut to what the models hold",
    )
    price_per_hour: Positive | None = Field(
        None, description="of this machine, in report.cost.currency; null gives no price"
    )

    @field_validator("slots", "output_tokens")
    @classmethod
    def whole_and_different(cls, values: list[int]) -> list[int]:
        if any(value < 1 for value in values) or len(set(values)) != len(values):
            raise ValueError("give different whole numbers from 1")
        return values

    @field_validator("slots")
    @classmethod
    def within_the_most(cls, values: list[int]) -> list[int]:
        if max(values) > MOST_SLOTS:
            raise ValueError(f"give at most {MOST_SLOTS} slots")
        return values

    @field_validator("batch_wait_ms")
    @classmethod
    def waits_to_try(cls, values: list[float]) -> list[float]:
        wrong = any(not 0 <= value <= MOST_BATCH_WAIT_MS for value in values)
        if wrong or len(set(values)) != len(values):
            raise ValueError(f"give different waiting times from 0 to {MOST_BATCH_WAIT_MS:g} ms")
        return values

    @model_validator(mode="after")
    def time_for_a_point_each(self) -> Tuning:
        settings = sum(len(self.batch_wait_ms) if slots > 1 else 1 for slots in self.slots)
        searches = TUNED_ARMS * settings * (len(self.output_tokens) + 1)
        if 0 < self.budget_s < (least := SHORTEST_POINT_S * searches):
            raise ValueError(
                f"budget_s {self.budget_s:g} for {number_of(searches, 'search')} (arms, settings, "
                f"kinds of requests): raise it to {least:g} at least, {SHORTEST_POINT_S:g} s for "
                "one point each, or try fewer settings"
            )
        return self


LostWay = Literal["monitor", "crash", "nan", "hang", "kill", "upstream"]
FORMER_WAYS = {"rule": "monitor"}
"""Names of ways in runs of before, and what they are called now."""


class DrillWays(Section):
    """The way back taken in every other way too, each under a share of the load, after the replay,
    which takes the way by command."""

    ways: list[LostWay] = Field(
        list(get_args(LostWay)),
        description="what happens to the hybrid: a monitor of the rule finds it slow, an error "
        "nobody foresaw, logits that are no numbers, a process that hangs, one that is killed, an "
        "upstream that disappears",
    )
    way_s: float = Field(
        1.0, ge=0.5, le=3600, description="length of the load that each way is taken under, s"
    )
    budget_s: float = Field(
        20.0,
        ge=0,
        le=7 * 24 * 3600,
        description="time for all ways together, restarts of the hybrid included; a way that it "
        "does not reach says so; 0 leaves the drill out, s",
    )

    @field_validator("ways", mode="before")
    @classmethod
    def named_as_now(cls, values: Any) -> Any:
        """The pilot of a run of before can still be read."""
        if not isinstance(values, list):
            return values
        return [FORMER_WAYS.get(way, way) if isinstance(way, str) else way for way in values]

    @field_validator("ways")
    @classmethod
    def different(cls, values: list[str]) -> list[str]:
        if len(set(values)) != len(values):
            raise ValueError("give different ways")
        return values


class DeployRollback(Replay):
    """The hybrid artefact served next to the full-precision one, both warm."""

    duration_s: Seconds = Field(20.0, description="length of the replayed load, s")
    speedup: Positive | None = Field(
        None, description="2 replays twice as fast; null fits the load to what the server can do"
    )
    slo_share: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="an arm carries the load when at least this share of each class meets its "
        "targets",
    )
    rollback_at: float = Field(0.5, gt=0, lt=1, description="moment of the rollback, as a share")
    batch_wait_ms: float = Field(
        0.0,
        ge=0,
        le=MOST_BATCH_WAIT_MS,
        description="an arm with free slots lets a request wait so long for others, to start them "
        "together; 0 starts each at once, ms",
    )
    hold_s: Seconds = Field(
        30.0, description="after a rollback the hybrid's share may not grow for so long, s"
    )
    weight: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the hybrid's share of the requests that `workbench serve RUN` begins with; of "
        "a canary it is the first step",
    )
    tuning: Tuning = Tuning()
    drill: DrillWays = DrillWays()
    deadline_s: Seconds = Field(
        600.0, description="an answer that is not whole by then ends with an error, s"
    )
    on_lost_stream: Literal["end", "continue"] = Field(
        "end",
        description="a stream whose arm is lost ends with a declared error, or is continued by "
        "full precision from its tokens",
    )
    canary: CanarySteps | None = Field(
        None, description="steps by which a served hybrid's share grows; null: it is ordered"
    )
    rollback_rule: Rule | None = Field(
        None, description="an automatic rollback besides the ordered one; null: none"
    )
    host: Literal["127.0.0.1", "::1"] = Field(
        "127.0.0.1", description="the rehearsal stays on this machine"
    )
    port: int = Field(0, ge=0, le=65535, description="0 takes a free one")
