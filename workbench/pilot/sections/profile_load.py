"""``profile_load``: the request trace, or a declared stand-in, and its classes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.pilot.sections.base import Count, Positive, Section, input_path


class Synthetic(Section):
    """Declared load, used when there is no trace. Every figure from it is labelled assumed.

    Gaps ~ Gamma with the given CV (1 is Poisson); lengths are log-normal with the given
    median and p99.
    """

    duration_s: Positive = 300.0
    rate_per_s: Positive = 2.0
    gap_cv: Positive = 1.1
    prompt_tokens_p50: Count = 512
    prompt_tokens_p99: Count = 3000
    output_tokens_p50: Count = 128
    output_tokens_p99: Count = 600
    batch_share: float = Field(0.2, ge=0, le=1, description="share of requests without a reader")


class Slo(Section):
    """What a request must meet; a target that is left out is not checked."""

    ttft_ms: Positive | None = Field(None, description="first token after the intended start, ms")
    tpot_ms: Positive | None = Field(None, description="mean time per output token after it, ms")
    e2e_s: Positive | None = Field(None, description="last token after the intended start, s")


class ProfileLoad(Section):
    """From a request trace to a load profile."""

    trace: input_path() | None = None  # type: ignore[valid-type]
    format: Literal["auto", "azure", "mooncake", "burstgpt", "openai_jsonl"] = "auto"
    synthetic: Synthetic = Synthetic()
    interactive_max_output_tokens: Count = Field(
        512, description="requests with longer output count as batch, unless the trace says"
    )
    interactive_slo: Slo = Slo(ttft_ms=500.0, tpot_ms=30.0)
    batch_slo: Slo = Slo(e2e_s=60.0)
    window_s: Positive = Field(60.0, description="width of the windows of the rate curve, s")
