import pytest
import torch

from workbench.measure.bandwidth import read_bandwidth_gbps, torch_threads


def test_every_repetition_gives_a_bandwidth_of_this_world():
    values, how = read_bandwidth_gbps(1, buffer_mib=8, repetitions=4)
    assert len(values) == 4
    # From an SD card to the fastest cache.
    assert all(0.01 < v < 10_000 for v in values)
    assert how


def test_the_number_of_threads_is_put_back_even_after_a_failure():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), torch_threads(1):
        assert torch.get_num_threads() == 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before
