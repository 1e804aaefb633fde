"""Own prompts and tasks through small engines: what is compared, counted, kept and gone on with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.data.document import Document
from workbench.data.own_prompts import OwnPrompt
from workbench.data.own_tasks import TaskRow
from workbench.data.tokenizer import train_tokenizer
from workbench.engine.engine import Engine
from workbench.measure.log_likelihood import likelihood, split_tokens
from workbench.measure.own_figures import PromptFigures, task_figures, task_pairs
from workbench.measure.own_prompts import answer_prompts, repeated_grams
from workbench.measure.own_tasks import score_task
from workbench.measure.statistics import paired_share_difference

CONFIG = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96, eos_token_id=5,
)  # fmt: skip
CLOSE = 0.05
"""Texts of other lengths are multiplied by other units; logits of one row are units apart."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Document("d", "s", "the sun rises and sets, one two three " * 9)], 300)


@pytest.fixture(scope="module")
def engines():
    """Arms ``full_precision`` and its like ``checkpoint``, and one far from them."""
    made = {}
    for arm, seed in (("full_precision", 0), ("checkpoint", 0), ("ternary", 1)):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG)
        with torch.no_grad():
            model.lm_head.weight.mul_(20.0)
        made[arm] = Engine.from_model(model, slots=1, kv_dtype="float32", threads=1)
    yield made
    for engine in made.values():
        engine.close()


def asked(engines, tokenizer, path: Path, texts: tuple[str, ...]) -> pd.DataFrame:
    own = [
        OwnPrompt(prompt=text, regex=".", max_tokens=4 + place) for place, text in enumerate(texts)
    ]
    ids = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    return answer_prompts(engines, "checkpoint", own, ids, tokenizer, 8, path)


def test_arms_are_compared_at_the_places_of_the_references_answer(
    engines, tokenizer, tmp_path: Path
) -> None:
    rows = asked(engines, tokenizer, tmp_path / "kept.jsonl", ("the sun", "one two"))
    assert list(rows["arm"].unique()) == ["checkpoint", "full_precision", "ternary"]
    by_arm = rows.groupby("arm")[["agreed", "places", "kl_nats"]].sum()
    assert by_arm.loc["full_precision", "agreed"] == by_arm.loc["checkpoint", "places"]
    assert by_arm.loc["full_precision", "kl_nats"] == pytest.approx(0.0, abs=1e-6)
    # The other arm by softmax in double precision, over prompt and the reference's answer.
    ids = [tokenizer.bos_token_id, *tokenizer("the sun")["input_ids"]]
    first = rows[(rows["prompt"] == rows["prompt"].iloc[0]) & (rows["arm"] == "checkpoint")].iloc[0]
    request = engines["checkpoint"].generate(_greedy(ids, 4))
    assert first["tokens"] == len(request.tokens) and first["ended"] == request.finish_reason
    read = [*ids, *request.tokens][: len(ids) + first["places"] - 1]
    p, q = (
        torch.log_softmax(
            torch.from_numpy(engines[arm].logits(read)[len(ids) - 1 :].astype(np.float64)), -1
        )
        for arm in ("checkpoint", "ternary")
    )
    other = rows[(rows["arm"] == "ternary")].iloc[0]
    assert other["kl_nats"] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
    assert other["agreed"] == int((p.argmax(-1) == q.argmax(-1)).sum())


def _greedy(ids, most):
    from workbench.engine.request import GenerationRequest

    return GenerationRequest(tuple(ids), most)


def test_a_killed_stage_goes_on_behind_the_prompts_it_has(
    engines, tokenizer, tmp_path: Path
) -> None:
    whole = asked(engines, tokenizer, tmp_path / "whole.jsonl", ("the sun", "one two", "sets"))
    asked(engines, tokenizer, tmp_path / "cut.jsonl", ("the sun", "one two", "sets"))
    path = tmp_path / "cut.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1]) + lines[1][:20])
    calls = []
    engine = engines["ternary"]
    generate = engine.generate
    engine.generate = lambda request: calls.append(request) or generate(request)
    again = asked(engines, tokenizer, path, ("the sun", "one two", "sets"))
    del engine.generate
    pd.testing.assert_frame_equal(again, whole)
    assert len(calls) == 2


def test_logits_from_a_token_on_are_the_last_ones(engines) -> None:
    engine, tokens = engines["ternary"], list(range(6, 50))
    whole = engine.logits(tokens)
    for first in (0, 1, 20, 43):
        np.testing.assert_allclose(engine.logits(tokens, first=first), whole[first:], atol=CLOSE)


@pytest.mark.parametrize(
    ("tokens", "repeated", "of"),
    [([1, 2, 3], 0, 0), ([1, 2, 3, 4], 0, 1), ([7] * 10, 6, 7), ([1, 2, 3, 4] * 2, 1, 5)],
)
def test_repetition_is_the_share_of_4_grams_seen_before(tokens, repeated, of) -> None:
    assert repeated_grams(tokens) == (repeated, of)


def answered(arm: str, n: int, **columns) -> pd.DataFrame:
    usual = {"tokens": 8, "repeated": 0, "grams": 5, "agreed": 8, "places": 9, "kl_nats": 0.9,
             "accepted": None}  # fmt: skip
    rows = pd.DataFrame({name: [value] * n for name, value in (usual | columns).items()})
    return rows.assign(arm=arm, prompt=[str(k) for k in range(n)])


def figures(*parts: pd.DataFrame) -> dict:
    made = PromptFigures("checkpoint", "full_precision", 500, 1).of(pd.concat(parts))
    return {(metric.name, metric.labels["arm"]): metric for metric in made}


def test_figures_are_sums_over_prompts_and_say_when_prompts_are_too_few() -> None:
    scatter = np.random.default_rng(0).uniform(0, 4, 80)
    found = figures(
        answered("checkpoint", 80),
        answered("full_precision", 80, agreed=9, kl_nats=scatter.tolist()[0]),
        answered("ternary", 80, tokens=4, repeated=5, agreed=0).assign(kl_nats=scatter),
    )
    assert ("kl_nats_per_token", "checkpoint") not in found
    kl = found["kl_nats_per_token", "ternary"]
    assert kl.value == pytest.approx(scatter.sum() / (80 * 9)) and kl.lo < kl.value < kl.hi
    assert found["answer_length_ratio", "ternary"].value == 0.5
    assert found["answer_repetition", "ternary"].value == 1.0
    # All prompts alike is not certainty: 80 of 80 leave room for one in twenty.
    agreed = found["top1_agreement", "full_precision"]
    assert (agreed.value, agreed.hi) == (1.0, 1.0) and 0.94 < agreed.lo < 0.97
    assert "accepted_share" not in {name for name, _ in found}
    few = figures(answered("checkpoint", 9), answered("full_precision", 9, agreed=9))
    alone = few["top1_agreement", "full_precision"]
    assert alone.value == 1.0 and alone.lo is None and "9 prompts" in alone.reason


def test_what_cannot_be_a_number_is_missing_with_its_reason() -> None:
    found = figures(
        answered("checkpoint", 70, tokens=0, grams=0),
        answered("full_precision", 70, kl_nats=math.nan, grams=0),
    )
    for name, why in (
        ("kl_nats_per_token", "not finite"),
        ("answer_length_ratio", "answers of checkpoint are empty"),
        ("answer_repetition", "no answer has four tokens"),
    ):
        metric = found[name, "full_precision"]
        assert metric.value is None and why in metric.reason


def test_accepted_answers_are_compared_in_pairs() -> None:
    kept = [True] * 12 + [False] * 8 + [None] * 5
    other = [True] * 6 + [False] * 12 + [True] * 2 + [None] * 5
    found = figures(
        answered("checkpoint", 25).assign(accepted=kept),
        answered("full_precision", 25).assign(accepted=kept),
        answered("ternary", 25).assign(accepted=other),
    )
    share = found["accepted_share", "ternary"]
    exact = stats.binomtest(8, 20).proportion_ci()
    assert (share.value, share.n) == (0.4, 20)
    assert (share.lo, share.hi) == pytest.approx((exact.low, exact.high))
    difference = found["accepted_difference", "ternary"]
    assert difference.value == pytest.approx(-0.2) and difference.n == 20
    assert difference.p_value == pytest.approx(stats.binomtest(2, 8).pvalue)
    assert ("accepted_difference", "full_precision") not in found


def test_tasks_are_scored_by_the_likelihood_of_what_goes_on(
    engines, tokenizer, tmp_path: Path
) -> None:
    rows = [
        TaskRow(id="c", question="the sun", choices=["rises", "one two three"], answer=0),
        TaskRow(id="z", context="one two", target="three"),
    ]
    path = tmp_path / "task.jsonl"
    found = score_task(engines, "own", rows, tokenizer, "none", path)
    engine = engines["ternary"]
    nats, greedy = [], []
    for text in (" rises", " one two three"):
        before, after = split_tokens(tokenizer, rows[0].asked, text)
        assert tokenizer.decode(before[1:]) == rows[0].asked and tokenizer.decode(after) == text
        logits = torch.from_numpy(engine.logits([*before, *after])[len(before) - 1 : -1])
        log_p = torch.log_softmax(logits.double(), -1)
        nats.append(float(log_p[range(len(after)), after].sum()))
        greedy.append(bool((log_p.argmax(-1) == torch.tensor(after)).all()))
        scored = likelihood(engine, before, after)
        assert scored.nats == pytest.approx(nats[-1], abs=CLOSE) and scored.greedy == greedy[-1]
    choice = found[(found["row"] == "c") & (found["arm"] == "ternary")].iloc[0]
    assert choice["nats"] == pytest.approx(nats[0], abs=CLOSE) and choice["bytes"] == 5
    assert choice["correct"] == (nats[0] > nats[1])
    assert choice["correct_other"] == (nats[0] / 5 > nats[1] / 13)
    by_bytes = score_task(engines, "own", rows, tokenizer, "bytes", path)  # of what is kept
    swapped = found.rename(columns={"correct": "correct_other", "correct_other": "correct"})
    first = (by_bytes["row"] == "c").to_numpy()
    assert list(by_bytes["correct"][first]) == list(swapped["correct"][first])
    cloze = found[(found["row"] == "z")]
    assert cloze["correct_other"].isna().all() and set(cloze["kind"]) == {"cloze"}


def test_pairs_of_tasks_are_counted_and_tested() -> None:
    right = {"full_precision": [1, 1, 1, 0, 0, 0], "int4": [1, 0, 0, 1, 0, 0]}
    rows = pd.concat(
        pd.DataFrame(
            {"task": "own", "arm": arm, "row": list("abcdef"), "kind": "choice",
             "correct": [bool(x) for x in of], "correct_other": True}
        )
        for arm, of in right.items()
    )  # fmt: skip
    pairs = task_pairs(rows, "full_precision")
    (pair,) = pairs.to_dict("records")
    counts = {"both": 1, "gained": 1, "lost": 2, "neither": 2, "n": 6}
    assert {name: pair[name] for name in counts} == counts
    assert pair["difference"] == pytest.approx(-1 / 6) and pair["p"] == 1.0
    made = {(m.name, m.labels["arm"]): m for m in task_figures(rows, pairs, {"own": "bytes"})}
    assert made["task_accuracy", "int4"].value == pytest.approx(1 / 3)
    assert "largest log-likelihood a byte" in made["task_accuracy", "int4"].how
    assert made["task_accuracy_difference", "int4"].lo == pytest.approx(pair["lo"])


def test_an_interval_of_a_paired_difference_misses_seldom_enough() -> None:
    """The chance that it lies wholly to one side of the truth, over all outcomes of 30 pairs."""
    n, tables = 30, []
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            found = paired_share_difference(gained, lost, n)
            assert found.lo <= found.value <= found.hi
            tables.append((gained, lost, n - gained - lost, found.lo, found.hi))
    counts, ends = np.array(tables)[:, :3], np.array(tables)[:, 3:]
    for gain, loss in ((0.02, 0.02), (0.1, 0.02), (0.02, 0.3), (0.3, 0.3), (0.01, 0.6)):
        chance = stats.multinomial.pmf(counts, n, [gain, loss, 1 - gain - loss])
        for miss in (ends[:, 0] > gain - loss, ends[:, 1] < gain - loss):
            assert chance[miss].sum() <= 0.025


def test_a_paired_difference_is_the_mirror_of_its_arms() -> None:
    one, other = paired_share_difference(12, 2, 50), paired_share_difference(2, 12, 50)
    assert (one.lo, one.hi) == pytest.approx((-other.hi, -other.lo))
    assert one.p_value == other.p_value == pytest.approx(stats.binomtest(2, 14).pvalue)
    # Tango's own interval without the correction, 0.061 to 0.345, lies within it.
    assert one.lo < 0.061 and one.hi > 0.345
    none = paired_share_difference(0, 0, 20)
    assert (none.value, none.p_value) == (0.0, 1.0) and none.lo == pytest.approx(-none.hi)
    assert paired_share_difference(0, 0, 0).value is None
