"""``measure_ab``: quality, latency, throughput, memory and energy in one session."""

from __future__ import annotations

import zoneinfo
from typing import Literal

from pydantic import Field, field_validator, model_validator

from workbench.pilot.sections.base import MOST_SLOTS, Count, Positive, Section, input_path


class Meters(Section):
    """Where energy comes from. ``auto`` uses every counter found and says why others are not."""

    sources: list[Literal["auto", "nvml", "rapl", "csv"]] = Field(
        ["auto"], description="meters to use; an empty list meters nothing"
    )
    csv: input_path(live=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="power log that grows while the pilot runs, with columns timestamp (Unix "
        "seconds, or date and time with offset), source and watts; its sources are summed",
    )
    csv_unit: Literal["W", "kW"] = Field("W", description="of the log's column watts")
    csv_time_zone: str | None = Field(
        None, description="of the log's times without an offset, such as Europe/Berlin"
    )
    csv_scope: Literal["gpu", "cpu", "node", "rack", "it", "facility", "cooling"] = Field(
        "node",
        description="what the log's sources hold together: boards, processors, or the machine at "
        "its inlet; what holds other machines too is a cross-check and no figure",
    )
    max_gap_s: Positive = Field(3.0, description="a longer gap between samples gives no figure")
    idle_s: Positive = Field(3.0, description="idle measured before and after the session, s")

    @model_validator(mode="after")
    def log_is_named(self) -> Meters:
        if "csv" in self.sources and self.csv is None:
            raise ValueError("the source csv needs the path of the power log in csv")
        return self

    @field_validator("csv_time_zone")
    @classmethod
    def known_zone(cls, name: str | None) -> str | None:
        if name is not None and name not in zoneinfo.available_timezones():
            raise ValueError(f"no time zone {name!r}; give one such as Europe/Berlin or UTC")
        return name


class MeasureAb(Section):
    """The arms side by side, in blocks in which they take turns."""

    arms: list[Literal["full_precision", "ternary", "post_training", "int8"]] = Field(
        ["full_precision", "ternary", "post_training", "int8"],
        description="what is compared; full_precision, which the ratios refer to, always",
    )
    prompt_tokens: Count = Field(128, description="prompt of every timed request, tokens")
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
        return (len(self.arms) + 1) * classes

    @field_validator("arms")
    @classmethod
    def with_the_baseline(cls, arms: list[str]) -> list[str]:
        if "full_precision" not in arms or len(set(arms)) != len(arms):
            raise ValueError("give full_precision and the arms to compare with it, each once")
        return arms

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
