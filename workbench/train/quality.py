"""Held-out quality: nats lost on each document, and bits per UTF-8 byte.

The loss of a document is the sum over all its tokens, the first one predicted from the
tokenizer's start token alone; it is divided by the bytes of the text, which no tokenizer can
change, so models with different tokenizers stay comparable. A document longer than the
context is judged in windows that do not overlap, each token once: a little pessimistic at
the beginning of a window, and the same for every arm.

Of a conversation the answers alone are judged, each with the token that ends the turn, and the
bytes are those of the answers: what is asked is read and not counted.

Shapes: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from workbench.data.conversation import beginning
from workbench.data.dataset import UNJUDGED, document_tokens
from workbench.data.document import Document, documents_frame, documents_from
from workbench.data.tokenizer import document_start
from workbench.train.whole import is_sharded

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
    documents: columns id, source, text, and messages where there are conversations.
    context: tokens a window may hold.
    Returns one row a document, in the same order: id, source, nats, bytes, tokens; the last three
    of what is judged.
    """
    found = list(document_tokens(tokenizer, documents_from(documents)))
    start = document_start(tokenizer)
    windows = [
        (place, window)
        for place, (ids, judged, _) in enumerate(found)
        for window in _windows(ids, judged, start, context)
    ]
    nats = np.zeros(len(found))
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        # FSDP2's gathered weights outlive a pass: made in inference mode they could not be trained.
        with torch.no_grad() if is_sharded(model) else torch.inference_mode():
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
            "bytes": [size_bytes for *_, size_bytes in found],
            "tokens": [len(ids) if judged is None else judged.sum() for ids, judged, _ in found],
        }
    )


def bits_per_byte(losses: pd.DataFrame) -> float:
    """Total bits over total bytes of all documents (longer documents weigh more).

    NaN if any loss is: a diverged model must not look better for the documents it failed on.
    """
    return float(losses["nats"].sum(skipna=False) / math.log(2) / losses["bytes"].sum())


def excerpts(documents: Sequence[Document], characters: int, count: int) -> pd.DataFrame:
    """At most ``count`` pieces of about ``characters``: the first of each document, then the
    second of each, and so on, so that few pieces still come from many documents. A conversation
    has one piece, which ends with an answer.

    Columns id, source, text, and messages where there are conversations; the id says where the
    piece begins.
    """
    pieces: list[Document] = []
    begin = 0
    longest = max(len(document.text) for document in documents)
    while begin < longest and len(pieces) < count:
        for document in documents:
            text = document.text[begin : begin + characters]
            if not text.strip() or (begin and document.messages):
                continue
            messages = document.messages and beginning(document.messages, characters)
            name = f"{document.id}@{begin}"
            pieces.append(replace(document, id=name, text=text, messages=messages))
        begin += characters
    return documents_frame(pieces[:count])


def what_is_judged(documents: pd.DataFrame) -> str:
    """In words, for a figure's ``how``: "" where all of the text is."""
    if "messages" not in documents:
        return ""
    return "; of conversations the answers alone are judged, in nats and in bytes"


def by_corpus(losses: pd.DataFrame, heldout: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of excerpts of each of several corpora; none of a single one. heldout: of
    ``documents_frame``; excerpts are known by their documents' ids."""
    if "corpus" not in heldout:
        return
    corpus_of = dict(zip(heldout["id"], heldout["corpus"], strict=True))
    of = losses["id"].str.rpartition("@")[0].map(corpus_of)
    for corpus in dict.fromkeys(heldout["corpus"]):
        if (own := of == corpus).any():
            yield corpus, losses[own].reset_index(drop=True)


Window = tuple[list[int], list[int]]
"""T inputs and, shifted by one, T targets, :data:`UNJUDGED` where a token is not judged."""


def _windows(
    ids: list[int], judged: np.ndarray | None, start: int | None, context: int
) -> Iterator[Window]:
    """Those with anything to judge."""
    targets = ids if judged is None else np.where(judged, ids, UNJUDGED).tolist()
    if judged is not None and ids[:1] == [start]:  # the template has it already
        inputs, targets = ids[:-1], targets[1:]
    else:
        inputs = [start, *ids[:-1]]
    for begin in range(0, len(targets), context):
        window = targets[begin : begin + context]
        if judged is None or any(target != UNJUDGED for target in window):
            yield inputs[begin : begin + context], window


Placed = tuple[int, Window]
"""A window and the index of its document."""


def _batches(windows: list[Placed], context: int, vocab_size: int) -> list[list[Placed]]:
    """Windows of like length together, so that little is padded."""
    rows = max(1, LOGITS_AT_ONCE // (context * vocab_size))
    ordered = sorted(windows, key=lambda placed: len(placed[1][0]))
    return [ordered[begin : begin + rows] for begin in range(0, len(ordered), rows)]


def _window_nats(model: torch.nn.Module, batch: list[Placed], device: torch.device) -> list[float]:
    """Nats of each window. Padding stands to the right, where a causal model cannot see it."""
    longest = max(len(inputs) for _, (inputs, _) in batch)
    inputs_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    targets_BT = torch.full((len(batch), longest), UNJUDGED)
    for row, (_, (inputs, targets)) in enumerate(batch):
        inputs_BT[row, : len(inputs)] = torch.tensor(inputs)
        targets_BT[row, : len(targets)] = torch.tensor(targets)
    logits_BTV = model(input_ids=inputs_BT.to(device)).logits.float()
    lost_BT = F.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.to(device).flatten(), reduction="none"
    ).view_as(targets_BT)
    return lost_BT.double().sum(dim=1).tolist()
