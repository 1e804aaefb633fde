"""``report.cost``: what energy costs, what the building adds, and what a fleet is made of."""

from __future__ import annotations

import re
import zoneinfo
from datetime import date
from operator import attrgetter
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from workbench.pilot.sections.base import Count, Positive, Section, Share, input_path

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun", "holiday"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun", "holiday")
ItemKind = Literal["measured", "modelled", "assumed"]
HOURS = re.compile(r"([01]\d|2[0-4]):(00|15|30|45)-([01]\d|2[0-4]):(00|15|30|45)")
DECLARED = "declared in report.cost"
"""Where a number is from that the pilot gives."""
SEASON = re.compile(r"(\d\d)-(\d\d)\.\.(\d\d)-(\d\d)")


class Band(Section):
    """One price and when it holds, by the clock of the tariff's time zone."""

    price_per_kwh: float = Field(description="price of a kWh in this band, without VAT")
    days: list[Day] = Field(
        list(DAYS),
        min_length=1,
        description="days of the week, and holiday for the dates of holidays, whatever day they "
        "fall on",
    )
    hours: list[str] = Field(
        ["00:00-24:00"],
        min_length=1,
        description="spans of quarter hours; 22:00-06:00 is the end and the beginning of each day",
    )
    season: list[str] = Field(
        ["01-01..12-31"],
        min_length=1,
        description="spans of days, both ends in it; 11-01..03-31 goes over the new year",
    )

    @field_validator("hours")
    @classmethod
    def spans_of_hours(cls, spans: list[str]) -> list[str]:
        for span in spans:
            found = HOURS.fullmatch(span)
            if not found or span.endswith("-00:00") or "24:15" in span or "24:30" in span:
                raise ValueError(f"{span!r} is no span; write 07:00-22:00, to quarter hours")
            if (found[1], found[2]) == (found[3], found[4]) or found[1] == "24":
                raise ValueError(f"{span!r} has no length; a whole day is 00:00-24:00")
        return spans

    @field_validator("season")
    @classmethod
    def spans_of_days(cls, spans: list[str]) -> list[str]:
        for span in spans:
            found = SEASON.fullmatch(span)
            try:
                if not found:
                    raise ValueError
                for month, day in ((found[1], found[2]), (found[3], found[4])):
                    date(2024, int(month), int(day))
            except ValueError:
                raise ValueError(f"{span!r} is no season; write 04-01..09-30") from None
        return spans


class Tariff(Section):
    """Prices over a year: bands or an hourly series; with neither, ``tariff_per_kwh`` is flat."""

    time_zone: str = Field("UTC", description="of hours, days and seasons, such as Europe/Berlin")
    year: int = Field(2026, ge=1970, le=2100, description="whose calendar is priced")
    bands: list[Band] = Field([], description="must cover every quarter hour of the year, once")
    holidays: list[str] = Field([], description="dates of that year, such as 2026-05-01")
    series: input_path(live=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="CSV with the columns time and price, a row an hour of the whole year, or one "
        "a quarter hour, whose mean counts; times without an offset are of time_zone",
    )
    series_per: Literal["kWh", "MWh"] = Field("kWh", description="what a price of series is of")
    demand_per_kw_month: float = Field(
        0.0, ge=0.0, description="price of the highest hourly power of each month, per kW"
    )
    vat: Share = Field(0.0, description="added to energy and demand; 0 where it is reclaimed")
    valid_from: str = Field("", description="date, for the reader")
    source: str = Field("", description="contract or price sheet, for the reader")

    @field_validator("time_zone")
    @classmethod
    def known_zone(cls, name: str) -> str:
        if name not in zoneinfo.available_timezones():
            raise ValueError(f"{name!r} is no time zone; write one like Europe/Berlin or UTC")
        return name

    @field_validator("holidays", mode="before")
    @classmethod
    def dates_as_text(cls, days: Any) -> Any:
        """YAML reads 2026-05-01 as a date."""
        if not isinstance(days, list):
            return days
        return [day.isoformat() if isinstance(day, date) else day for day in days]

    @model_validator(mode="after")
    def one_source(self) -> Tariff:
        if self.bands and self.series:
            raise ValueError("give bands or series, not both")
        for day in self.holidays:
            try:
                found = date.fromisoformat(day)
            except ValueError:
                raise ValueError(f"holidays: {day!r} is no date; write 2026-05-01") from None
            if found.year != self.year:
                raise ValueError(f"holidays: {day} is not in {self.year}, the tariff's year")
        return self


class Facility(Section):
    """What the building adds to the IT load, from its own telemetry; without it, ``pue`` counts."""

    telemetry: input_path(live=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="CSV with a column a quantity, or a Prometheus range query saved as JSON",
    )
    columns: dict[Literal["time", "it", "facility", "cooling", "outdoor"], str] = Field(
        {}, description="what telemetry calls them; in Prometheus the metric's name, or a label's "
        "value; the default is these words"
    )  # fmt: skip
    unit: Literal["W", "kW", "MW"] = Field("kW", description="of its powers; outdoor is in °C")
    time_zone: str | None = Field(None, description="of times without an offset")
    category: Literal[0, 1, 2, 3] | None = Field(
        None,
        description="boundary of the IT power: 0 its peak demand and 1 its energy at the UPS's "
        "output, 2 at the PDU's, 3 at the equipment's input",
    )
    slope: float | None = Field(
        None,
        ge=0.0,
        description="kW that the building draws less for each kW of IT that goes; null takes the "
        "fit of telemetry, and without one 1: that the overhead stays",
    )


class FleetRules(Section):
    """How many machines a load needs, and what becomes of those it no longer needs."""

    per_server: Count = Field(1, description="accelerators in a server; bought and freed whole")
    servers_per_rack: Count = Field(4, description="for items counted by rack")
    utilisation: float = Field(
        0.7, gt=0.0, le=1.0,
        description="of an accelerator's time that the load's peak may take, where the fleet is "
        "not simulated: the headroom",
    )  # fmt: skip
    spare_servers: int = Field(0, ge=0, description="beyond the need, running: 1 is N+1")
    warm_fallback_servers: int = Field(
        0, ge=0, description="kept running in full precision beside any other arm, for the way back"
    )
    freed_is_sold: bool = Field(
        False, description="false: a freed server is switched off, and goes on costing its price"
    )
    resale_share: Share = Field(0.2, description="of its price that a sold server brings")
    idle_share: Share = Field(
        0.4, description="power of an idle machine over that under load, where it was not metered"
    )


class Item(Section):
    """Something a fleet is made of. ``price`` is paid once in ``life_y`` years, ``per_year`` each
    year."""

    name: str = Field(min_length=1, description="for the reader; one of a kind")
    what: Literal[
        "accelerator", "chassis", "disk", "network", "power_delivery", "cooling", "spares",
        "space", "licence", "staff",
    ] = Field(description="what it is")  # fmt: skip
    per: Literal["accelerator", "server", "rack", "kw", "fleet"] = Field(
        "server", description="what it is counted by; kw: of IT power at the peak"
    )
    count: Positive = Field(1.0, description="how many of it for each")
    price: float = Field(0.0, ge=0.0, description="of one, once")
    per_year: float = Field(0.0, ge=0.0, description="of one, each year")
    life_y: Positive = Field(4.0, description="years that it lasts")
    residual: Share = Field(0.0, description="of its price that is left then")
    watts: float = Field(
        0.0, ge=0.0, description="of one, always on, that no meter of the arms saw"
    )
    kind: ItemKind = Field("assumed", description="how its price is known")
    source: str = Field("", description="offer, invoice or list, for the reader")


class OneOff(Section):
    """What leaving full precision costs once. ``training`` and ``rehearsal`` are in it in any case:
    what is not declared of them is of this run."""

    name: str = Field(
        min_length=1, description="training, integration, rehearsal or another; one of a kind"
    )
    price: float = Field(0.0, ge=0.0, description="in all, beside hours and energy")
    hours: float | None = Field(
        None, ge=0.0,
        description="of people or of accelerators; null takes those of this run for training and "
        "rehearsal, and none for another",
    )  # fmt: skip
    per_hour: float = Field(0.0, ge=0.0, description="of one of these hours")
    kwh: float | None = Field(
        None, ge=0.0,
        description="energy at the IT equipment; null takes that of this run for training and "
        "rehearsal, metered or by assumed_power_w, and none for another",
    )  # fmt: skip
    kind: ItemKind = Field("assumed", description="how what is declared is known")


class Goal(Section):
    """A promise to be tested: the report says what must be measured for it to hold."""

    fewer_accelerators: float | None = Field(
        None, gt=0.0, lt=1.0, description="share of the accelerators that is to go: 0.3"
    )
    latency_ratio: Positive | None = Field(
        None, description="interactive latency of full precision over that of the arm: 2.4"
    )


class Cost(Section):
    """Money. A sample tariff is marked as such in the report until you give your own."""

    sample: bool | None = Field(
        None,
        description="whether tariff and prices are samples, not yours; null: the tariff is one "
        "until tariff_per_kwh, or bands or series of tariff, say another; false where yours is the "
        "default",
    )
    currency: str = Field(
        "EUR", pattern="^[A-Z]{3}$", description="of all prices: its code of three letters"
    )
    tariff_per_kwh: Positive = Field(
        0.12, description="flat price of a kWh at the meter, where tariff names no bands or series"
    )
    tariff: Tariff = Tariff()
    pue: float = Field(
        1.4, ge=1.0, description="E_facility / E_IT over a year, where facility has no telemetry"
    )
    facility: Facility = Facility()
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
    requests_per_day: Positive = Field(100_000.0, description="for the cost of a day and a year")
    growth: float = Field(0.0, gt=-1.0, le=10.0, description="of the requests, a year: 0.2")
    hours: list[float] | None = Field(
        None,
        min_length=24,
        max_length=24,
        description="requests of each hour of a day, in any unit; null takes the load's own where "
        "it covers a day, else one rate all day",
    )
    fleet: FleetRules = FleetRules()
    items: list[Item] = Field([], description="what is paid for beside energy; none: energy alone")
    one_off: list[OneOff] = Field(
        [], description="what the change costs, once, beside this run's training and rehearsal"
    )
    discount_rate: float = Field(0.08, ge=0.0, le=1.0, description="of money, a year")
    horizon_y: Count = Field(4, le=30, description="years that are looked at")
    uncertainty: Share = Field(
        0.2, description="each way, of what is assumed: what the tornado turns"
    )
    draws: Count = Field(1000, le=10_000, description="of the Monte Carlo over measured intervals")
    goal: Goal = Goal()

    def source_of(self, name: str) -> str:
        """Where one of these numbers is from, in words. name: dotted, ``fleet.utilisation``."""
        of = attrgetter(name)
        return f"the default of report.cost.{name}" if of(self) == of(Cost()) else DECLARED

    @property
    def is_sample(self) -> bool:
        """Whether what is priced is a sample: as ``sample`` says, else by the tariff."""
        if self.sample is not None:
            return self.sample
        default = type(self).model_fields["tariff_per_kwh"].default
        return self.tariff_per_kwh == default and not (self.tariff.bands or self.tariff.series)

    @field_validator("hours")
    @classmethod
    def some_hour(cls, hours: list[float] | None) -> list[float] | None:
        if hours is not None and (min(hours) < 0 or sum(hours) <= 0):
            raise ValueError("24 numbers of 0 or more, not all of them 0")
        return hours

    @field_validator("items", "one_off")
    @classmethod
    def names_differ(cls, items: list[Any]) -> list[Any]:
        names = [item.name for item in items]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: named twice; each item has its own name")
        return items
