"""The CPU benchmark on a tiny shape: every promised row, its roofline, and peers in turns."""

from __future__ import annotations

import json

import pytest

from workbench.bench import cpu, cpu_peers
from workbench.bench.cpu_rows import rates
from workbench.errors import ConfigError, StageError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PROMPT", 16)
    monkeypatch.setattr(cpu, "OUTPUT", 8)


def test_every_row_of_every_precision_as_json() -> None:
    lines: list[str] = []
    rows = cpu.bench_cpu("tiny", 1, as_json=True, say=lines.append)
    parsed = [json.loads(line) for line in lines]
    assert len(parsed) == len(rows)
    assert {"name", "engine", "precision", "threads", "value", "lo", "hi", "unit", "n",
            "roofline_pct"} <= parsed[0].keys()  # fmt: skip
    found = {(row["name"], row["precision"]): row for row in parsed}
    for precision in ("ternary", "ternary5", "int8", "bf16"):
        decode = found["decode", precision]
        assert decode["n"] == 5 and decode["lo"] <= decode["value"] <= decode["hi"]
        assert decode["roofline_pct"] > 0 and decode["limit"].endswith("GB/s")
        assert found["prefill 512", precision]["value"] > 0
    assert found["prefill 512", "ternary"]["limit"].endswith("GMAC/s")
    assert found["prefill 512", "bf16"]["roofline_pct"] is None
    for name in ("decode, batch 8 over 1", "decode over bf16"):
        ratio = found[name, "ternary"]
        assert ratio["unit"] == "x" and ratio["n"] == 5 and ratio["lo"] <= ratio["value"]
        assert ratio["roofline_pct"] > 0 and ratio["limit"].endswith("GB/s")
    resident = {p: found["weights resident", p]["value"] for p in ("ternary5", "ternary", "bf16")}
    assert resident["ternary5"] < resident["ternary"] < resident["bf16"] / 2
    assert found["time outside kernels", "ternary"]["unit"] == "%"
    assert found["read bandwidth", ""]["value"] > 0 and found["INT8 peak", ""]["value"] > 0


def test_rows_that_nobody_can_measure_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape '7b'"):
        cpu.bench_cpu("7b")
    with pytest.raises(ConfigError, match="threads 0"):
        cpu.bench_cpu("tiny", 0)


def test_peers_without_their_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_peers, "missing_packages", lambda: ["llama_cpp"])
    with pytest.raises(ConfigError, match="bench extra"):
        cpu.bench_cpu("tiny", 1, peers=True)


def test_a_run_that_takes_too_long_is_the_last() -> None:
    assert len(rates(lambda: 1, 5, 0.0)) == 1
    assert len(rates(lambda: 1, 5, 60.0)) == 5


needs_peers = pytest.mark.skipif(
    bool(cpu_peers.missing_packages()), reason="the bench extra is not installed"
)


@needs_peers
def test_peers_take_turns_with_ours() -> None:
    rows = {(r.name, r.precision): r for r in cpu.bench_cpu("tiny", 1, peers=True, say=[].append)}
    for kind in cpu_peers.PEERS:
        assert rows["decode", kind].n == 5 and rows["decode", kind].engine == "llama.cpp"
    for name, ours in (("TQ2_0", "ternary"), ("F16", "bf16")):
        ratio = rows[f"decode over {name}", ours]
        assert ratio.unit == "x" and ratio.n == 5 and 0 < ratio.lo <= ratio.value <= ratio.hi
        assert (f"prefill 512 over {name}", ours) in rows


@needs_peers
def test_a_peer_that_cannot_load_says_why(tmp_path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    with cpu_peers.Peer(path, 1, 16, 8) as peer, pytest.raises(StageError, match="refuses"):
        peer.prefill()
