"""The public names: light to import, documented, and every example of their documentation runs."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import api

ROOT = Path(__file__).parents[1]
NEEDS = {"add_lora": "peft", "fine_tune_lora": "peft", "load_lora": "peft", "save_lora": "peft"}


@pytest.mark.parametrize("name", api.__all__)
def test_every_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    public = getattr(api, name)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(public), {}, name, None, None)
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = doctest.DocTestRunner(optionflags=flags).run(example, out=said.append).failed
    assert not failed, "".join(said)


def test_names_are_imported_when_they_are_asked_for() -> None:
    assert sorted(api.__all__) == dir(api) == sorted(api._WHERE)
    code = (
        "import sys, workbench.api as api\n"
        "assert not {'torch', 'pandas', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "api.Metric, api.read_trace\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no 'to_binary'; it has"):
        _ = api.to_binary


def test_the_documented_lora_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/pilots.md, word for word, on a run's artefacts of a tiny model."""
    pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, LlamaConfig

    from workbench.data.document import Document
    from workbench.data.tokenizer import train_tokenizer
    from workbench.ternary import to_ternary
    from workbench.ternary.master import save_master

    text = (ROOT / "docs" / "pilots.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "add_lora" in b]
    assert len(re.findall(r"^\s*(?:from|import) ", block, re.M)) == 1
    small = block.replace("steps=500", "steps=2, batch_size=2, evaluations=1")
    assert small != block
    monkeypatch.chdir(tmp_path)
    trained = tmp_path / "runs" / "chat" / "RUN" / "stages" / "train_qat"
    tickets = [
        f"Ticket {i}: the printer is out of paper again, on floor {i}. " * 9 for i in range(9)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tickets.jsonl").write_text(
        "".join(f'{{"text": "{ticket}"}}\n' for ticket in tickets)
    )
    tokenizer = train_tokenizer([Document("0", "tickets", tickets[0])], 300)
    tokenizer.save_pretrained(trained / "tokenizer")
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            vocab_size=300,
        )
    )  # fmt: skip
    to_ternary(model)
    save_master(model, trained / "ternary_master")
    exec(small, {})
    assert (tmp_path / "adapters" / "tickets" / "adapter" / "ternary.json").exists()
