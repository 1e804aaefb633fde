"""``report.forecast``: on what, and at what price, the training that is foretold would run."""

from __future__ import annotations

from pydantic import Field, model_validator

from workbench.pilot.sections.base import Positive, Section


class ForecastTerms(Section):
    """Where more training would run. Without it: this machine, at the speed this run trained at,
    its metered power (else ``report.cost.assumed_power_w``) and the tariff of ``report.cost``."""

    hardware: str | None = Field(
        None, min_length=1, description="in words, such as H100; null: this machine"
    )
    tokens_per_s: Positive | None = Field(
        None, description="training speed of the ternary arm there; null: as in this run"
    )
    power_w: Positive | None = Field(
        None, description="of it all while it trains; null: as metered in this run"
    )
    price_per_hour: Positive | None = Field(
        None,
        description="of it all, energy included, in report.cost.currency; null: energy alone, by "
        "the tariff",
    )

    @model_validator(mode="after")
    def speed_of_other_hardware(self) -> ForecastTerms:
        if self.hardware is not None and self.tokens_per_s is None:
            raise ValueError(
                f"hardware {self.hardware!r} is another machine than this run's: give its "
                "tokens_per_s, measured or from a training of that size"
            )
        return self
