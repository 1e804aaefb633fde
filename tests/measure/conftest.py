import pytest

from workbench.measure.meters.clock import SteppedClock


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()
