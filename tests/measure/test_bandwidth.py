import pytest
import ternary_kernels
import torch

from workbench.measure import bandwidth
from workbench.measure.bandwidth import (
    bandwidth_buffer,
    computing_threads,
    int8_peak_gmacs,
    read_bandwidth_gbps,
)

NATIVE = ternary_kernels.backend().name == "native"


def test_every_repetition_gives_a_bandwidth_of_this_world():
    values, how = read_bandwidth_gbps(1, bandwidth_buffer(8), repetitions=4)
    assert len(values) == 4
    # From an SD card to the fastest cache.
    assert all(0.01 < v < 10_000 for v in values)
    assert ("native" in how) == NATIVE


def test_without_native_kernels_torch_reads_and_the_peak_has_a_reason(monkeypatch):
    monkeypatch.setattr(bandwidth, "library", lambda: None)
    values, how = read_bandwidth_gbps(1, bandwidth_buffer(8), repetitions=2)
    assert "a lower bound" in how
    assert all(0.01 < v < 10_000 for v in values)
    with pytest.raises(OSError, match="needs the native kernels"):
        int8_peak_gmacs(1, 2)


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built here")
def test_the_peak_of_int8_products_is_above_what_scalar_code_could_do_or_at_least_real():
    values, how = int8_peak_gmacs(1, 3)
    assert len(values) == 3
    assert all(0.05 < v < 100_000 for v in values)
    assert ternary_kernels.backend().isa in how


def test_the_numbers_of_threads_are_put_back_even_after_a_failure():
    before = torch.get_num_threads(), ternary_kernels.backend().threads
    with pytest.raises(RuntimeError, match="inside"), computing_threads(1):
        assert torch.get_num_threads() == 1
        assert ternary_kernels.backend().threads == 1
        raise RuntimeError("inside")
    assert (torch.get_num_threads(), ternary_kernels.backend().threads) == before
