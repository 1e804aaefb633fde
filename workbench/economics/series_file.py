"""A table of times and numbers as other programs export it: separators, decimal commas, clocks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from workbench.errors import ConfigError

ISO_DATE = r"\s*\d{4}-?\d\d-?\d\d"


def read_series(path: Path, name: str, cure: str) -> pd.DataFrame:
    """All cells as text, the header's names stripped; a semicolon goes with a decimal comma, which
    :func:`numbers` turns. Raises ConfigError for what is no UTF-8 CSV."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            first = lines.readline()
        separator = ";" if first.count(";") > first.count(",") else ","
        table = pd.read_csv(
            path, sep=separator, encoding="utf-8-sig", dtype=str, keep_default_na=False
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read: {why}", allowed=cure) from None
    if separator == ";":
        table = table.map(lambda cell: cell.replace(",", "."))
    return table.rename(columns=str.strip)


def numbers(column: pd.Series) -> pd.Series:
    """What is no number is NaN."""
    return pd.to_numeric(column, errors="coerce")


def in_utc(times: pd.Series, zone: str | None, name: str, undeclared: str) -> pd.DatetimeIndex:
    """Times with an offset, Unix seconds, or of the clock of ``zone``.

    Of a local clock the hour that comes twice in autumn is told by the order of the rows, where
    both are there. undeclared: what to set where times have no offset and there is no zone.
    """
    if len(seconds := numbers(times)) and seconds.notna().all():
        return pd.DatetimeIndex(pd.to_datetime(seconds, unit="s", utc=True))
    if len(other := times[~times.str.match(ISO_DATE)]):
        raise ConfigError(
            f"{name}: {other.iloc[0]!r} could be of two days or of none",
            allowed="ISO 8601 times, the year first: 2026-05-01T13:00",
        )
    try:
        parsed = [pd.Timestamp(text) for text in times]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}", allowed="ISO 8601 times") from None
    naive = [t.tzinfo is None for t in parsed]
    if not any(naive):
        return pd.DatetimeIndex([t.tz_convert("UTC") for t in parsed])
    if zone is None:
        raise ConfigError(
            f"{name}: times have no offset from UTC",
            allowed="times with an offset, Unix seconds, or a declared zone",
            next_step=undeclared,
        )
    if not all(naive):
        raise ConfigError(
            f"{name}: some times have an offset from UTC and some have none",
            allowed="one way to write all times",
        )
    try:
        return pd.DatetimeIndex(parsed).tz_localize(zone, ambiguous="infer").tz_convert("UTC")
    except ValueError as error:
        when = next((t for t in parsed if str(t) in str(error)), None)
        raise ConfigError(
            f"{name}: {when or error} does not stand once on the clock of {zone}, which is put "
            "forward or back there",
            allowed="in autumn both hours, in their order; in spring neither",
            next_step="write times with their offset from UTC: 2026-10-25T02:00:00+01:00",
        ) from None  # fmt: skip
