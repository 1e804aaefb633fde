"""``profile_load``: the request trace, or a declared stand-in, and its classes."""

from __future__ import annotations

import re
import zoneinfo
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from workbench.pilot.sections.base import Count, Positive, Section, Share, input_path


class Synthetic(Section):
    """Declared load, used when there is no trace. Every figure from it is labelled assumed.

    Gaps ~ Gamma with the given CV (1 is Poisson); lengths are log-normal with the given
    median and p99.
    """

    duration_s: Positive = Field(300.0, description="length of the declared load, s")
    rate_per_s: Positive = Field(2.0, description="mean requests a second")
    gap_cv: Positive = Field(1.1, description="standard deviation of the gaps over their mean")
    prompt_tokens_p50: Count = Field(512, description="median prompt, tokens")
    prompt_tokens_p99: Count = Field(3000, description="99th percentile of prompts, tokens")
    output_tokens_p50: Count = Field(128, description="median output, tokens")
    output_tokens_p99: Count = Field(600, description="99th percentile of outputs, tokens")
    batch_share: Share = Field(0.2, description="share of requests that no reader waits for")

    @model_validator(mode="after")
    def quantiles_ascend(self) -> Synthetic:
        for name in ("prompt_tokens", "output_tokens"):
            p50, p99 = getattr(self, f"{name}_p50"), getattr(self, f"{name}_p99")
            if p99 < p50:
                raise ValueError(f"{name}_p99 ({p99}) must not be below {name}_p50 ({p50})")
        return self


class Slo(Section):
    """What a request must meet; a target that is left out is not checked."""

    ttft_ms: Positive | None = Field(None, description="first token after the intended start, ms")
    tpot_ms: Positive | None = Field(None, description="mean time per output token after it, ms")
    e2e_s: Positive | None = Field(None, description="last token after the intended start, s")


Role = Literal["time", "prompt", "output", "class", "tenant", "session", "status", "duration"]
"""What a field of a trace can say about a request."""


class Generate(Section):
    """Requests drawn from the profile instead of the trace's own: another size, the same shape."""

    duration_s: Positive = Field(3600.0, description="length of the generated load, s")
    scale: Positive = Field(1.0, description="2 has twice as many requests a second")


class ProfileLoad(Section):
    """From a request trace to a load profile."""

    trace: input_path() | None = Field(  # type: ignore[valid-type]
        None,
        description="log of requests: CSV, JSONL, Parquet or text, also .gz and .zst, or a folder "
        "of ServeGen; null takes profile, or else the declared load of synthetic",
    )
    format: Literal[
        "auto",
        "azure",
        "mooncake",
        "bailian",
        "burstgpt",
        "openai_jsonl",
        "vllm",
        "servegen",
    ] = Field("auto", description="of the trace; auto tells it from the first lines")
    columns: dict[Role, str] = Field(
        {},
        description="what the trace calls time, prompt and output (tokens), class, tenant, "
        "session, status and duration; fields within others by dots: usage.prompt_tokens",
    )
    pattern: str | None = Field(
        None,
        description="of an access log's lines: a regular expression (RE2) with groups named like "
        r"columns: (?P<time>\S+) .* (?P<prompt>\d+) (?P<output>\d+)",
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto",
        description="of times that are numbers; auto takes the format's own unit, and that of "
        "Unix times by their size",
    )
    time_format: str | None = Field(
        None, description="of dates that are not ISO 8601, as strptime has it: %d/%m/%Y %H:%M:%S"
    )
    time_zone: str | None = Field(
        None,
        description="of dates without an offset, such as Europe/Berlin; null takes UTC, and asks "
        "where the clock goes back",
    )
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="of CSV; null tells it from the header"
    )
    decimal: Literal[".", ","] = Field(".", description="mark of fractions in CSV and patterns")
    max_bad_share: Share = Field(
        0.01, description="lines that cannot be read, at most; they are counted by kind and shown"
    )
    reorder_s: Positive = Field(
        300.0,
        description="how far a line may stand behind a later one (logs are written when a request "
        "ends); order is restored within it, s",
    )
    profile: input_path() | None = Field(  # type: ignore[valid-type]
        None,
        description="profile.json of another run's profile_load, shared without its requests; "
        "they are generated from it",
    )
    generate: Generate | None = Field(
        None,
        description="draw requests from the profile instead of taking the trace's own; with "
        "profile, null draws them over the time that the profile covers, an hour at most",
    )
    synthetic: Synthetic = Synthetic()
    interactive_max_output_tokens: Count = Field(
        512, description="requests with longer output count as batch, unless the trace says"
    )
    interactive_slo: Slo = Slo(ttft_ms=500.0, tpot_ms=30.0)
    batch_slo: Slo = Slo(e2e_s=60.0)
    window_s: Positive = Field(60.0, description="width of the windows of the rate curve, s")
    piece: Literal["typical", "peak", "window"] = Field(
        "typical",
        description="what of the load is replayed: the piece most like the whole, the one with "
        "most requests, or the one that begins at piece_start_s",
    )
    piece_start_s: float = Field(
        0.0, ge=0.0, description="where the replayed window begins, s after the first request"
    )

    @field_validator("time_zone")
    @classmethod
    def known_zone(cls, name: str | None) -> str | None:
        if name is not None and name not in zoneinfo.available_timezones():
            raise ValueError(f"no time zone {name!r}; give one such as Europe/Berlin or UTC")
        return name

    @field_validator("pattern")
    @classmethod
    def names_groups(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        groups = set(re.findall(r"\(\?P<(\w+)>", pattern))
        if unknown := groups - set(get_args(Role)):
            raise ValueError(
                f"groups {', '.join(sorted(unknown))} are unknown; allowed: "
                f"{', '.join(get_args(Role))}"
            )
        if missing := {"time", "prompt", "output"} - groups:
            raise ValueError(f"groups {', '.join(sorted(missing))} are missing")
        return pattern

    @model_validator(mode="after")
    def one_source(self) -> ProfileLoad:
        if self.trace and self.profile:
            raise ValueError("trace and profile are both given; give one of them")
        if self.pattern and self.columns:
            raise ValueError("pattern names its fields by groups; leave columns out")
        return self
