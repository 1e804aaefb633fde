"""Output that keeps to a grammar: JSON of a schema, token by token, by llguidance.

Before each token the grammar says which ones can go on to a whole output; the others' logits
become -inf. ``pip install ternary-workbench[formats]`` brings the library; without it, what needs
a grammar is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.engine.request import GenerationRequest

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

AVAILABLE = find_spec("llguidance") is not None
WHITESPACE = r"[\x20\x0A\x0D\x09]{0,24}"
"""Between the parts of JSON: enough to indent it, and no place for a model to stay in for ever."""
OPTIONS = "x-guidance"
"""A key of schemas by which llguidance takes options, one of which lets it ignore what it does not
know."""


class GrammarError(ValueError):
    """A grammar that cannot be kept to."""


def json_grammar(schema: Mapping[str, Any] | bool) -> str:
    """What allows exactly the JSON that ``schema`` describes.

    Raises GrammarError for a schema that is wrong or has keys which are not supported: none is
    ignored.
    """
    from llguidance import LLMatcher

    if isinstance(schema, Mapping) and OPTIONS in schema:
        raise GrammarError(f"{OPTIONS} is no key of a JSON schema; leave it out")
    whole = schema if isinstance(schema, Mapping) else {"anyOf": [schema]}
    overrides = {"whitespace_pattern": WHITESPACE}
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(whole), overrides=overrides)
    except ValueError as error:
        raise GrammarError(str(error)) from None
    wrong, said = LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong or said:
        raise GrammarError("; ".join(said).strip() or "it cannot be read")
    return grammar


class Grammars:
    """What grammars need of a tokenizer, made at first use: of a large one it takes a second.

    tokenizer: gives it. vocab_size, eos_tokens: of the model; without any the tokenizer's own.
    """

    def __init__(
        self,
        tokenizer: Callable[[], PreTrainedTokenizerBase],
        vocab_size: int,
        eos_tokens: frozenset[int] = frozenset(),
    ) -> None:
        self._load, self._vocab_size = tokenizer, vocab_size
        self._eos_tokens = sorted(eos_tokens) or None
        self._tokenizer: LLTokenizer | None = None

    def begin(self, request: GenerationRequest) -> Constraint:
        """For the request's output, from what of it is out already. Raises GrammarError."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._prepared(), request.grammar or "")
        given = list(request.prompt_tokens[len(request.prompt_tokens) - request.given_output :])
        if matcher.is_error() or not matcher.consume_tokens(given):
            raise GrammarError(f"the grammar cannot be kept to: {matcher.get_error()}")
        return Constraint(matcher, self._vocab_size)

    def prepare(self) -> None:
        """Raises GrammarError for a tokenizer that grammars cannot work with."""
        self._prepared()

    def _prepared(self) -> LLTokenizer:
        from llguidance.hf import from_tokenizer

        if self._tokenizer is None:
            try:
                self._tokenizer = from_tokenizer(
                    self._load(), n_vocab=self._vocab_size, eos_token=self._eos_tokens
                )
            except Exception as error:  # whatever a foreign tokenizer has that it does not know
                raise GrammarError(f"the model's tokenizer cannot be used: {error}") from None
        return self._tokenizer


class Constraint:
    """Where one output stands in its grammar. Shapes: V vocabulary."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped()

    def mask(self, logits_V: np.ndarray) -> None:
        """Set what the grammar does not allow now to -inf. Raises GrammarError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.unpackbits(bits, bitorder="little")[: len(logits_V)].astype(bool)
        self._check()
        if not allowed_V.any():
            raise GrammarError("the grammar allows no token here")
        logits_V[: len(allowed_V)][~allowed_V] = -np.inf
        logits_V[len(allowed_V) :] = -np.inf

    def take(self, token: int) -> None:
        """It was chosen. Raises GrammarError."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot be kept to: {self._matcher.get_error()}")
