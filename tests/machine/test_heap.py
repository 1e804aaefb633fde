"""Freed memory: kept while a training runs, given back at its end."""

from __future__ import annotations

import resource

import pytest
import torch

from workbench.machine import heap

SIZE = 16 * 2**20
MOST = 200
"""Page faults of tensors that reuse memory; anew they are SIZE / 4096 pages, 4,096, each."""


def faults(times: int = 8) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(heap._glibc() is None, reason="the allocator is not glibc's")
def test_a_tensor_takes_the_pages_of_the_one_before() -> None:
    with heap.freed_memory_kept(), heap.freed_memory_kept():
        faults()
        assert faults() < MOST


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(heap._glibc() is None, reason="the allocator is not glibc's")
def test_it_is_given_back_at_the_end_of_the_outermost() -> None:
    with heap.freed_memory_kept():
        with heap.freed_memory_kept():
            large = torch.ones(16 * SIZE // 4)
            del large
        kept = resident()
    assert resident() < kept - 8 * SIZE


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with heap.freed_memory_kept():
        assert torch.ones(2).sum() == 2
