"""Held-out quality: nats lost on each document, and bits per UTF-8 byte.

The loss of a document is the sum over all its tokens, the first one predicted from the
tokenizer's start token alone; it is divided by the bytes of the text, which no tokenizer can
change, so models with different tokenizers stay comparable. A document longer than the
context is judged in windows that do not overlap, each token once: a little pessimistic at
the beginning of a window, and the same for every arm.

Shapes: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from workbench.data.document import Document
from workbench.data.tokenizer import document_start, encode

LOGITS_AT_ONCE = 1 << 24
"""Elements of the logits of one forward pass; 64 MiB in float32."""


def document_losses(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    documents: pd.DataFrame,
    context: int,
) -> pd.DataFrame:
    """The loss of each document.

    model: called as ``model(input_ids=[B, T]).logits`` -> ``[B, T, V]``, causal.
    documents: columns id, source, text.
    context: tokens a window may hold.
    Returns one row a document, in the same order: id, source, nats, bytes, tokens.
    """
    token_lists = encode(tokenizer, list(documents["text"]))
    windows = _windows(token_lists, document_start(tokenizer), context)
    nats = np.zeros(len(token_lists))
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.inference_mode():
            for batch in _batches(windows, context, len(tokenizer)):
                for (document, _), lost in zip(
                    batch, _window_nats(model, batch, device), strict=True
                ):
                    nats[document] += lost
    finally:
        model.train(training)
    return pd.DataFrame(
        {
            "id": list(documents["id"]),
            "source": list(documents["source"]),
            "nats": nats,
            "bytes": [len(text.encode()) for text in documents["text"]],
            "tokens": [len(ids) for ids in token_lists],
        }
    )


def bits_per_byte(losses: pd.DataFrame) -> float:
    """Total bits over total bytes of all documents (longer documents weigh more).

    NaN if any loss is: a diverged model must not look better for the documents it failed on.
    """
    return float(losses["nats"].sum(skipna=False) / math.log(2) / losses["bytes"].sum())


def excerpts(documents: Sequence[Document], characters: int, count: int) -> pd.DataFrame:
    """At most ``count`` pieces of about ``characters``: the first of each document, then the
    second of each, and so on, so that few pieces still come from many documents.

    Columns id, source, text; the id says where the piece begins.
    """
    rows: list[tuple[str, str, str]] = []
    begin = 0
    longest = max(len(document.text) for document in documents)
    while begin < longest and len(rows) < count:
        rows += [
            (f"{d.id}@{begin}", d.source, d.text[begin : begin + characters])
            for d in documents
            if d.text[begin : begin + characters].strip()
        ]
        begin += characters
    return pd.DataFrame(rows[:count], columns=["id", "source", "text"], dtype=object)


Window = tuple[int, list[int]]
"""Index of the document, and T + 1 token ids: T inputs and, shifted by one, T targets."""


def _windows(token_lists: list[list[int]], start: int, context: int) -> list[Window]:
    windows = []
    for document, ids in enumerate(token_lists):
        stream = [start, *ids]
        for begin in range(0, len(ids), context):
            windows.append((document, stream[begin : begin + context + 1]))
    return windows


def _batches(windows: list[Window], context: int, vocab_size: int) -> list[list[Window]]:
    """Windows of like length together, so that little is padded."""
    rows = max(1, LOGITS_AT_ONCE // (context * vocab_size))
    ordered = sorted(windows, key=lambda window: len(window[1]))
    return [ordered[begin : begin + rows] for begin in range(0, len(ordered), rows)]


def _window_nats(model: torch.nn.Module, batch: list[Window], device: torch.device) -> list[float]:
    """Nats of each window. Padding stands to the right, where a causal model cannot see it."""
    longest = max(len(ids) for _, ids in batch) - 1
    inputs_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    targets_BT = torch.full((len(batch), longest), -100)  # -100: not counted
    for row, (_, ids) in enumerate(batch):
        inputs_BT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets_BT[row, : len(ids) - 1] = torch.tensor(ids[1:])
    logits_BTV = model(input_ids=inputs_BT.to(device)).logits.float()
    lost_BT = F.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.to(device).flatten(), reduction="none"
    ).view_as(targets_BT)
    return lost_BT.double().sum(dim=1).tolist()
