"""INT4 tables: the loss is that of the codes, the speed that of the head, in turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ternary_kernels import PackedInt4
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.bench.tables import loss, speed
from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer

WORDS = "the cat sat on a mat and read of codes in four bits while it rained outside again "


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_of_tables_is_that_of_their_codes(tmp_path: Path, tied: bool) -> None:
    text = "".join(f"{number} {WORDS}" for number in range(400))
    tokenizer = train_tokenizer([Document("a", "test", text)], 300)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=len(tokenizer), max_position_embeddings=128, tie_word_embeddings=tied,
        ),
        dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.no_grad():  # so large that a rounding shows
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    corpus = tmp_path / "text"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_text(f"{number} " + text[number * 700 :][:600])
    rows = {row["tables"]: row for row in loss(str(tmp_path / "model"), str(corpus), 4, 32)}
    assert list(rows) == ["half", "int8", "int4"]
    half, int4 = rows["half"]["bits_per_byte"], rows["int4"]["bits_per_byte"]
    assert rows["int4"]["over_half"] == pytest.approx(int4 - half) and int4 != half
    # The same codes written into the model itself: only the head's activations are then precise.
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            codes = PackedInt4.from_float(module.weight.float())
            if module is model.get_input_embeddings() or not tied:
                module.weight.copy_(codes.dequantize())
    model.save_pretrained(tmp_path / "rounded")
    tokenizer.save_pretrained(tmp_path / "rounded")
    rounded = next(iter(loss(str(tmp_path / "rounded"), str(corpus), 4, 32)))
    assert rounded["bits_per_byte"] == pytest.approx(int4, rel=0.01)


def test_both_heads_decode_in_turns() -> None:
    int8, int4, ratio = speed("tiny", 1)
    assert (int8["precision"], int4["precision"], ratio["unit"]) == ("int8", "int4", "x")
    table = 1000 * 256  # INT4: half a byte and a 32nd of two more
    scales = 4 * 1008  # of INT8: one a row, rows in groups of 16
    saved = (int8["resident_gb"] - int4["resident_gb"]) * 1e9
    assert saved == pytest.approx(table + scales - table * 4.5 / 8, rel=0.02)
    assert ratio["lo"] <= ratio["value"] <= ratio["hi"]
