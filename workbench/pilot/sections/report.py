"""``report``: gates fixed before the run, tariff and power assumptions, language."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workbench.pilot.sections.base import Positive, Section


class Gate(Section):
    """A rule about one metric. It passes when the whole interval keeps it, fails when the whole
    interval lies beyond it, and is inconclusive otherwise, also where there is no interval;
    exact figures, such as bytes that were counted, decide by their value."""

    metric: str = Field(description="name of a figure of this run; all are listed below")
    labels: dict[str, str] = Field(
        {}, description="which of the figures with that name; all that the labels fit must hold"
    )
    at_most: float | None = Field(None, description="passes up to here, in the metric's unit")
    at_least: float | None = Field(None, description="passes from here on")
    on_fail: Literal["stop", "warn"] = Field(
        "warn",
        description="stop: the run exits with 4 if the gate breaks or could not be measured; "
        "warn: the verdict says it; inconclusive stops as well: it is not known to hold",
    )
    why: str = Field("", description="the sentence a reader of the report sees")

    @model_validator(mode="after")
    def one_side(self) -> Gate:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a gate needs exactly one of at_most and at_least")
        return self


class Cost(Section):
    """Money. Sample values are marked as such in the report until you set ``sample: false``."""

    sample: bool = Field(True, description="whether tariff and PUE are samples, not your own")
    currency: str = Field("EUR", description="of the tariff")
    tariff_per_kwh: Positive = Field(0.12, description="price of a kWh at the meter")
    pue: float = Field(1.4, ge=1.0, description="E_facility / E_IT over a year")
    assumed_power_w: Positive | None = Field(
        None,
        description="power of the node under load, for all arms, where not every arm was metered",
    )
    board_share: float | None = Field(
        None,
        gt=0.0,
        le=1.0,
        description="share of the node's energy that its GPU boards and processors take, by which "
        "a figure metered at them alone is extended to the node and called assumed",
    )
    accelerators: int | None = Field(
        None, ge=1, description="that carry the load today in full precision; null leaves it out"
    )
    requests_per_day: Positive = Field(100_000.0, description="for the cost of a day")


class Report(Section):
    """What the report judges by and says."""

    language: Literal["en", "ru"] = Field("en", description="of report.html")
    gates: list[Gate] = Field([], description="fixed before the run")
    cost: Cost = Cost()
