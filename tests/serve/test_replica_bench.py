"""Two real servers behind the router beside two simulated ones."""

from __future__ import annotations

import json

import pytest

from workbench.bench import replica as bench


@pytest.mark.slow
def test_two_servers_behind_the_router_are_held_against_the_simulation(arms, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "PROMPTS", (8, 40))
    monkeypatch.setattr(bench, "OUTPUTS", (4, 16))
    monkeypatch.setattr(bench, "CONTEXT", 64)
    out = tmp_path / "replica.jsonl"
    rows = bench.bench_replica(arms["hybrid"], 2, blocks=2, requests=40, busy=0.4, out=out)
    assert [json.loads(line)["name"] for line in out.read_text().splitlines()] == [
        row["name"] for row in rows
    ]
    assert len(rows) == 6 and {row["requests"] for row in rows} == {40}
    assert all(row["simulated_ms"] > 0 and row["measured_ms"] > 0 for row in rows)
    assert "2 replicas" in rows[0]["of"] and rows[0]["factor"] >= 0.5
