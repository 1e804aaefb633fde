"""Products of dense ternary codes beside two bits: ``python -m workbench.bench.base3``.

Base 3 by tables and by carries, and triples by looked-up sums.

Matrices that together outgrow every cache are multiplied one after the other, each kernel in
turn, so that what else the machine does falls on all. A ratio is the median of those within a
round. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import ternary_kernels as tk
import torch

from workbench.errors import ConfigError

N, K = 8192, 3072
MATRICES = 14
"""88 MB of two-bit codes."""
CARRIES, TABLES = "avx512vnni", "avx512vbmi"


def compare(threads: int, rows: int, rounds: int) -> dict[str, Any]:
    """One row: ratios of times, and bytes a second read. Raises ConfigError without VBMI."""
    if TABLES not in tk.available_isas():
        raise ConfigError(
            f"this processor has none of {TABLES}",
            allowed="a processor with AVX-512 VBMI: AMD since Zen 4, Intel since Ice Lake",
        )
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 3, (N, K), generator=draw)
    scale, x = torch.rand(N, generator=draw), torch.randn(rows, K, generator=draw)
    two = [tk.PackedTernary.from_codes(codes.roll(i, 0), scale) for i in range(MATRICES)]
    five = [tk.PackedTernary5.from_codes(codes.roll(i, 0), scale) for i in range(MATRICES)]
    three = [tk.PackedTernary3.from_codes(codes.roll(i, 0), scale) for i in range(MATRICES)]
    kernels = {
        "two bits": (TABLES, two), "carries": (CARRIES, five), "tables": (TABLES, five),
        "triples": (TABLES, three),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    before = tk.backend()
    tk.set_threads(threads)
    try:
        for _ in range(rounds + 1):
            for name, (isa, weights) in kernels.items():
                tk.force_isa(isa)
                began = time.perf_counter()
                for weight in weights:
                    tk.linear(x, weight)
                seconds[name].append(time.perf_counter() - began)
    finally:
        tk.force_isa(before.isa)
        tk.set_threads(before.threads)
    times = {name: own[1:] for name, own in seconds.items()}  # the first round fills the caches

    def ratio(over: str, of: str) -> float:
        pairs = zip(times[over], times[of], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    size = {name: sum(w.nbytes for w in weights) for name, (_, weights) in kernels.items()}
    speed = {name: size[name] / statistics.median(own) / 1e9 for name, own in times.items()}
    return {
        "kind": "measured", "threads": threads, "rows": rows, "rounds": rounds,
        "tables_over_carries": ratio("carries", "tables"),
        "base3_over_two_bits": ratio("two bits", "tables"),
        "triples_over_two_bits": ratio("two bits", "triples"),
        "gb_per_s": {name: round(value, 1) for name, value in speed.items()},
        "bytes_over_two_bits": round(size["tables"] / size["two bits"], 3),
        "triples_bytes_over_two_bits": round(size["triples"] / size["two bits"], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    for row in _rows(options.rounds):
        print(json.dumps(row), flush=True)


def _rows(rounds: int) -> Iterator[dict[str, Any]]:
    for threads, rows in ((1, 1), (torch.get_num_threads(), 1), (1, 2), (1, 4), (1, 8)):
        yield compare(threads, rows, rounds)


if __name__ == "__main__":
    main()
