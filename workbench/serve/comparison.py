"""Answers of both arms to the same requests, compared outside their clients' wait.

A share of the requests that were answered, and a prompt of the pilot at intervals, is given to the
other arm as well; such a request runs *behind* the clients': it takes a slot that nobody waits for,
and leaves it when somebody does (:meth:`Router.submit_behind`). One pair is made at a time, in the
order in which they were chosen, so that a quick answer counts no sooner than a slow one.

- Where the arms are ours, full precision reads both answers. ``disagreement``: the share of the
  candidate's tokens that are not full precision's first choice in their place, less the same share
  of full precision's own answer. ``unlikely``: whether the candidate's answer has so much less
  log-likelihood a token.
- Upstreams give texts. ``disagreement``: the share of words in which the candidate's answer and
  the other arm's differ, less the share in which two answers of the other arm differ: sampled
  answers differ anyway.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

from workbench.engine.request import GenerationRequest
from workbench.serve.routed import RoutedRequest
from workbench.serve.shares import Positions
from workbench.serve.spec import ProbePrompt
from workbench.serve.upstream import PassedRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.serve.router import Router

MOST_CHOSEN = 4
"""Requests that wait to be compared; older ones are left out."""
MOST_WORDS = 200
"""Of an answer, compared word by word."""
PROBE_TOKENS = 32
"""Of an answer to one of the pilot's prompts."""
PAIR_S = 60.0
"""For one pair."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """A request to be answered by both. answer: what its client got, of ``arm``; None: nobody got
    one yet."""

    request: Any
    answer: Any = None
    arm: str | None = None


class Comparisons:
    """Pairs for the router's trial; :meth:`run` makes them.

    share: of the answered requests. probes: requests of the pilot's prompts, one every ``probe_s``.
    candidate: None takes the route's arm.
    """

    def __init__(
        self,
        router: Router,
        share: float,
        probes: Sequence[Any] = (),
        probe_s: float = 60.0,
        *,
        candidate: str | None = None,
    ) -> None:
        self._router, self._share, self._probe_s = router, share, probe_s
        self._candidate = candidate or router.route.arm
        self._probes = cycle(probes) if probes else None
        self._chosen: deque[Chosen] = deque(maxlen=MOST_CHOSEN)
        self._came = asyncio.Event()
        self._positions = Positions()
        self.count = self.given_up = 0
        router.trial.with_pairs()

    def finished(self, routed: RoutedRequest) -> None:
        """Choose it, or not: every so-many-th."""
        answered = routed.finish_reason in ("stop", "length") and routed.output
        if not answered or routed.pinned or not self._wanted():
            return
        if self._positions.next() < self._share:
            self._chosen.append(Chosen(routed.request, tuple(routed.output), routed.arm))
            self._came.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._probe_s):
                    await self._came.wait()
            except TimeoutError:
                if self._probes and self._wanted():
                    self._chosen.append(Chosen(next(self._probes)))
            self._came.clear()
            while self._chosen:
                await self._compare(self._chosen.popleft())

    def _wanted(self) -> bool:
        route, arms = self._router.route, self._router.arms
        both_up = not (arms[self._candidate].out or arms[self._router.fallback].out)
        return route.arm == self._candidate and both_up

    async def _compare(self, chosen: Chosen) -> None:
        try:
            async with asyncio.timeout(PAIR_S):
                found = await (
                    self._texts(chosen)
                    if isinstance(chosen.request, PassedRequest)
                    else self._tokens(chosen)
                )
        except (_NoAnswer, TimeoutError) as error:
            self.given_up += 1
            log.debug("a pair was given up: %s", error)
            return
        except Exception:  # whatever an answer may hold: the next pair is another one
            self.given_up += 1
            log.exception("a pair of answers could not be compared")
            return
        self.count += 1
        if self._wanted():  # it may have gone back meanwhile
            for name, value in found.items():
                self._router.trial.compared(name, value)

    async def _tokens(self, chosen: Chosen) -> dict[str, float]:
        """Full precision reads both answers."""
        wanted = replace(chosen.request, prompt_logprobs=None, logprobs=None)
        candidate = await self._answer(chosen, wanted, self._candidate)
        other = await self._answer(chosen, wanted, self._router.fallback)
        read = [await self._read(wanted, answer) if answer else () for answer in (candidate, other)]
        rule = self._router.trial.rule
        return pair_values(*read, unlikely_nats=rule.unlikely_nats if rule else 0.0)

    async def _read(self, request: GenerationRequest, answer: tuple[int, ...]) -> ReadAnswer:
        reading = GenerationRequest(
            (*request.prompt_tokens, *answer), max_tokens=0, prompt_logprobs=1
        )
        routed = await self._ended(reading, self._router.fallback)
        scores = getattr(routed.submitted, "prompt_scores", [])[-len(answer) :]
        if len(scores) != len(answer):
            raise _NoAnswer("full precision read less than was given to it")
        return [(score.logprob, score.top[0][0] == score.token) for score in scores]

    async def _texts(self, chosen: Chosen) -> dict[str, float]:
        """Two answers of the other arm and one of the candidate's; the client's is one of them."""
        fields = {k: v for k, v in chosen.request.fields.items() if k not in STREAMED}
        wanted = replace(chosen.request, fields=fields, stream=False)
        of_client = text_of(chosen.answer or ())
        answers: dict[str, list[list[str]]] = {self._candidate: [], self._router.fallback: []}
        if chosen.arm in answers and of_client:
            answers[chosen.arm].append(of_client)
        for arm, count in ((self._router.fallback, 2), (self._candidate, 1)):
            while len(answers[arm]) < count:
                answers[arm].append(text_of((await self._ended(wanted, arm)).output))
        (one, again), (other,) = answers[self._router.fallback], answers[self._candidate]
        if not (one or again or other):
            raise _NoAnswer("no answer has text")
        return {"disagreement": differing(one, other) - differing(one, again)}

    async def _answer(self, chosen: Chosen, wanted: Any, arm: str) -> tuple[int, ...]:
        if chosen.arm == arm:
            return tuple(chosen.answer)
        return (await self._ended(wanted, arm)).output_tokens

    async def _ended(self, wanted: Any, arm: str) -> RoutedRequest:
        routed = self._router.submit_behind(wanted, arm)
        try:
            async for _ in routed.stream():
                pass
        finally:
            self._router.cancel(routed)
        if routed.finish_reason not in ("stop", "length"):
            raise _NoAnswer(routed.error or "its slot was wanted by a client")
        return routed


ReadAnswer = Sequence[tuple[float, bool]]
"""Of each token of an answer: its log-likelihood under full precision, and whether it is that
one's first choice."""


def pair_values(
    candidate: ReadAnswer, other: ReadAnswer, *, unlikely_nats: float
) -> dict[str, float]:
    """What the monitors of pairs take of two answers: ``disagreement``, -1 to 1, and ``unlikely``,
    0 or 1. An answer without a token is no likelier or unlikelier than another."""
    if not (candidate and other):
        return {"disagreement": float(bool(candidate) != bool(other))}
    disagree = [statistics.fmean(not first for _, first in each) for each in (candidate, other)]
    nats = [statistics.fmean(logprob for logprob, _ in each) for each in (candidate, other)]
    return {
        "disagreement": disagree[0] - disagree[1],
        "unlikely": float(nats[0] < nats[1] - unlikely_nats),
    }


class _NoAnswer(Exception):
    """A pair lacks one of its answers."""


def probe_requests(
    probes: Sequence[ProbePrompt], tokenizer: PreTrainedTokenizerBase | None, context: int
) -> list[Any]:
    """What the pilot's prompts are asked as. tokenizer: of both arms; None of upstreams. context:
    tokens of prompt and output together; what is longer is cut, and a conversation left out.
    Raises ConfigError for a conversation that the tokenizer's template refuses."""
    if not probes:
        return []
    if tokenizer is None:
        return [_passed(probe) for probe in probes]
    from workbench.data.own_prompts import OwnPrompt, prompt_tokens

    own = [
        OwnPrompt(prompt=each)
        if isinstance(each, str)
        else OwnPrompt.model_validate({"messages": each})
        for each in probes
    ]
    output = min(PROBE_TOKENS, context // 2)
    most = context - output
    return [
        GenerationRequest(tuple(ids[:most]), max_tokens=output)
        for each, ids in zip(own, prompt_tokens(tokenizer, own, "prompts"), strict=True)
        if ids and (each.messages is None or len(ids) <= most)
    ]


def _passed(probe: ProbePrompt) -> PassedRequest:
    path, field = ("completions", "prompt") if isinstance(probe, str) else CHAT
    fields = {field: probe, "max_tokens": PROBE_TOKENS, "temperature": 0}
    return PassedRequest(path, fields, stream=False)


CHAT = ("chat/completions", "messages")


STREAMED = ("stream", "stream_options")
"""Fields of a body that only say how the answer is to come."""


def differing(one: Sequence[str], other: Sequence[str]) -> float:
    """Share of the words of two answers that are not in both, in their order: 0 to 1."""
    return 1.0 - difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def text_of(pieces: Iterable[Any]) -> list[str]:
    """The first words of an answer of an upstream, from its body or its stream's events; words
    without spaces between them are taken apart by character."""
    texts = [_text(each) for piece in pieces for each in _objects(bytes(piece))]
    text = "".join(texts)
    words = text.split()
    if len(words) <= 1:
        words = list(text)
    return words[:MOST_WORDS]


def _objects(piece: bytes) -> Iterable[dict[str, Any]]:
    lines = piece.split(b"\n") if piece.lstrip().startswith(b"data:") else [piece]
    for line in lines:
        try:
            said = json.loads(line.removeprefix(b"data:"))
        except ValueError:
            continue
        if isinstance(said, dict):
            yield said


def _text(said: dict[str, Any]) -> str:
    """Of the first choice: a text, a message, or what a stream adds to one; calls of tools as they
    stand."""
    choices = said.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return ""
    content = choice.get("message") or choice.get("delta") or choice
    if not isinstance(content, dict):
        return ""
    text = content.get("content") or content.get("text")
    if isinstance(text, str):
        return text
    calls = content.get("tool_calls")
    called = [c["function"] for c in calls if "function" in c] if isinstance(calls, list) else []
    return json.dumps(called) if called else ""
