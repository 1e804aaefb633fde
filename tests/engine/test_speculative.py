"""Drafts change how long an answer takes, never the answer: greedy to the token, sampled in law."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from ternary_kernels.core import Core, NotFiniteError
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer
from workbench.engine.draft import DraftAsked, PromptLookup
from workbench.engine.draft_length import DraftLength, Prospect, StepCost, choose_draft
from workbench.engine.engine import Engine
from workbench.engine.grammar import Grammars, json_grammar
from workbench.engine.request import GenerationRequest
from workbench.engine.sampling import Guess, Sampler
from workbench.engine.scheduler import Scheduler
from workbench.engine.speculative import SpeculativeEngine, require_same_tokenizer
from workbench.engine.transformers_core import TransformersCore
from workbench.errors import StageError

SLOTS, CONTEXT, WORDS = 3, 96, 67


def tiny(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT,
            eos_token_id=5,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
    return model


def loaded(model: torch.nn.Module) -> Engine:
    return Engine.from_model(model, slots=SLOTS, kv_dtype="float32", threads=1)


def near(model: torch.nn.Module, noise: float = 0.3) -> torch.nn.Module:
    """A model that often says what ``model`` says, as a distilled one does."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.model.layers.parameters():
            weight.add_(noise * weight.std(unbiased=False) * torch.randn_like(weight))
    return other


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    with loaded(tiny()) as engine:
        yield engine


@pytest.fixture(params=["a near model", "the text", "a near model and the text", "foreign models"])
def speculative(request) -> Iterator[SpeculativeEngine]:
    model = tiny()
    drafts = {
        "a near model": lambda: [loaded(near(model))],
        "the text": lambda: [PromptLookup()],
        "a near model and the text": lambda: [loaded(near(model)), PromptLookup()],
        "foreign models": lambda: [loaded(tiny(7)), PromptLookup()],
    }
    target, verified = loaded(model), []
    forward_apart = target.core.forward_apart

    def counted(*rows) -> np.ndarray:
        verified.append(rows)
        return forward_apart(*rows)

    target.core.forward_apart = counted
    # By this clock drafts take no time, so that they are asked often.
    made = drafts[request.param]()
    with SpeculativeEngine(target, *made, clock=lambda: float(len(verified))) as engine:
        yield engine


def same(engine: Engine, some: np.ndarray, others: np.ndarray) -> None:
    """To the bit where the core promises it."""
    some, others = np.asarray(some), np.asarray(others)
    np.testing.assert_allclose(some, others, rtol=0, atol=0 if engine.core.rows_apart else 1e-4)


def asked(seed: int, **fields) -> GenerationRequest:
    length = 1 + 5 * seed % 14
    prompt = torch.randint(6, WORDS, (length,), generator=torch.manual_seed(seed))
    defaults = {"max_tokens": 1 + 7 * seed % 60, "ignore_eos": True, "seed": seed}
    return GenerationRequest(tuple(prompt.tolist()), **{**defaults, **fields})


def test_greedy_answers_are_the_models_own_token_for_token(plain, speculative) -> None:
    for seed in range(24):
        request = asked(seed)
        assert speculative.generate(request).tokens == plain.generate(request).tokens
    counts = speculative.counts
    assert counts.written == counts.verifications + counts.accepted > counts.guessed / 9
    assert not speculative.core.filled.any()


@pytest.mark.parametrize("fixed", [1, 3, 8])
def test_any_number_of_guesses_gives_the_same_answer(plain, fixed: int) -> None:
    model = tiny()
    with SpeculativeEngine(loaded(model), loaded(near(model)), fixed=fixed) as engine:
        for seed in (2, 5, 8):
            request = asked(seed, max_tokens=40)
            done = engine.generate(request)
            assert (done.tokens, done.finish_reason) == (plain.generate(request).tokens, "length")
        assert 0 < engine.counts.accepted < engine.counts.guessed


def test_a_batch_of_mixed_lengths_gives_what_each_gives_alone(plain, speculative) -> None:
    prompts = [asked(seed).prompt_tokens for seed in (1, 4, 6)]
    first = [int(speculative.prefill(slot, p).argmax()) for slot, p in enumerate(prompts)]
    together = speculative.decode_greedy([0, 1, 2], first, 33)
    assert together.shape == (33, 3)
    for slot, prompt in enumerate(prompts):
        alone = plain.generate(GenerationRequest(prompt, max_tokens=34, ignore_eos=True))
        assert [first[slot], *together[:, slot]] == alone.tokens
        assert speculative.core.filled[slot] == len(prompt) + 33
        speculative.release(slot)


def test_many_requests_on_few_slots_with_stops_limits_and_penalties(plain, speculative) -> None:
    """Ends fall anywhere within a draft; prompts come in pieces while others decode."""
    requests = [asked(seed) for seed in range(6)]
    stop = plain.generate(asked(3, max_tokens=30)).tokens[11]
    requests += [asked(3, max_tokens=30, stop_tokens=(stop,), ignore_eos=False)]
    requests += [asked(3, max_tokens=30, stop_tokens=(stop,), min_tokens=25, ignore_eos=False)]
    requests += [asked(4, max_tokens=n) for n in range(1, 8)]
    requests += [asked(5, max_tokens=25, frequency_penalty=0.7, presence_penalty=0.2)]
    alone = [plain.generate(request) for request in requests]
    streamed: list[list[int]] = [[] for _ in requests]
    with Scheduler(speculative, prefill_chunk=3) as scheduler:
        submitted = [
            scheduler.submit(request, own.append)
            for request, own in zip(requests, streamed, strict=True)
        ]
        assert all(each.wait(60) for each in submitted)
    assert [each.tokens for each in submitted] == streamed == [each.tokens for each in alone]
    assert [e.finish_reason for e in submitted] == [e.finish_reason for e in alone]
    assert not speculative.core.filled.any() and "any more" not in str(speculative.notes)


def test_log_probabilities_are_those_without_a_draft(plain, speculative) -> None:
    scores = []
    for engine in (plain, speculative):
        with Scheduler(engine) as scheduler:
            own: list = []
            request = asked(4, max_tokens=20, logprobs=2, prompt_logprobs=1)
            submitted = scheduler.submit(request, lambda token, to=own: to.append(token.score))
            assert submitted.wait(30)
            scores.append([*submitted.prompt_scores, *own])
    assert len(scores[0]) == len(asked(4).prompt_tokens) - 1 + 20
    for one, other in zip(*scores, strict=True):
        assert [one.token, *(t for t, _ in one.top)] == [other.token, *(t for t, _ in other.top)]
        same(speculative, one.logprob, other.logprob)


def test_a_cache_that_went_back_is_one_that_never_went_ahead(plain) -> None:
    model = tiny()
    prompt, wrong, right = [7, 8, 9, 10], [11, 12, 13, 14, 15], [20, 21, 22]
    with loaded(model) as engine:
        engine.prefill(0, prompt)
        engine.core.forward_apart(wrong, [0] * 5, range(4, 9))
        engine.core.truncate(0, 5)
        back = engine.core.forward_apart(right, [0] * 3, range(5, 8))
        engine.prefill(1, [*prompt, wrong[0]])
        fresh = engine.core.forward_apart(right, [1] * 3, range(5, 8))
        same(engine, back, fresh)
        assert engine.core.filled[0] == 8
        with pytest.raises(ValueError, match="cut to 9 positions; allowed: 0 to 8"):
            engine.core.truncate(0, 9)
    transformers = Engine(TransformersCore(model, 2, CONTEXT, "cpu"))
    transformers.prefill(0, [*prompt, *wrong])
    transformers.core.truncate(0, 5)
    transformers.prefill(1, [*prompt, wrong[0]])
    rows = [transformers.step(right, [slot] * 3, True) for slot in (0, 1)]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_both_caches_hold_the_text_and_nothing_else_after_every_round() -> None:
    model = tiny()
    sampler = Sampler(GenerationRequest((0,), max_tokens=1, ignore_eos=True), frozenset())
    with SpeculativeEngine(loaded(model), loaded(near(model, 0.6)), fixed=4) as engine:
        from workbench.engine.engine import Speculated

        text = list(asked(9).prompt_tokens)
        token = int(engine.prefill(0, text).argmax())
        for _ in range(12):
            rows = engine.speculate([Speculated(0, token, 99, sampler)])[0]
            text.append(token)
            chosen = []
            for guess, logits_V in rows:
                chosen.append(int(logits_V.argmax()))
                if guess is None or guess.token != chosen[-1]:
                    break
            engine.keep(0, rows, chosen)
            text, token = [*text, *chosen[:-1]], chosen[-1]
            held = int(engine.drafts[0].engine.core.filled[0])
            assert engine.core.filled[0] == len(text) and len(text) - 1 <= held <= len(text)
        for one, length in ((engine.target, len(text)), (engine.drafts[0].engine, held)):
            one.prefill(1, text[:length], chunk=1)
            after = [one.core.forward_apart([token], [slot], [length]) for slot in (0, 1)]
            same(engine, after[0], after[1])


class BigramCore(Core):
    """Logits that depend on the latest token alone: ``table[token]``."""

    rows_apart = True

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.slots, self.context = table.astype(np.float32), 1, 64
        self.filled, self.forwards = np.zeros(1, dtype=np.int64), 0

    vocab_size = property(lambda self: len(self.table))
    backend, weight_bytes, kv_bytes = "bigrams", 0, 0

    def forward(self, tokens, slots, positions, want_logits) -> np.ndarray:
        self.filled[0], self.forwards = positions[-1] + 1, self.forwards + 1
        return self.table[np.asarray(tokens)][np.broadcast_to(want_logits, len(tokens))]

    def reset(self, slot: int) -> None:
        self.filled[slot] = 0

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 1.1},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 4},
        {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "frequency_penalty": 0.5},
    ],
    ids=str,
)
def test_sampled_answers_have_the_models_distribution(fields) -> None:
    """The first three tokens, two of which were guessed: 1,500 answers with and without a draft
    by the chi-squared test of homogeneity, which 500 answers of the draft itself must fail."""
    random = np.random.default_rng(1)
    model = random.normal(size=(7, 7)) * 1.5
    other = model + random.normal(size=(7, 7))

    def answers(engine: Engine, seeds: range) -> list[tuple[int, ...]]:
        return [
            tuple(engine.generate(
                GenerationRequest((0, 1, 2, 3, 0, 1), max_tokens=3, seed=seed, **fields)
            ).tokens)
            for seed in seeds
        ]  # fmt: skip

    alone = answers(Engine(BigramCore(model)), range(1500))
    target = Engine(BigramCore(model))
    if fields == {"temperature": 1.0}:
        engine = SpeculativeEngine(target, PromptLookup(), fixed=2)
    elif fields["temperature"] == 1.1:  # whichever promises more, tried now and then
        engine = SpeculativeEngine(
            target, Engine(BigramCore(other)), PromptLookup(),
            clock=lambda: float(target.core.forwards),
        )  # fmt: skip
    else:
        engine = SpeculativeEngine(target, Engine(BigramCore(other)), fixed=2)
    guessed = answers(engine, range(1500, 3000))
    assert all(0 < of.accepted < of.guessed for of in engine.counts.drafts.values())
    wrong = answers(Engine(BigramCore(other)), range(3000, 3500))
    assert differ(alone, guessed) > 1e-3
    assert differ(alone, wrong) < 1e-9


def differ(some: list, others: list) -> float:
    """The p value of the two having one distribution; what is seen fewer than 10 times together."""
    seen = sorted(set(some) | set(others))
    counts = np.array([[each.count(kind) for kind in seen] for each in (some, others)])
    rare = counts.sum(axis=0) < 10
    counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    return chi2_contingency(counts[:, counts.sum(axis=0) > 0]).pvalue


def test_a_guess_that_cannot_be_is_replaced_and_a_sure_one_taken() -> None:
    sampler = Sampler(GenerationRequest((0,), max_tokens=9, temperature=1.0, seed=0), frozenset())
    sure = np.array([-np.inf, 0.0, -np.inf], dtype=np.float32)
    for guess in (Guess(0), Guess(2, np.array([0.5, 0.0, 0.5])), Guess(1), None):
        assert sampler.choose(sure.copy(), 0, guess) == 1


def test_look_up_finds_the_latest_and_longest_repetition() -> None:
    def after(text: list[int], most: int = 3) -> list[int]:
        sampler = Sampler(GenerationRequest((0,), max_tokens=1), frozenset())
        return [g.token for g in PromptLookup().propose([DraftAsked(0, text, most, sampler)])[0]]

    assert after([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]) == [4, 9, 2]
    assert after([1, 2, 3, 7, 2, 3]) == [7, 2, 3] and after([1, 2, 3, 7, 2, 3], 1) == [7]
    assert after([8, 8]) == [8] and after([1, 2, 3]) == [] == after([5])


def test_guesses_are_as_many_as_pay() -> None:
    def length_of(texts: int, **fields) -> DraftLength:
        return DraftLength(StepCost(), StepCost(), texts, **fields)

    def room(slot: int, most: int = 99, behind: int = 0) -> Prospect:
        return Prospect(slot, most, behind, 99)

    def chosen(rate: float, draft_s: float, row_s: float, texts: int = 1, behind: int = 0) -> int:
        length = length_of(texts)
        for rows in (texts, 2 * texts, 4 * texts, 6 * texts):
            length.verifying.saw(rows, 1.0 + row_s * rows)
            length.drafting.saw(rows, draft_s * (1.0 + (rows - texts) / 10))
        for guess in range(400):
            right = int(np.random.default_rng(guess).random() < rate)
            for slot in range(texts):
                length.saw(slot, 1, right)
        for slot in range(texts):
            length.forget(slot)
        return max(length.plan([room(slot, behind=behind) for slot in range(texts)]).lengths)

    assert chosen(0.95, 0.05, 0.0) == 8
    assert 2 <= chosen(0.8, 0.15, 0.02) <= 5
    assert chosen(0.2, 0.3, 0.02) == 0
    assert chosen(0.6, 0.2, 0.25, texts=8) == 0  # many at a time: rows cost what they bring
    assert chosen(0.8, 0.15, 0.02, behind=1000) >= 2 > chosen(0.8, 0.15, 0.02, behind=4000) == 0
    fixed = length_of(2, fixed=5).plan([room(0, 9), room(1, 2)])
    assert fixed.lengths == [5, 2]


def test_of_the_texts_that_a_draft_could_try_it_takes_the_one_read_furthest() -> None:
    length = DraftLength(StepCost(), StepCost(), 3)
    length.verifying.saw(3, 1.0)
    for rows in (1, 101):
        length.drafting.saw(rows, 2.0 + rows / 100)
    texts = [Prospect(0, 8, 300, 99), Prospect(1, 8, 20, 99), Prospect(2, 0, 0, 99)]
    assert choose_draft([length], [texts])[1].lengths == [0, 0, 0]
    length.passed(64 * 2.2)
    assert choose_draft([length], [texts])[1].lengths == [0, 0, 0]
    length.passed(64 * 0.2)
    for _ in range(4):  # it goes on while its guesses are right, and waits again after them
        assert choose_draft([length], [texts])[1].lengths == [0, 1, 0]
        length.saw(1, 1, 1)
    assert choose_draft([length], [texts])[1].lengths == [0, 0, 0]


def test_a_draft_that_fails_ends_no_answer(plain) -> None:
    model = tiny()
    draft, calls = loaded(near(model)), []
    forward = draft.core.forward

    def fail(*rows):
        calls.append(rows)
        if len(calls) > 4:
            raise NotFiniteError("the head")
        return forward(*rows)

    draft.core.forward = fail
    speculative = SpeculativeEngine(loaded(model), draft, fixed=2)
    with speculative as engine, Scheduler(engine) as scheduler:
        submitted = [scheduler.submit(asked(seed)) for seed in (3, 5)]
        assert all(each.wait(30) for each in submitted)
    assert [each.tokens for each in submitted] == [plain.generate(asked(s)).tokens for s in (3, 5)]
    assert f"any more by {draft.backend}: NotFiniteError" in engine.notes[-1]


def test_damaged_weights_of_the_model_itself_end_it_as_without_a_draft() -> None:
    model = tiny()
    with SpeculativeEngine(loaded(model), PromptLookup()) as engine:
        broken = threading.Event()
        forward = engine.core.forward_apart
        engine.core.forward_apart = lambda *rows: forward(*rows) * np.float32("nan")
        with Scheduler(engine) as scheduler:
            submitted = scheduler.submit(asked(3, max_tokens=9), on_done=lambda _: broken.set())
            assert submitted.wait(10) and broken.wait(10)
            assert submitted.finish_reason == "error" and "NaN or Inf" in scheduler.failed


def test_what_cannot_work_together_is_refused_in_a_sentence(tmp_path) -> None:
    model = tiny()
    small = Engine.from_model(model, slots=1, kv_dtype="float32", threads=1)
    with loaded(model) as engine, small:
        with pytest.raises(ValueError, match="1 slot of 96 tokens; allowed: at least 3 of 96"):
            SpeculativeEngine(engine, small)
        window = AutoModelForCausalLM.from_config(
            MistralConfig(
                vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=1, sliding_window=8,
            )
        )  # fmt: skip
        sliding = Engine(TransformersCore(window, SLOTS, CONTEXT, "cpu"))
        for pair in ((sliding, engine), (engine, sliding)):
            with pytest.raises(ValueError, match="latest positions can be taken back"):
                SpeculativeEngine(*pair)


def test_another_tokenizer_is_refused(tmp_path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    for name, words in (("one", "a b c"), ("same", "a b c"), ("other", "a c b")):
        vocabulary = {word: place for place, word in enumerate(words.split())}
        raw = Tokenizer(WordLevel(vocabulary, unk_token="a"))
        made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="a")
        made.save_pretrained(tmp_path / name)
    require_same_tokenizer(tmp_path / "one", tmp_path / "same")
    with pytest.raises(StageError, match="their tokenizers differ in 4 tokens"):
        require_same_tokenizer(tmp_path / "one", tmp_path / "other")


def test_an_answer_that_keeps_to_a_grammar_is_the_models_own(tmp_path) -> None:
    """Guesses that the grammar does not allow are wrong ones, and it goes back with the caches."""
    pytest.importorskip("llguidance")
    text = '{"city": "Paris", "population": 2102650, "capital": true}\n' * 40
    tokenizer = train_tokenizer([Document("one", "test", text)], 300)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "capital": {"type": "boolean"}},
        "required": ["city", "capital"],
        "additionalProperties": False,
    }
    grammar = json_grammar(schema)
    answers = []
    for engine in (loaded(model), SpeculativeEngine(loaded(model), loaded(near(model)), fixed=3)):
        with engine:
            grammars = Grammars(lambda: tokenizer, engine.vocab_size, engine.eos_tokens)
            with Scheduler(engine, grammars=grammars) as scheduler:
                submitted = [
                    scheduler.submit(GenerationRequest((9, 8 + seed), 80, grammar=grammar))
                    for seed in range(5)
                ]
                assert all(one.wait(30) for one in submitted)
                answers.append([tuple(one.tokens) for one in submitted])
            if isinstance(engine, SpeculativeEngine):
                assert 0 < engine.counts.accepted < engine.counts.guessed
    plain, drafted = answers
    assert drafted == plain
    said = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in plain]
    whole = [json.loads(answer) for answer in said if answer.endswith("}")]
    assert whole and all(answer["city"] in ("Paris", "Rome") for answer in whole)
