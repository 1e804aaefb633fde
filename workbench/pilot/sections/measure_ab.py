"""``measure_ab``: quality, latency, throughput, memory and energy in one session."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from workbench.pilot.sections.base import MOST_SLOTS, Count, Positive, Section, is_base_url
from workbench.pilot.sections.meters import Meters
from workbench.pilot.sections.replay import Replay

USUAL_ARMS = ("full_precision", "ternary", "post_training", "int8", "int4")
OWN_ARMS = (*USUAL_ARMS, "checkpoint", "speculative")
"""``checkpoint``: ``model.checkpoint`` as it came, before the pilot trained anything.
``speculative``: full precision, whose tokens the ternary model or the text itself guesses."""
RESERVED = (*OWN_ARMS, "hybrid", "full_precision_again")


class Address(Section):
    """An OpenAI-compatible address that is compared with, such as what a team serves today.

    It is sent the load, nothing else: it has no figures of quality, memory or fixed shapes, and of
    energy only where meters of its node are given.
    """

    endpoint: str = Field(
        description="base URL as OpenAI's clients take it: http://10.0.0.5:8000/v1; without a path "
        "/v1 is meant"
    )
    model: str | None = Field(None, min_length=1, description="what requests ask for")
    api_key_env: str | None = Field(
        None,
        min_length=1,
        description="environment variable that holds the key; the key itself is written nowhere",
    )
    chat: bool = Field(False, description="send prompts as chat messages (/chat/completions)")
    fixed_length: bool | None = Field(
        None,
        description="ask for exactly the load's output lengths (ignore_eos and min_tokens, as vLLM "
        "and SGLang take them); false lets answers end earlier, null tries it once",
    )
    meters: Meters | None = Field(
        None,
        description="meters of the node that serves it, such as its PDU's log, by name in sources; "
        "null gives the address no energy",
    )

    @field_validator("meters")
    @classmethod
    def of_that_node(cls, meters: Meters | None) -> Meters | None:
        here = {"auto", "nvml", "rapl"}.intersection(meters.sources if meters else [])
        if here:
            raise ValueError(
                f"sources {', '.join(sorted(here))}: nvml, rapl and auto look at this machine; "
                "name what sees the node that serves the address, such as sources: [csv]"
            )
        return meters

    @field_validator("endpoint")
    @classmethod
    def base_url(cls, endpoint: str) -> str:
        # The address is not repeated: what is wrong with it may be a password.
        if not is_base_url(endpoint):
            raise ValueError(
                "no base URL; give http or https, host, port and path, such as "
                "http://10.0.0.5:8000/v1; a key stands in the variable of api_key_env"
            )
        return endpoint


class ArmInCore(Section):
    """One of the pilot's own arms once more, computed by another core beside the others: what an
    accelerator, or another runtime, makes of the same model."""

    core: str = Field(description="a name of workbench core list")
    arm: str = Field("ternary", description="whose model it is: another of measure_ab.arms")


class UnderLoad(Replay):
    """The profile's requests, the same at the same times to every arm, in alternating blocks."""

    blocks: int = Field(
        8,
        ge=0,
        description="blocks, in each of which every arm is sent the same piece of the load; "
        "under 6 there are no intervals, 0 leaves this part out",
    )
    budget_s: Positive = Field(
        60.0, description="it ends here too, after 6 blocks; at twice this in any case, s"
    )
    block_s: Positive | None = Field(
        None,
        description="length of a block's piece as it is replayed, s; null spreads three fifths of "
        "budget_s over blocks and arms",
    )
    speedup: Positive | None = Field(
        None,
        description="2 replays twice as fast; null takes the load's own rate, or where the slowest "
        "arm of the pilot cannot take that, target_utilisation of its capacity",
    )


class MeasureAb(Section):
    """The arms side by side, in blocks in which they take turns."""

    arms: dict[str, Address | None] = Field(
        dict.fromkeys(USUAL_ARMS),
        description="what is compared, as a list of the pilot's own arms full_precision (which the "
        "ratios refer to, always), ternary, post_training, int8, int4 and, where a "
        "model.checkpoint is trained, checkpoint (it as it came; there by default), and "
        "speculative (full precision's own answers, drafted by ternary, or by the text itself "
        "where that promises more; takes a seventh of the session's time more, so not by "
        "default); or as a "
        "mapping that also has addresses by names of your choice, `{today: {endpoint: ..., model: "
        "...}}`; one without own arms takes these",
    )
    in_cores: dict[str, ArmInCore] = Field(
        {},
        description="arms in a core of their own, by names of your choice: `{ternary_ort: {core: "
        "onnxruntime}}`; arms of the pilot like those of arms, which run in readiness.core",
    )
    load: UnderLoad = UnderLoad()
    prompt_tokens: Count | None = Field(
        None,
        description="prompt of every request of the fixed shapes, tokens; null takes the median of "
        "the profile, as far as the models hold it",
    )
    interactive_output_tokens: list[int] = Field(
        [1, 512], description="output tokens of each class of requests that run alone"
    )
    batch_sizes: list[int] = Field([1, 4, 8], description="sequences decoded together")
    batch_output_tokens: Count = Field(32, description="tokens each sequence of a batch decodes")
    blocks: int = Field(
        40,
        ge=2,
        description="most blocks, the unit of the statistics; in each, every arm takes one turn a "
        "class; under 6 there are no intervals",
    )
    precision: Positive = Field(
        0.05,
        description="the session ends when every speed ratio is known to this share (half its "
        "interval), 8 blocks at least",
    )
    budget_s: Positive = Field(
        120.0, description="the session ends here too, after 6 blocks; at twice this in any case, s"
    )
    quality_documents: Count = Field(
        64, description="excerpts of held-out documents judged at most, from as many documents"
    )
    bootstrap: Count = Field(2000, description="resamples of the paired bootstrap over documents")
    meters: Meters = Meters()

    @property
    def turns_of_a_block(self) -> int:
        """Every arm, and the baseline again, takes one in each class."""
        classes = len(self.interactive_output_tokens) + len(self.batch_sizes)
        return (len(self.own_arms) + 1) * classes

    @field_validator("arms", mode="before")
    @classmethod
    def by_name(cls, arms: Any) -> Any:
        """A list, or a mapping with ``{}`` for own arms, as a mapping with all that is compared."""
        if isinstance(arms, list):
            if not all(isinstance(arm, str) for arm in arms) or len(set(arms)) != len(arms):
                raise ValueError("give full_precision and the arms to compare with it, each once")
            return dict.fromkeys(arms)
        if not isinstance(arms, dict):
            return arms
        named = {name: of or None for name, of in arms.items()}
        own = [name for name in named if name in OWN_ARMS]
        return {**dict.fromkeys(own or USUAL_ARMS), **named}

    @field_validator("arms")
    @classmethod
    def with_the_baseline(cls, arms: dict[str, Address | None]) -> dict[str, Address | None]:
        if "speculative" in arms and "ternary" not in arms:
            raise ValueError("speculative is drafted by ternary: give both")
        if "full_precision" not in arms:
            raise ValueError("give full_precision and the arms to compare with it, each once")
        for name, address in arms.items():
            if address is None and name not in OWN_ARMS:
                raise ValueError(
                    f"{name}: no arm of the pilot; give one of {', '.join(OWN_ARMS)}, or an "
                    "address: {endpoint: http://..., model: ...}"
                )
            if address is not None and (name in RESERVED or not re.fullmatch(r"[\w.-]+", name)):
                raise ValueError(
                    f"{name!r} cannot name an address; give a word of letters, digits, '_', '-' "
                    f"and '.' that is none of {', '.join(RESERVED)}"
                )
        return arms

    @model_validator(mode="after")
    def of_a_model_that_is_there(self) -> Self:
        taken = list(dict.fromkeys((*RESERVED, *self.arms)))
        for name, of in self.in_cores.items():
            if name in taken or not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(
                    f"in_cores: {name!r} cannot name an arm; give a word of letters, digits, '_', "
                    f"'-' and '.' that is none of {', '.join(taken)}"
                )
            there = [arm for arm in self.own_arms if arm not in (*self.in_cores, "speculative")]
            if of.arm not in there:
                raise ValueError(
                    f"in_cores.{name}.arm: {of.arm} is none of measure_ab.arms; give one of "
                    f"{', '.join(there)}"
                )
        return self

    @property
    def own_arms(self) -> list[str]:
        """Those of the pilot, the baseline first and those in cores of their own last."""
        own = [name for name, address in self.arms.items() if address is None]
        return [*sorted(own, key=lambda arm: arm != "full_precision"), *self.in_cores]

    @property
    def all_arms(self) -> list[str]:
        """Own arms and addresses."""
        return [*self.arms, *self.in_cores]

    def model_of(self, arm: str) -> str:
        """The arm whose model this one computes: itself, but for those of ``in_cores``."""
        return self.in_cores[arm].arm if arm in self.in_cores else arm

    @property
    def addresses(self) -> dict[str, Address]:
        """Those that others serve."""
        return {name: address for name, address in self.arms.items() if address is not None}

    @field_validator("interactive_output_tokens", "batch_sizes")
    @classmethod
    def positive_and_different(cls, values: list[int]) -> list[int]:
        if not values or min(values) < 1 or len(set(values)) != len(values):
            raise ValueError("give one or more different whole numbers from 1")
        return values

    @field_validator("batch_sizes")
    @classmethod
    def decoded_together(cls, values: list[int]) -> list[int]:
        if max(values) > MOST_SLOTS:
            raise ValueError(f"give at most {MOST_SLOTS} sequences")
        return values
