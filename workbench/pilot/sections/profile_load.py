"""``profile_load``: the request trace, or a declared stand-in, and its classes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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


class ProfileLoad(Section):
    """From a request trace to a load profile."""

    trace: input_path() | None = Field(  # type: ignore[valid-type]
        None, description="log of requests; null takes the declared load of synthetic"
    )
    format: Literal["auto", "azure", "mooncake", "burstgpt", "openai_jsonl"] = Field(
        "auto", description="of the trace; auto tells it from the first line"
    )
    synthetic: Synthetic = Synthetic()
    interactive_max_output_tokens: Count = Field(
        512, description="requests with longer output count as batch, unless the trace says"
    )
    interactive_slo: Slo = Slo(ttft_ms=500.0, tpot_ms=30.0)
    batch_slo: Slo = Slo(e2e_s=60.0)
    window_s: Positive = Field(60.0, description="width of the windows of the rate curve, s")
