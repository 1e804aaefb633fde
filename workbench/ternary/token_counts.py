"""How often each token stands in the text a model was made with, kept in its folder.

A table that keeps frequent tokens more precisely than others (``readiness.packing.tables: mixed``)
is only as good as this knowledge: it is the team's own text, not that of the tokenizer's makers.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from workbench.errors import ConfigError

NAME = "token_counts.npy"
CHUNK = 1 << 24
"""Tokens that are counted at a time."""


def count_tokens(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """int64 [vocabulary] of token ids, of any length."""
    counts = np.zeros(vocabulary, dtype=np.int64)
    for at in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[at : at + CHUNK], minlength=vocabulary)
    return counts


def save_token_counts(folder: Path, counts: np.ndarray) -> None:
    np.save(folder / NAME, counts, allow_pickle=False)


def copy_token_counts(folder: Path, other: Path) -> None:
    """From one model folder, where it has them, to another of the same tokenizer."""
    if (folder / NAME).exists():
        shutil.copyfile(folder / NAME, other / NAME)


def token_counts(folder: Path, vocabulary: int) -> np.ndarray | None:
    """Of a model folder; None where it has none. Longer or shorter ones than the vocabulary, which
    may be padded, are cut or filled with zeros. Raises ConfigError for a damaged file."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}",
            allowed="an array of how often each token stands in the text",
            next_step="copy the folder again, or delete this file: token numbers then tell which "
            "tokens are frequent",
        ) from error
    fitting = np.zeros(vocabulary, dtype=np.int64)
    fitting[: len(counts)] = counts[:vocabulary]
    return fitting
