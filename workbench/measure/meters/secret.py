"""Passwords of meters: they come from the environment, and no text says them."""

from __future__ import annotations

import os

from workbench.measure.meters.sample import MeterError

HIDDEN = "***"


def from_environment(variable: str) -> str:
    """Raises MeterError where the variable is not set or empty."""
    value = os.environ.get(variable)
    if not value:
        raise MeterError(f"the environment variable {variable} is not set", "denied")
    return value


def hidden(text: str, *secrets: str | None) -> str:
    """``text`` without what a device or a library repeated of ``secrets``."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    return text
