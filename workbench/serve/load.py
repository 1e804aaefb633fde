"""What a replay sends: requests of the profile with real text, cut to what the models hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from workbench.load.piece import LengthLimits, PlannedRequest
from workbench.load.profile import MOST_ORDERED, LoadProfile
from workbench.measure.dependence import share_over_time
from workbench.measure.statistics import Estimate
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.counts import number_of

TEXT_CHARACTERS = 2_000_000
"""Held-out text that prompts are cut from."""


@dataclass(frozen=True)
class Load:
    """What is replayed. limits: what the models and the pilot allow. pool: tokens of text."""

    profile: LoadProfile
    limits: LengthLimits
    pool: list[int]
    seed: int

    @classmethod
    def of(
        cls, profile: LoadProfile, limits: LengthLimits, trained: StageRecord, seed: int
    ) -> Load:
        """Prompts of held-out text; trained: the record of ``train_qat``."""
        from workbench.data.tokenizer import encode, load_tokenizer  # torch: seconds, once it sends

        tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
        texts, size = [], 0
        for text in trained.table("heldout")["text"]:
            texts.append(text[: TEXT_CHARACTERS - size])
            if (size := size + len(texts[-1])) >= TEXT_CHARACTERS:
                break
        pool = [token for ids in encode(tokenizer, texts) for token in ids]
        return cls(profile, limits, pool, seed)

    def prompt(self, planned: PlannedRequest) -> list[int]:
        """Real text of the wanted length; every request has its own."""
        length = planned.prompt_tokens
        start = int(np.random.default_rng((self.seed, planned.id)).integers(len(self.pool)))
        pieces = self.pool[start:] + self.pool * (1 + length // len(self.pool))
        return pieces[:length]

    def sample(self, count: int) -> list[PlannedRequest]:
        """Requests of the profile drawn at random, all due at once."""
        some = self.profile.sample(max(count, 1000), self.seed)
        drawn = some.sample(count, replace=True, random_state=self.seed)
        lengths = self.limits.cut(drawn["prompt_tokens"], drawn["output_tokens"])
        rows = enumerate(zip(*lengths, drawn["class"], strict=True))
        return [PlannedRequest(i, 0.0, int(p), int(o), name, False) for i, (p, o, name) in rows]

    def cut_share(self, **labels: str) -> Metric:
        """Requests of the whole load that are longer than can be served."""
        some = self.profile.thinned(MOST_ORDERED)
        prompt, output = some["prompt_tokens"].to_numpy(), some["output_tokens"].to_numpy()
        cut, n = self.profile.cut_share(self.limits)
        shares = share_over_time(self.limits.is_cut(prompt, output), prompt + output)
        estimate: Estimate = replace(shares, value=cut / n)
        how = (
            "requests of the load longer than what is served: "
            f"{number_of(self.limits.context or 0, 'token')} of prompt and output together"
            + _said_limit("prompt", self.limits.prompt_tokens)
            + _said_limit("output", self.limits.output_tokens)
        )
        return estimate.metric("cut_share", "", how, "derived", **labels)


def wanted_context(
    profile: LoadProfile, prompt_tokens: int | None, output_tokens: int | None
) -> int:
    """Tokens that the longest request of the load takes, as far as the pilot allows; a server
    whose models have fewer positions says so, and what is longer is cut and counted."""
    if prompt_tokens and output_tokens:
        return min(profile.longest_request, prompt_tokens + output_tokens)
    return profile.longest_request


def _said_limit(what: str, tokens: int | None) -> str:
    return "" if tokens is None else f", {tokens} of {what}"
