"""Log probabilities: those of the model's logits, by any way through the scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import Scheduler
from workbench.engine.scores import ScoredToken, score_rows

CONFIG = LlamaConfig(
    vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96, eos_token_id=5,
)  # fmt: skip
PROMPT = tuple(range(6, 46))
CLOSE = 0.03
"""Steps of other sizes multiply by other units; logits of one row are units apart."""


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG)
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)  # far from even, so that no row looks like another
    with Engine.from_model(model, slots=3, kv_dtype="float32", threads=1) as made:
        yield made


def by_softmax(engine: Engine, tokens: tuple[int, ...]) -> np.ndarray:
    """[len(tokens) - 1, V]: of what follows each token."""
    logits = torch.from_numpy(engine.logits(tokens)[:-1].astype(np.float64))
    return torch.log_softmax(logits, dim=-1).numpy()


def test_rows_are_scored_as_by_softmax() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (5, 300)).astype(np.float32)
    logits[0, 7] = logits[0, 9] = logits[0].max() + 1  # a tie: greedy takes the lower number
    right = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1).numpy()
    for top in (0, 1, 4, 300, 400):
        for row, score in enumerate(score_rows(logits, range(5), top)):
            assert score.logprob == pytest.approx(right[row, row], abs=1e-4)
            tokens = [token for token, _ in score.top]
            assert len(tokens) == len(set(tokens)) == min(top, 300)
            assert [of for _, of in score.top] == sorted((of for _, of in score.top), reverse=True)
            assert not tokens or tokens[0] == logits[row].argmax()
            np.testing.assert_allclose([of for _, of in score.top], right[row, tokens], atol=1e-4)


@pytest.mark.parametrize("chunk", [3, 16, 100])
def test_prompt_and_output_are_scored_whatever_runs_beside(engine: Engine, chunk: int) -> None:
    asked = GenerationRequest(PROMPT, 6, logprobs=2, prompt_logprobs=3, ignore_eos=True)
    other = GenerationRequest(PROMPT[:7], 30, temperature=0.9, seed=1, ignore_eos=True)
    heard: list[ScoredToken] = []
    pieces: list = []
    with Scheduler(engine, prefill_chunk=chunk) as scheduler:
        beside = scheduler.submit(other)
        scored = scheduler.submit(asked, heard.append, None, pieces.extend)
        assert scored.wait(30) and beside.wait(30)
    alone = engine.generate(GenerationRequest(PROMPT, 6, ignore_eos=True)).tokens
    assert scored.tokens == list(heard) == alone
    right = by_softmax(engine, (*PROMPT, *alone))
    assert pieces == scored.prompt_scores
    assert [score.token for score in pieces] == list(PROMPT[1:])
    scores = [*pieces, *(token.score for token in heard)]
    for score, row in zip(scores, right, strict=True):
        assert score.logprob == pytest.approx(row[score.token], abs=CLOSE)
        assert score.top[0][0] == row.argmax()
    assert [len(score.top) for score in scores] == [3] * 39 + [2] * 6


def test_scores_are_of_the_model_and_not_of_what_was_asked(engine: Engine) -> None:
    """Temperature, penalties and top_k change what is chosen, and not how likely it was."""
    asked = GenerationRequest(
        PROMPT, 8, temperature=1.5, top_k=5, seed=3, presence_penalty=2.0, logprobs=0,
        ignore_eos=True,
    )  # fmt: skip
    heard: list[ScoredToken] = []
    with Scheduler(engine) as scheduler:
        assert scheduler.submit(asked, heard.append).wait(30)
    right = by_softmax(engine, (*PROMPT, *heard))[len(PROMPT) - 1 :]
    for token, row in zip(heard, right, strict=True):
        assert token.score.logprob == pytest.approx(row[token], abs=CLOSE)


def test_a_prompt_is_read_alone(engine: Engine) -> None:
    with Scheduler(engine) as scheduler:
        read = scheduler.submit(GenerationRequest(PROMPT, 0, prompt_logprobs=0))
        assert read.wait(30)
    assert (read.finish_reason, read.tokens) == ("length", [])
    assert len(read.prompt_scores) == len(PROMPT) - 1


def test_the_token_that_ends_an_output_is_scored_and_no_part_of_it(engine: Engine) -> None:
    first = engine.generate(GenerationRequest(PROMPT, 1, ignore_eos=True)).tokens[0]
    with Scheduler(engine) as scheduler:
        ended = scheduler.submit(GenerationRequest(PROMPT, 4, stop_tokens=(first,), logprobs=1))
        assert ended.wait(30)
    assert (ended.finish_reason, ended.tokens) == ("stop", [])
    assert ended.end_score is not None and ended.end_score.token == first


def test_generate_refuses_what_the_scheduler_gives(engine: Engine) -> None:
    with pytest.raises(ValueError, match="Submit it to a Scheduler"):
        engine.generate(GenerationRequest(PROMPT, 1, logprobs=1))
