"""Packings of tables: the loss is that of the codes, the speed that of the bytes, in turns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ternary_kernels import PackedHalf
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.bench.tables import loss, speed
from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer
from workbench.engine.packing import pack_table

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
    came = "half, as they came"
    assert list(rows) == [came, "int8", "mixed", "int4"]
    half, int4 = rows[came]["bits_per_byte"], rows["int4"]["bits_per_byte"]
    assert rows["int4"]["over_as_they_came"] == pytest.approx(int4 - half) and int4 != half
    assert len({row["bits_per_byte"] for row in rows.values()}) == 4
    # The same codes written into the model itself: only the head's activations are then precise.
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            codes = pack_table(PackedHalf.from_float(module.weight), "int4")
            if module is model.get_input_embeddings() or not tied:
                module.weight.copy_(codes.dequantize())
    model.save_pretrained(tmp_path / "rounded")
    tokenizer.save_pretrained(tmp_path / "rounded")
    rounded = next(iter(loss(str(tmp_path / "rounded"), str(corpus), 4, 32)))
    assert rounded["bits_per_byte"] == pytest.approx(int4, rel=0.01)


def test_every_packing_decodes_in_turns() -> None:
    rows = list(speed("tiny", 1))
    rates = {row["precision"]: row for row in rows if row["unit"] == "tokens/s"}
    assert list(rates) == [
        f"{layers}, tables in {kind}"
        for layers in ("two_bits", "triples", "base3", "int4")
        for kind in ("int8", "mixed", "int4")
    ]
    ratios = [row for row in rows if row["unit"] == "x"]
    assert len(ratios) == len(rates) - 2, "the first of ternary layers, and of INT4 ones, has none"
    assert all(row["lo"] <= row["value"] <= row["hi"] for row in ratios)
    table = 1000 * 256  # INT4: half a byte and a 32nd of two more
    scales = 4 * 1008  # of INT8: one a row, rows in groups of 16
    size = {name: row["resident_gb"] * 1e9 for name, row in rates.items()}
    saved = size["two_bits, tables in int8"] - size["two_bits, tables in int4"]
    assert saved == pytest.approx(table + scales - table * 4.5 / 8, rel=0.02)
    assert size["two_bits, tables in int4"] < size["two_bits, tables in mixed"]
    assert size["two_bits, tables in mixed"] < size["two_bits, tables in int8"]
    assert size["base3, tables in int8"] < size["triples, tables in int8"]
    assert size["triples, tables in int8"] < size["two_bits, tables in int8"]
