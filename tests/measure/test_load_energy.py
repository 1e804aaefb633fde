"""Energy of served traffic: what a request, a token and an accepted answer took, and why not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.measure.accepted_energy import counting_checks
from workbench.measure.dependence import ratio_of_sums_over_blocks
from workbench.measure.load_energy import by_regression, by_time, load_energy_figures
from workbench.measure.statistics import share

ARMS = ["full_precision", "ternary"]
BLOCKS, LENGTH_S, IDLE_W = 10, 20.0, 30.0
PREFILL_J = {"full_precision": 0.5, "ternary": 0.4, "today": 0.5}
DECODE_J = {"full_precision": 4.0, "ternary": 2.0, "today": 5.0}
SHAPES = pd.DataFrame(
    [
        {"arm": arm, "batch": batch, "phase": phase, "seconds": seconds, "tokens": 100}
        for arm in ARMS
        for batch in (1, 4)
        for phase, seconds in (("prefill", 0.2), ("decode", 1.8 * batch))
    ]
)


def load(arms, seed=0, blocks=BLOCKS, failed=0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Requests and energies whose net energy is known to the joule."""
    random = np.random.default_rng(seed)
    requests, energies = [], []
    for block in range(blocks):
        n = int(random.integers(8, 20))
        prompts, outputs = random.integers(10, 200, n), random.integers(1, 40, n)
        for arm in arms:
            lost = random.random(n) < failed
            for i in range(n):
                requests.append({
                    "block": block, "id": 100 * block + i, "arm": arm,
                    "status": "failed" if lost[i] else "ok", "sent_s": 1.0, "last_token_s": 2.0,
                    "prompt_tokens": int(prompts[i]),
                    "output_tokens": 0 if lost[i] else int(outputs[i]),
                })  # fmt: skip
            own = ~lost
            net_j = PREFILL_J[arm] * prompts[own].sum() + DECODE_J[arm] * outputs[own].sum()
            energies.append({
                "block": block, "order": 0, "arm": arm, "start_s": 0.0, "end_s": LENGTH_S,
                "basis": "node", "covers": "the whole node (csv a)", "kind": "measured",
                "energy_j": net_j + IDLE_W * LENGTH_S, "idle_w": IDLE_W, "idle_error_w": 0.0,
                "error_j": 0.0,
                "bias_j": 0.0, "how": "gross",
            })  # fmt: skip
    return pd.DataFrame(requests), pd.DataFrame(energies)


def figures(requests, energies, arms=ARMS, own=ARMS, **more):
    found = load_energy_figures(requests, energies, SHAPES, arms, own, **more)
    return {(m.name, m.labels["arm"]): m for m in found}


def test_a_request_a_token_and_an_accepted_answer_have_their_energy() -> None:
    requests, energies = load(ARMS, failed=0.2)
    made = figures(requests, energies)
    for arm in ARMS:
        own = requests[requests["arm"] == arm]
        gross_j = energies.loc[energies["arm"] == arm, "energy_j"].sum()
        net_j = gross_j - BLOCKS * IDLE_W * LENGTH_S
        whole = (own["status"] == "ok").sum()
        wanted = {
            "energy_j_per_request": gross_j / len(own),
            "energy_net_j_per_request": net_j / len(own),
            "energy_j_per_token": gross_j / own["output_tokens"].sum(),
            "energy_j_per_accepted_answer": gross_j / whole,
        }
        for name, value in wanted.items():
            metric = made[name, arm]
            assert metric.value == pytest.approx(value), name
            assert metric.lo < value < metric.hi and metric.kind == "measured"
            assert metric.labels == {"arm": arm, "source": "load"}
    assert made["energy_j_per_accepted_answer", "ternary"].value > (
        made["energy_j_per_request", "ternary"].value
    )
    for name in ("energy_ratio", "energy_net_ratio", "accepted_answer_energy_ratio"):
        ratio = made[name, "ternary"]
        assert 1.0 < ratio.lo < ratio.value < ratio.hi and ratio.kind == "derived"
        assert (name, "full_precision") not in made
    assert made["energy_net_ratio", "ternary"].value > made["energy_ratio", "ternary"].value


def test_prompt_and_generated_tokens_are_told_apart_where_the_blocks_tell() -> None:
    requests, energies = load(ARMS)
    made = figures(requests, energies)
    for arm in ARMS:
        prefill = made["prefill_energy_j_per_token", arm]
        decode = made["decode_energy_j_per_token", arm]
        own = requests[requests["arm"] == arm]
        gross_j = energies.loc[energies["arm"] == arm, "energy_j"].sum()
        parts_j = prefill.value * own["prompt_tokens"].sum()
        parts_j += decode.value * own["output_tokens"].sum()
        assert parts_j == pytest.approx(gross_j), "the parts are the whole"
        assert decode.value / prefill.value == pytest.approx(DECODE_J[arm] / PREFILL_J[arm])
        assert f"{PREFILL_J[arm]:.3g} ± " in prefill.how and "by regression over 10" in prefill.how


def test_few_blocks_are_split_by_the_times_of_the_fixed_shapes() -> None:
    made = figures(*load(ARMS, blocks=7))
    prefill, decode = (made[f"{of}_energy_j_per_token", "ternary"] for of in ("prefill", "decode"))
    assert decode.value / prefill.value == pytest.approx(1.8 / 0.2)
    assert "by time: 2 ms a prompt and 18 ms a generated token" in prefill.how
    assert "at batch 1" in prefill.how and "1.2 requests at once" not in prefill.how
    assert made["energy_j_per_request", "ternary"].lo is not None

    few = figures(*load(ARMS, blocks=2))["energy_j_per_request", "ternary"]
    assert few.lo is None and "an interval needs 6" in few.reason


def test_one_mix_of_tokens_in_every_block_identifies_nothing() -> None:
    tokens = np.full(12, 100.0)
    noise = np.random.default_rng(1).normal(0, 5, 12)
    blocks = pd.DataFrame(
        {
            "prompt_tokens": 8 * tokens + noise,
            "output_tokens": tokens,
            "net_j": 500 + 4 * noise[::-1],
        }
    )
    assert by_regression(blocks) is None
    assert by_time(blocks.assign(busy_s=1, start_s=0, end_s=1), SHAPES, "unknown") is None


def test_an_address_has_energy_by_the_meters_of_its_node_alone() -> None:
    arms = [*ARMS, "today"]
    requests, energies = load(arms)
    none = energies.copy()
    today = none["arm"] == "today"
    none.loc[today, ["energy_j", "basis", "covers"]] = [None, "", ""]
    none.loc[today, "how"] = "no_meter: an address gives no energy"
    made = figures(requests, none, arms)
    assert made["energy_j_per_request", "today"].reason == "no_meter: an address gives no energy"
    assert "today: no_meter" in made["energy_ratio", "today"].reason
    assert made["energy_ratio", "ternary"].value is not None, "the others do not suffer"

    metered = figures(requests, energies, arms)
    assert metered["energy_j_per_request", "today"].value is not None
    assert metered["energy_net_ratio", "today"].hi < 1.0
    assert "by regression" in metered["decode_energy_j_per_token", "today"].how
    boards = energies.copy()
    boards.loc[today, ["basis", "covers"]] = ["gpu", "GPU boards alone (csv b)"]
    other = figures(requests, boards, arms)
    assert "no one basis" in other["energy_ratio", "today"].reason


def test_what_cannot_be_said_says_why() -> None:
    requests, energies = load(ARMS)
    left_out = figures(requests, energies, why_none="left out")
    assert {m.reason for m in left_out.values()} == {"left out"}
    short = energies.assign(energy_j=None, how="too_short: csv a: 0 samples in 0.110 s; with ...")
    made = figures(requests, short)
    assert "too_short: csv a: 0 samples" in made["energy_j_per_token", "ternary"].reason
    unknown = figures(requests, energies.assign(idle_w=None))
    assert "no idle power" in unknown["energy_net_j_per_request", "ternary"].reason
    assert unknown["energy_ratio", "ternary"].value is not None
    nothing = requests.assign(status="failed", output_tokens=0)
    failed = figures(nothing, energies)
    assert "no accepted of this arm" in failed["energy_j_per_accepted_answer", "ternary"].reason
    assert failed["accepted_answer_energy_ratio", "ternary"].value is None


def test_what_a_meter_has_wrong_in_every_block_widens_the_intervals() -> None:
    requests, energies = load(ARMS)
    exact, biased = figures(requests, energies), figures(requests, energies.assign(bias_j=50.0))
    for name in ("energy_j_per_request", "energy_ratio"):
        one, other = exact[name, "ternary"], biased[name, "ternary"]
        assert other.value == one.value and other.lo < one.lo and other.hi > one.hi


def test_a_ratio_of_sums_weighs_blocks_by_their_requests_and_holds_the_truth() -> None:
    assert ratio_of_sums_over_blocks([10, 90], [1, 3]).value == 25.0
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        n = random.poisson(15, 8) + 1
        joules = 600 + np.array([random.gamma(2.0, 20.0, k).sum() for k in n])
        held += (e := ratio_of_sums_over_blocks(joules, n)).lo <= 40 + 600 / 16 <= e.hi
    assert held / 300 > 0.93


def test_accepted_answers_keep_to_the_checks_of_own_prompts() -> None:
    """Half of full precision's answers keep to their check and a quarter of ternary's: an accepted
    answer takes 2 and 4 times what a whole one takes, and the ratio is half of what it was."""
    requests, energies = load([*ARMS, "today"])
    before = figures(requests, energies, [*ARMS, "today"])
    kept = {"full_precision": share(32, 64), "ternary": share(16, 64)}
    shares = {arm: of.metric("accepted_share", "share", "", arm=arm) for arm, of in kept.items()}
    after = {
        (m.name, m.labels["arm"]): m
        for m in counting_checks(before.values(), shares, "full_precision")
    }
    energy, ratio = "energy_j_per_accepted_answer", "accepted_answer_energy_ratio"
    for arm, of in kept.items():
        found, whole = after[energy, arm], before[energy, arm]
        assert found.value == pytest.approx(whole.value / of.value)
        # Of two independent parts the wider one bounds the interval from within.
        assert (
            found.lo < found.value * of.value / of.hi and found.hi > found.value * of.value / of.lo
        )
        assert found.how == whole.how + (
            f"; {of.value:.2%} of the answers of {arm} to 64 own prompts keep to their check"
        )
        assert after["energy_j_per_request", arm] == before["energy_j_per_request", arm]
    compared = after[ratio, "ternary"]
    assert compared.value == pytest.approx(before[ratio, "ternary"].value / 2)
    own, base = kept["ternary"], kept["full_precision"]
    assert compared.lo < compared.value * (own.lo / own.value)
    assert compared.hi > compared.value * (own.hi / own.value)
    assert compared.hi > compared.value * (base.value / base.lo)
    assert after["energy_ratio", "ternary"] == before["energy_ratio", "ternary"]
    for name in (energy, ratio):
        assert after[name, "today"].value is None
        assert "not put to today" in after[name, "today"].reason


def test_an_arm_that_no_check_accepts_has_no_energy_of_an_accepted_answer() -> None:
    before = figures(*load(ARMS))
    counts = {"full_precision": share(9, 9), "ternary": share(0, 9)}
    shares = {arm: of.metric("accepted_share", "share", "", arm=arm) for arm, of in counts.items()}
    after = list(counting_checks(before.values(), shares, "full_precision"))
    none = [m for m in after if "accepted" in m.name and m.labels["arm"] == "ternary"]
    assert [m.reason for m in none] == 2 * ["ternary: no answer to own prompts keeps to its check"]
    assert list(counting_checks(before.values(), {}, "full_precision")) == list(before.values())
