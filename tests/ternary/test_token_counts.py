"""What a model folder knows of its text: how often each token stands in it."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import ConfigError
from workbench.ternary import token_counts as counts


def test_counts_are_of_the_whole_text_however_long(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(counts, "CHUNK", 3)
    found = counts.count_tokens(np.array([4, 1, 1, 0, 4, 4, 4], dtype=np.uint16), 6)
    assert found.tolist() == [1, 2, 0, 0, 4, 0]
    counts.save_token_counts(tmp_path, found)
    assert counts.token_counts(tmp_path, 6).tolist() == [1, 2, 0, 0, 4, 0]


def test_a_padded_vocabulary_is_filled_with_zeros_and_a_shorter_one_cut(tmp_path) -> None:
    counts.save_token_counts(tmp_path, np.array([3, 1, 2]))
    assert counts.token_counts(tmp_path, 5).tolist() == [3, 1, 2, 0, 0]
    assert counts.token_counts(tmp_path, 2).tolist() == [3, 1]


def test_a_folder_without_counts_knows_none_and_a_damaged_file_is_named(tmp_path) -> None:
    assert counts.token_counts(tmp_path, 3) is None
    (tmp_path / counts.NAME).write_bytes(b"not an array")
    with pytest.raises(ConfigError, match=r"(?s)token_counts.npy cannot be read.*delete this file"):
        counts.token_counts(tmp_path, 3)
