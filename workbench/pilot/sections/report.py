"""``report``: gates fixed before the run, what things cost, language."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from workbench.pilot.sections.base import Language, Section, Words
from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.forecast import ForecastTerms


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
    why: Words = Field(
        "",
        description="the sentence a reader of the report sees; or in both languages: "
        "{en: ..., ru: ...}",
    )

    @model_validator(mode="after")
    def one_side(self) -> Gate:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a gate needs exactly one of at_most and at_least")
        return self


class Report(Section):
    """What the report judges by and says."""

    language: Language = Field("en", description="of report.html")
    gates: list[Gate] = Field([], description="fixed before the run")
    cost: Cost = Cost()
    forecast: ForecastTerms = ForecastTerms()
