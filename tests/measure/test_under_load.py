"""Figures of arms under one load: planted differences are found, equal arms are not apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.measure.dependence import share_difference_over_blocks
from workbench.measure.under_load import dispatch_delays, load_figures
from workbench.records.metric import Metric

ARMS = ("full_precision", "ternary")
SLOS = {"interactive": {"ttft_ms": 200.0, "tpot_ms": None, "e2e_s": None}}
BLOCK_S = 4.0


def session(
    slower: float = 1.0, blocks: int = 8, each: int = 40, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two arms on the same requests: one server each, whose work is the same but for noise and
    ``slower``."""
    draw = np.random.default_rng(seed)
    rows, gaps = [], []
    for block in range(blocks):
        due = np.sort(draw.uniform(0, BLOCK_S, each))
        work = draw.gamma(4, 0.015, each)
        for arm in ARMS:
            factor = slower if arm == "ternary" else 1.0
            free = 0.0
            for i in range(each):
                free = max(free, due[i]) + factor * work[i] * draw.normal(1, 0.02)
                rows.append({
                    "block": block, "id": i, "arm": arm, "class": "interactive",
                    "intended_s": due[i], "sent_s": due[i] + 1e-4, "first_token_s": free,
                    "last_token_s": free + 0.03, "end_s": free + 0.03, "output_tokens": 4,
                    "wanted_tokens": 4, "status": "ok", "fault": None,
                })  # fmt: skip
                gaps += [{"block": block, "id": i, "arm": arm, "gap_ms": 10.0 * factor}] * 3
    return pd.DataFrame(rows), pd.DataFrame(gaps)


def figures(*tables: pd.DataFrame, late: str | None = None) -> dict[tuple[str, ...], Metric]:
    found = load_figures(*tables, ARMS, SLOS, BLOCK_S, ("hung", "refused"), late)
    made = {(m.name, *(m.labels[k] for k in sorted(m.labels) if k != "source")): m for m in found}
    assert {m.labels["source"] for m in made.values()} == {"load"}
    return made


def test_a_planted_difference_is_found_and_equal_arms_are_not_called_apart() -> None:
    made = figures(*session(slower=1.25))
    for name in ("ttft_speedup", "e2e_speedup"):
        ratio = made[name, "ternary", "p50"]
        assert ratio.hi < 1 and ratio.p_value < 0.01, name
    # Every gap is 10 against 12.5 ms.
    assert made["itl_speedup", "ternary", "p50"].value == pytest.approx(0.8)
    assert made["slo_met_difference", "ternary", "interactive"].hi < 0
    assert made["goodput_difference_per_s", "ternary"].value < 0

    seen = made["smallest_visible_effect", "ternary", "p50", "ttft_speedup"]
    ratio = made["ttft_speedup", "ternary", "p50"]
    assert 0 < seen.value < 1 / ratio.hi - 1 + 0.25 and seen.n == ratio.n == 8
    assert ("smallest_visible_effect", "ternary", "p99", "ttft_speedup") not in made, "no interval"

    apart = 0
    for seed in range(20):
        made = figures(*session(seed=seed, each=24))
        ratio = made["ttft_speedup", "ternary", "p95"]
        apart += ratio.lo > 1 or ratio.hi < 1
    assert apart <= 3


def test_each_arm_has_its_own_latencies_and_a_tail_only_with_enough_requests() -> None:
    requests, gaps = session(each=40)
    made = figures(requests, gaps)
    for arm in ARMS:
        own = requests[requests["arm"] == arm]
        ttft_ms = 1e3 * (own["first_token_s"] - own["intended_s"])
        assert made["ttft_ms", arm, "p95"].value == pytest.approx(np.quantile(ttft_ms, 0.95))
        assert made["tpot_ms", arm, "p50"].value == pytest.approx(10.0)
        assert made["itl_ms", arm, "p50"].n == 3 * len(own)
        share = made["slo_met_share", arm, "interactive"]
        assert share.value == pytest.approx((ttft_ms <= 200).mean()) and share.lo < share.value
        goodput = made["goodput_per_s", arm]
        assert goodput.value == pytest.approx((ttft_ms <= 200).sum() / 8 / BLOCK_S)
        assert made["failed_requests", arm, "hung"].value == 0
    tail = made["ttft_ms", "ternary", "p99"]
    assert tail.value is not None and tail.lo is None and "p99 needs 368" in tail.reason
    assert "no block has the 100 observations" in made["ttft_speedup", "ternary", "p99"].reason
    few = figures(*session(blocks=2, each=5))
    assert few["ttft_ms", "ternary", "p95"].reason == "10 were observed; p95 needs 20 for a value"
    assert "an interval needs 6" in few["ttft_ms", "ternary", "p50"].reason


def test_tokens_that_came_together_give_no_ratio() -> None:
    requests, gaps = session()
    made = figures(requests, gaps.assign(gap_ms=0.0))
    assert made["itl_ms", "ternary", "p50"].value == 0
    assert "the tokens of an answer came together" in made["itl_speedup", "ternary", "p50"].reason


def test_a_stall_of_one_arm_stands_in_its_tail_and_not_in_the_others() -> None:
    requests, gaps = session(each=40)
    stalled = (requests["arm"] == "ternary") & requests["block"].isin([2, 5])
    stalled &= requests["intended_s"].between(1.0, 1.5)
    assert stalled.sum() >= 4
    for column in ("first_token_s", "last_token_s", "end_s"):
        requests.loc[stalled, column] += 5.0
    made = figures(requests, gaps)
    assert made["ttft_ms", "ternary", "p99"].value > 4000
    assert made["ttft_ms", "full_precision", "p99"].value < 2000


def test_what_an_arm_did_not_answer_counts_against_it_alone() -> None:
    requests, gaps = session(each=40)
    lost = (requests["arm"] == "ternary") & (requests["id"] % 4 == 0)
    requests.loc[lost, ["first_token_s", "last_token_s"]] = np.nan
    requests.loc[lost, ["status", "fault"]] = ["failed", "refused"]
    requests.loc[lost, "output_tokens"] = 0
    made = figures(requests, gaps)
    assert made["failed_requests", "ternary", "refused"].value == lost.sum() == 80
    assert made["failed_requests", "full_precision", "refused"].value == 0
    shares = [made["slo_met_share", arm, "interactive"].value for arm in ARMS]
    assert shares[0] - shares[1] > 0.2
    assert made["goodput_difference_per_s", "ternary"].hi < 0
    # Latencies are compared on the requests that both answered: there the arms are alike.
    ratio = made["e2e_speedup", "ternary", "p50"]
    assert ratio.lo < 1 < ratio.hi and ratio.value == pytest.approx(1, abs=0.05)


def test_nothing_is_read_from_the_latencies_of_a_late_client() -> None:
    requests, gaps = session()
    assert dispatch_delays(requests)["p99"].value == pytest.approx(0.1, rel=1e-3)
    made, whole = figures(requests, gaps, late="the client was late"), figures(requests, gaps)
    read_from_others = ("difference", "smallest_visible_effect")
    named = {key for key in whole if not any(word in key[0] for word in read_from_others)}
    assert set(made) == named
    for (name, *_), metric in made.items():
        assert (metric.value is None) == (name != "failed_requests"), name
        assert name == "failed_requests" or metric.reason == "the client was late"


def test_a_class_without_target_or_requests_says_so() -> None:
    requests, gaps = session()
    slos = {"interactive": {"ttft_ms": None}, "batch": {"e2e_s": 60.0}}
    made = list(load_figures(requests, gaps, ARMS, slos, BLOCK_S, ()))
    why = {m.labels["class"]: m.reason for m in made if m.name == "slo_met_share"}
    assert why == {
        "interactive": "the class has no target", "batch": "no request of this class was due"
    }  # fmt: skip
    assert all(m.value is None for m in made if m.name == "goodput_per_s")


def test_a_difference_of_shares_knows_what_its_shares_know() -> None:
    """Nothing missed proves no equality, and what the blocks have in common is no noise."""
    blocks = np.repeat(np.arange(8), 40)
    all_met = np.ones(320)
    found = share_difference_over_blocks(all_met, all_met, blocks)
    assert found.value == 0 and -0.1 < found.lo < 0 < found.hi < 0.1
    hard = np.random.default_rng(0).random(320) < np.repeat(np.linspace(0.1, 0.9, 8), 40)
    same = share_difference_over_blocks(hard, hard, blocks)
    turned = share_difference_over_blocks(hard, hard[::-1], blocks)
    assert same.hi - same.lo < 0.5 * (turned.hi - turned.lo)
    few = share_difference_over_blocks(hard[:200], hard[:200], blocks[:200])
    assert few.lo is None and "an interval needs 6" in few.reason
