"""The threshold version: its id, its way through JSON, and the refusal of another one."""

from __future__ import annotations

import pytest

from workbench.errors import ConfigError
from workbench.pilot.sections.model import Threshold
from workbench.ternary.threshold import ThresholdVersion


def test_the_id_tells_all_that_decides_a_code() -> None:
    assert ThresholdVersion().id == "absmean/tensor/half_even/eps1e-5"
    twn = ThresholdVersion("twn", "group128", "half_away", eps=1e-6, ratio=0.7)
    assert twn.id == "twn0.7/group128/half_away/eps1e-6"


def test_a_section_and_a_version_say_the_same() -> None:
    section = Threshold(rule="learned", granularity="row", rounding="half_up", eps=1e-4)
    version = ThresholdVersion.from_section(section)
    assert version.id == "learned/row/half_up/eps0.0001"
    assert ThresholdVersion.from_json(version.to_json(), "x.json") == version


def test_a_version_of_before_rotations_has_none() -> None:
    written = ThresholdVersion().to_json()
    del written["rotation"]
    assert ThresholdVersion.from_json(written, "x.json") == ThresholdVersion()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "absmaen"}, "x.json.*did you mean absmean"),
        ({"granularity": "column"}, "granularity: got 'column'"),
        ({"eps": 0}, "eps: got 0"),
        ({"eps": float("nan")}, "eps: got nan"),
        ({"ratio": "0.75"}, "ratio: got '0.75'"),
        ({"more": 1}, "more: unknown key; allowed: rule"),
    ],
)
def test_a_damaged_version_names_the_file_and_the_value(change: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ThresholdVersion.from_json(ThresholdVersion().to_json() | change, "x.json")
    assert "x.json" in str(error.value)
    error.match(message)


def test_another_version_is_refused_by_both_names() -> None:
    ours, theirs = ThresholdVersion(), ThresholdVersion(rounding="half_up")
    theirs.require(theirs, "a")
    theirs.require(None, "a")
    with pytest.raises(ConfigError, match=r"half_up/eps1e-5, but absmean/tensor/half_even/eps1e-5"):
        theirs.require(ours, "folder")
