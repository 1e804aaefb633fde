"""The comparison of dense ternary codes runs, and leaves the kernels as they were."""

from __future__ import annotations

import pytest
import ternary_kernels as tk

from workbench.bench import base3
from workbench.errors import ConfigError


def test_a_row_has_its_ratios_and_the_kernels_stay_as_they_were(monkeypatch) -> None:
    before = tk.backend()
    monkeypatch.setattr(base3, "N", 64)
    monkeypatch.setattr(base3, "K", 640)
    if base3.TABLES not in tk.available_isas():
        with pytest.raises(ConfigError, match="VBMI"):
            base3.compare(1, 1, 2)
        return
    row = base3.compare(1, 1, 2)
    assert row["tables_over_carries"] > 0 and row["gb_per_s"]["tables"] > 0
    assert row["bytes_over_two_bits"] == pytest.approx(0.8, abs=0.05)
    assert row["triples_over_two_bits"] > 0 and row["gb_per_s"]["triples"] > 0
    assert row["triples_bytes_over_two_bits"] == pytest.approx(5 / 6, abs=0.06)
    assert tk.backend() == before
