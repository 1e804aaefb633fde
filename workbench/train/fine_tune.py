"""Adapters learn a text of one's own: from a corpus to a trained :func:`~.lora.add_lora` model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from workbench.data.corpus import read_corpus
from workbench.data.dataset import judged_of, write_tokens
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, reason_of
from workbench.pilot.sections.data import Data
from workbench.pilot.sections.train import Train
from workbench.records.events import Progress
from workbench.train.lora import train_lora
from workbench.train.setup import TrainingSetup, heldout_excerpts

if TYPE_CHECKING:
    from peft import PeftModel


def fine_tune_lora(
    model: PeftModel,
    corpus: str | Path,
    folder: str | Path,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase,
    sequence_length: int = 128,
    seed: int = 1234,
    **train: Any,
) -> pd.DataFrame:
    """Train the adapters of ``model`` in place on a text; the ternary base does not change.

    model: of ``add_lora``. corpus: as ``data.corpus`` of a pilot: a file or folder of text, JSONL
    or Parquet, or ``hf:owner/name``; some of its documents are held out to evaluate on. folder:
    takes ``events.jsonl``, tokens and checkpoints; the same call on the same folder goes on where
    it was stopped. tokenizer: of the base, or its folder (a run's artefact ``tokenizer``).
    sequence_length: tokens. train: fields of a pilot's section ``train``, e.g. ``steps=500,
    lr=1e-3``.

    Returns the evaluations on held-out text, a row each: ``step``, ``epoch``, ``weights``
    (``ternary``), ``loss`` in nats a token and ``bits_per_byte``.

    Raises ConfigError for a corpus or tokenizer that cannot be read, and a field of ``train`` that
    there is not; StageError for a loss that is not finite and for a full disk.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import add_lora, fine_tune_lora, save_lora, to_ternary
    >>> from workbench.data.document import Document
    >>> from workbench.data.tokenizer import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tickets = Path(folder, "tickets")
    ...     tickets.mkdir()
    ...     for i in range(8):
    ...         text = f"Ticket {i}: the printer on floor {i} is out of paper. " * 8
    ...         _ = (tickets / f"{i}.txt").write_text(text)
    ...     tokenizer = train_tokenizer([Document("0", "tickets", text)], 300)
    ...     base = AutoModelForCausalLM.from_config(LlamaConfig(
    ...         hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...         vocab_size=300))
    ...     report = to_ternary(base)
    ...     model = add_lora(base, rank=2)
    ...     evaluations = fine_tune_lora(model, tickets, f"{folder}/work", tokenizer=tokenizer,
    ...                                  sequence_length=16, steps=2, batch_size=2, evaluations=1)
    ...     save_lora(model, f"{folder}/adapter")
    >>> list(evaluations.columns)
    ['step', 'epoch', 'weights', 'loss', 'bits_per_byte']
    """
    folder = Path(folder)
    try:
        data = Data(corpus=str(corpus), sequence_length=sequence_length)
        section = Train(**train)
    except ValidationError as error:
        raise ConfigError(
            f"fine_tune_lora: {reason_of(error)}",
            next_step="docs/fields.md lists the fields of train and data",
        ) from None
    progress = Progress(folder / "events.jsonl", "lora")
    documents = read_corpus(data, seed)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = load_tokenizer(str(tokenizer))
    tokens = write_tokens(folder / "tokens.npy", tokenizer, documents.training, progress)
    excerpts = heldout_excerpts(documents, tokens, sequence_length, section.eval_sequences)
    judged = judged_of(folder / "tokens.npy")
    setup = TrainingSetup(
        section, seed, tokens, sequence_length, tokenizer, excerpts, judged=judged
    )
    evaluator = train_lora(model, setup, folder / "training", progress)
    return evaluator.telemetry.frame("evaluations")
