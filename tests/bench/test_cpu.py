"""The CPU benchmark on a tiny shape: every promised row, its roofline, and peers in turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import ternary_kernels as tk

from workbench.bench import cpu, cpu_peers, cpu_turns
from workbench.bench.cpu_turns import Contender, Limits, Turns
from workbench.errors import ConfigError, StageError

TILED = [isa for isa in tk.available_isas() if isa in ("amx", "tile_model")]


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
    for precision in ("ternary", "ternary3", "ternary5", "int4", "int8", "bf16"):
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
    resident = {
        p: found["weights resident", p]["value"]
        for p in ("ternary5", "ternary3", "ternary", "int4", "int8", "bf16")
    }
    assert (
        resident["ternary5"]
        < resident["ternary3"]
        < resident["ternary"]
        < resident["int4"]
        < resident["int8"]
    )
    assert resident["ternary"] < resident["bf16"] / 2
    for ratio in ("prefill 512 over bf16", "prefill 512 over torch's products"):
        assert any(row["name"] == ratio and row["value"] > 0 for row in parsed)
    assert found["time outside kernels", "ternary"]["unit"] == "%"
    assert found["read bandwidth", ""]["value"] > 0 and found["INT8 peak", ""]["value"] > 0


def test_rows_that_nobody_can_measure_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape '7b'"):
        cpu.bench_cpu("7b")
    with pytest.raises(ConfigError, match="threads 0"):
        cpu.bench_cpu("tiny", 0)
    with pytest.raises(ConfigError, match=r"threads 100000\n.*1 to \d+: this processor"):
        cpu.bench_cpu("tiny", 100_000)


def test_named_weights_are_measured_alone() -> None:
    rows = cpu.bench_cpu("tiny", 1, only="ternary5, int8", say=[].append)
    assert [row.precision for row in rows] == ["int8"] * 3 + ["ternary5"] * 3 + ["", ""]
    with pytest.raises(ConfigError, match=r"--only int3: unknown: int3\n.*int8, TQ1_0"):
        cpu.bench_cpu("tiny", 1, only="int3")


def test_named_weights_that_need_more_than_is_left_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(cpu.NEEDS_S, "int8", 1e4)
    rows = cpu.bench_cpu("tiny", 1, only="int8,ternary5", say=[].append)
    assert {row.precision for row in rows} == {"ternary5", ""}
    assert "not measured: int8" in capsys.readouterr().err


def test_peers_without_their_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_peers, "missing_packages", lambda: ["llama_cpp"])
    with pytest.raises(ConfigError, match="bench extra"):
        cpu.bench_cpu("tiny", 1, peers=True)
    with pytest.raises(ConfigError, match="--only Q8_0 needs llama_cpp"):
        cpu.bench_cpu("tiny", 1, only="Q8_0")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender's run tells its rate instead of being timed."""
    monkeypatch.setattr(cpu_turns, "_tokens_per_s", lambda run: run())


def contender(name: str, tokens_per_s: list[float], **work: float) -> Contender:
    return Contender(name, ("test", "none", 1), partial(next, iter(tokens_per_s)), **work)


@pytest.mark.usefixtures("told")
def test_a_round_that_takes_too_long_is_the_last() -> None:
    limits = Limits(1)
    one = contender("one", [1e5] * 6)
    assert Turns(limits, one, limit_s=0).row(one).n == 1
    assert Turns(limits, one, limit_s=60).row(one).n == 5


@pytest.mark.usefixtures("told")
def test_a_ratio_is_one_of_neighbours_and_held_against_the_limit_around_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine that halves its speed in the third round changes no ratio and no share."""
    bandwidth = iter([40.0] + [40.0] * 4 + [20.0] * 6)
    measured = lambda *_: ([next(bandwidth), 1.0], "told")  # noqa: E731
    monkeypatch.setattr(cpu_turns, "read_bandwidth_gbps", measured)
    ours = contender("ours", [2e4, 2e4, 1e4, 1e4, 1e4], bytes_per_token=1e6)
    theirs = contender("theirs", [1e4, 1e4, 5e3, 5e3, 5e3])
    turns = Turns(Limits(1), ours, theirs)
    ratio = turns.ratio("over", ours, theirs)
    assert ratio.value == pytest.approx(2.0, rel=1e-9) and ratio.n == 5
    assert ratio.roofline_pct == pytest.approx(50, rel=1e-9) and ratio.limit == "20.0 GB/s"
    assert turns.row(theirs).roofline_pct is None


@pytest.mark.slow
def test_what_no_longer_fits_is_named_and_not_guessed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    @contextmanager
    def no_peer(*_: object) -> Iterator[tuple]:
        yield ()

    monkeypatch.setattr(cpu, "_peer", no_peer)
    monkeypatch.setattr(cpu, "TIME_LIMIT_S", 0.0)
    monkeypatch.setattr(cpu_peers, "missing_packages", list)
    rows = cpu.bench_cpu("tiny", 1, peers=True, say=[].append)
    assert {row.precision for row in rows} == {"ternary", "bf16", ""}
    said = capsys.readouterr().err
    for kind in cpu.NEEDS_S:
        together = ("int4_tables", "Q4_0")
        asked = ",".join(together) if kind in together else kind  # those take turns
        assert f"not measured: {asked}, 0 s" in said
        assert f"--threads 1 --only {asked}\n" in said


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


@pytest.mark.skipif(not TILED, reason="no tile unit, and no library with its model")
def test_prompts_on_tiles_stand_beside_vectors_and_torch() -> None:
    before = tk.backend().isa
    tk.force_isa(TILED[0])
    try:
        rows = cpu.bench_cpu("tiny", 1, only="prompts", say=[].append)
        assert tk.backend().isa == TILED[0]
    finally:
        tk.force_isa(before)
    engines = {row.engine for row in rows if row.name.startswith("prefill 512")}
    vectors = f"native {'avx512vbmi' if TILED[0] == 'amx' else 'plain'}"
    assert engines == {f"{vectors} + {TILED[0]}_int8", f"{vectors} + {TILED[0]}_bf16", vectors}
    ratio = next(row for row in rows if row.name == "prefill 512 over vectors")
    assert ratio.unit == "x" and ratio.n == 5 and ratio.limit.endswith("GMAC/s")
