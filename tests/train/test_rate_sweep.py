"""The sweep of rates: the same batches for each, judged on text none learns, kept over a kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.errors import StageError
from workbench.json_lines import read_rows
from workbench.records.events import Progress
from workbench.train.rate_sweep import (
    ROWS,
    _short,
    best_rate,
    sweep_rates,
    why_no_sweep,
    with_best_rate,
)


def swept(small: SimpleNamespace, folder: Path, rates: list[float]):
    setup = small.make_setup(rate_sweep={"rates": rates, "share": 0.5, "sequences": 4})
    made = []

    def fresh():
        made.append(1)
        return small.make_model("ternary", setup)

    progress = Progress(folder / "events.jsonl", "train_qat")
    found = sweep_rates(fresh, setup, folder / "sweep", progress)
    return setup, found, len(made)


def test_the_best_rate_is_taken_and_finished_ones_are_kept(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    setup, found, made = swept(small, tmp_path, [1e-7, 3e-3])
    assert found["rate"].tolist() == [1e-7, 3e-3] and made == 2
    assert found["steps"].tolist() == [12, 12] and found["tokens"].nunique() == 1
    assert found["bits_per_byte"].iloc[1] < found["bits_per_byte"].iloc[0], "it can learn"
    rate, text = best_rate(found)
    assert rate == 3e-3 and "largest that was tried" in text and "12 steps each" in text
    assert with_best_rate(setup, found).train.ternary_lr == 3e-3
    again = swept(small, tmp_path, [1e-7, 3e-3, 1e-3])
    assert again[2] == 1, "only the new rate is trained"
    assert again[1]["rate"].tolist() == [1e-7, 1e-3, 3e-3]
    assert [row["rate"] for row in read_rows(tmp_path / "sweep" / ROWS)] == [1e-7, 3e-3, 1e-3]
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [ROWS], "no models are kept"


def test_what_judges_the_rates_is_not_learned_and_not_held_out(small: SimpleNamespace) -> None:
    setup = small.make_setup(rate_sweep={"rates": [1e-3], "share": 0.25, "sequences": 4})
    short = _short(setup)
    assert short.train.steps == 6 and len(short.excerpts) == 4
    assert len(short.tokens) == len(setup.tokens) - 4 * setup.sequence_length
    tail = setup.tokens[len(short.tokens) :].astype("int64")
    assert "".join(short.excerpts["text"]) == setup.tokenizer.decode(tail, skip_special_tokens=True)


def test_too_few_steps_tell_no_rates_apart(small: SimpleNamespace) -> None:
    def why(share: float, rates: list[float]) -> str | None:
        return why_no_sweep(small.make_setup(rate_sweep={"rates": rates, "share": share}).train)

    assert "2 of 24 steps" in why(0.1, [1e-4]) and "rate is 0.001" in why(0.1, [1e-4])
    assert why(0.25, [1e-4]) is None and why(0.1, []) is None


def test_a_rate_that_breaks_is_out_and_all_of_them_are_an_error(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    _, found, _ = swept(small, tmp_path, [1e-3, 1e30])
    assert best_rate(found)[0] == 1e-3
    broken = found[found["rate"] == 1e30].iloc[0]
    assert broken.isna()["bits_per_byte"] and "broke at step" in broken["why"]
    with pytest.raises(StageError, match="no rate of"):
        swept(small, tmp_path / "other", [1e30])
