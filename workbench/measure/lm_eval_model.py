"""lm-evaluation-harness on the engine: its model ``workbench``, for every task that it has.

    python -m workbench.measure.lm_eval_model run --model workbench \\
        --model_args folder=RUN/stages/train_qat/ternary --tasks TASK

is lm-evaluation-harness's own command with this model known to it. Needs the extra ``eval``. Scores
are those of the arm as it is packed and served, through the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  (makes its own models known beside this one)
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from workbench.data.tokenizer import document_start, encode, load_tokenizer
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.measure.log_likelihood import likelihood, split_tokens

NEW_TOKENS = 256
"""Of a generation whose task does not say how long."""


class _Stopped(Exception):
    """A stop text is out."""


@register_model("workbench")
class WorkbenchModel(LM):
    """A packed model folder, or a Hugging Face folder, through the engine.

    folder: of the model. tokenizer: its folder; None: it lies in ``folder``. max_length: tokens of
    context and answer together; None: what the model holds, 4096 at most. What is longer
    loses its beginning, as in the harness's own models. threads, device: of :meth:`Engine.load`.
    add_bos_token: begin every context with the token that starts a document, as in training;
    without it, the harness's default, only an empty context does. Further arguments are those
    that the harness gives to all models; nothing depends on them: requests are computed one by one.

    Raises ConfigError for a folder without a tokenizer, StageError for one that holds no model.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: str | None = None,
        max_length: int | None = None,
        threads: int = 0,
        device: str | None = None,
        add_bos_token: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        self.tokenizer = load_tokenizer(tokenizer or folder)
        start = document_start(self.tokenizer)
        assert start is not None  # a tokenizer without one was refused
        self.start, self.add_bos_token = start, add_bos_token
        setup = {} if max_length is None else {"context": int(max_length)}
        self.engine = Engine.load(Path(folder), threads=threads, device=device or "cpu", **setup)
        self._name = str(tokenizer or folder)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        found = []
        for context, continuation in self._args(requests, "loglikelihood"):
            before, after = split_tokens(self.tokenizer, context, continuation)
            if context.strip() and not self.add_bos_token:
                before = before[1:]
            score = self._score(before, after)
            found.append(score)
            self.cache_hook.add_partial("loglikelihood", (context, continuation), score)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        found = []
        for (text,) in self._args(requests, "loglikelihood_rolling"):
            windows = utils.get_rolling_token_windows(
                encode(self.tokenizer, [text])[0], self.start, self.engine.context - 1, 1
            )
            pairs = map(utils.make_disjoint_window, windows)
            nats = sum(self._score(before, after)[0] for before, after in pairs)
            found.append(float(nats))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), nats)
        return found

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        found = []
        for context, how in self._args(requests, "generate_until"):
            text = self._generated(context, dict(how))
            found.append(text)
            self.cache_hook.add_partial("generate_until", (context, how), text)
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return str(self.tokenizer.chat_template or "") if chat_template else None

    def _args(self, requests: Sequence[Instance], what: str) -> Any:
        return tqdm([request.args for request in requests], desc=what, disable=None)

    def _score(self, before: list[int], after: list[int]) -> tuple[float, bool]:
        kept = max(1, self.engine.context - len(after))
        found = likelihood(self.engine, before[-kept:], after[-(self.engine.context - 1) :])
        return found.nats, found.greedy

    def _generated(self, context: str, how: dict[str, Any]) -> str:
        stops = how.get("until") or []
        stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
        most = min(int(how.get("max_gen_toks", NEW_TOKENS)), self.engine.context - 1)
        sampled = bool(how.get("do_sample")) or float(how.get("temperature") or 0.0) > 0
        # A template writes special tokens as text, so here they are tokens.
        ids = self.tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"]
        if self.add_bos_token or not ids:
            ids = [self.start, *ids]
        request = GenerationRequest(
            tuple(ids[-(self.engine.context - most) :]),
            most,
            temperature=float(how.get("temperature") or 1.0) if sampled else 0.0,
            top_p=float(how.get("top_p") or 1.0),
        )
        tokens: list[int] = []
        with suppress(_Stopped):
            self.engine.generate(request, on_token=self._watch(tokens, stops))
        text = self._text(tokens)
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _watch(self, tokens: list[int], stops: Sequence[str]) -> Callable[[int], None]:
        """Keeps the tokens, and ends the generation once a stop text is out."""

        def heard(token: int) -> None:
            tokens.append(token)
            if stops and any(stop in self._text(tokens) for stop in stops):
                raise _Stopped

        return heard

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
