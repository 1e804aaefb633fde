"""A pilot whose model is a GGUF file, before it starts: checked, and foreseen like any other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer
from workbench.errors import ConfigError
from workbench.export.gguf_file import write_gguf
from workbench.pilot.resolve import resolve
from workbench.runner import forecast as forecasts
from workbench.runner.checks import check_pilot
from workbench.runner.forecast import Forecast, forecast
from workbench.ternary import to_ternary
from workbench.ternary.packed import load_packed, save_packed
from workbench.train.timed_step import StepTime

gguf = pytest.importorskip("gguf")

TEXT = "The cat sat on the mat, and 12 dogs looked at it. " * 40
SHAPE = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """The same small network as a Hugging Face folder, in bf16 and as a packed ternary file."""
    root = tmp_path_factory.mktemp("gguf")
    tokenizer = train_tokenizer([Document("a", "test", TEXT)], 300)
    torch.manual_seed(1)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**SHAPE, **ids, vocab_size=len(tokenizer))
    model = AutoModelForCausalLM.from_config(config)
    folder, bf16, ternary = root / "model", root / "model.gguf", root / "ternary.gguf"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(model, tokenizer, bf16, name="small")
    report = to_ternary(model)
    save_packed(model, root / "packed", report.precisions, report.threshold)
    write_gguf(load_packed(root / "packed"), tokenizer, ternary, "tq2_0", name="small")
    corpus = root / "corpus"
    corpus.mkdir()
    for name in ("a", "b", "c", "d"):
        (corpus / f"{name}.txt").write_text(f"Document {name}. {TEXT}")
    return SimpleNamespace(root=root, folder=folder, bf16=bf16, ternary=ternary, corpus=corpus)


def rounded(made: SimpleNamespace, kind: str) -> Path:
    """The bf16 file with its matrices in blocks of ``kind``, as people download them."""
    from gguf.quants import quantize

    path = made.root / f"{kind}.gguf"
    source, blocks = gguf.GGUFReader(made.bf16), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in source.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind_of = field.types[0]
        inner = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), kind_of, inner)
    for tensor in source.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values.astype(np.float32))
        else:
            data = quantize(values, blocks)
            writer.add_tensor(tensor.name, data, raw_dtype=blocks)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def foreseen(made: SimpleNamespace, monkeypatch, *words: str) -> Forecast:
    monkeypatch.setenv("WORKBENCH_RUNS", str(made.root / "runs"))
    timed = StepTime(1.0, 2.0, "declared")
    monkeypatch.setattr(forecasts, "step_time", lambda *_: timed)
    monkeypatch.setattr(forecasts, "decode_s", lambda *_: 0.001)
    shared = "data.sequence_length=64", f"data.corpus={made.corpus}", "train.rate_sweep.rates=[]"
    resolved = resolve("workbench:smoke", [*shared, *words])
    check_pilot(resolved, ["train_qat", "measure_ab"])
    return forecast(resolved.pilot)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_file_needs_what_its_folder_needs(made: SimpleNamespace, monkeypatch, kind: str) -> None:
    """Training unpacks the blocks: the file's small size is not what the memory is counted by."""
    path = rounded(made, kind)
    assert path.stat().st_size < made.bf16.stat().st_size
    wanted = foreseen(made, monkeypatch, f"model.checkpoint={made.folder}")
    found = foreseen(made, monkeypatch, f"model.checkpoint={path}")
    assert (found.memory_bytes, found.stages_s) == (wanted.memory_bytes, wanted.stages_s)
    assert found.disk_bytes == wanted.disk_bytes


def test_a_ready_ternary_file_is_compared_and_not_trained(
    made: SimpleNamespace, monkeypatch
) -> None:
    checkpoint = f"model.checkpoint={rounded(made, 'Q8_0')}"
    trained = foreseen(made, monkeypatch, checkpoint)
    ready = foreseen(made, monkeypatch, checkpoint, f"model.ternary={made.ternary}")
    assert ready.how["train_qat"] == "nothing is trained: model.ternary"
    assert ready.stages_s["train_qat"][0] < trained.stages_s["train_qat"][0] / 5
    assert ready.memory_bytes < trained.memory_bytes + forecasts.PROCESS_BYTES
    assert ready.disk_bytes < trained.disk_bytes / 3


@pytest.mark.parametrize("field", ["checkpoint", "ternary"])
@pytest.mark.parametrize("damage", ["cut off", "no GGUF file", "gone"])
def test_a_broken_file_is_refused_before_the_start(
    made: SimpleNamespace, monkeypatch, tmp_path: Path, field: str, damage: str
) -> None:
    whole = made.ternary if field == "ternary" else rounded(made, "Q4_0")
    path = tmp_path / "broken.gguf"
    if damage != "gone":
        data = whole.read_bytes()
        path.write_bytes(data[: len(data) // 2] if damage == "cut off" else b"PK" + data[2:])
    words = [f"model.{field}={path}"]
    if field == "ternary":
        words.append(f"model.checkpoint={made.folder}")
    with pytest.raises(ConfigError, match=r"broken\.gguf") as caught:
        foreseen(made, monkeypatch, *words)
    assert "Traceback" not in str(caught.value) and caught.value.next_step


def test_a_file_of_the_wrong_kind_says_where_it_belongs(made: SimpleNamespace, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"masters are gone[\s\S]*as model\.ternary"):
        foreseen(made, monkeypatch, f"model.checkpoint={made.ternary}")
    words = f"model.checkpoint={made.folder}", f"model.ternary={rounded(made, 'Q4_0')}"
    with pytest.raises(ConfigError, match=r"Q4_0\.gguf"):
        foreseen(made, monkeypatch, *words)
