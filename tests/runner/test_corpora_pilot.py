"""Whole pilots on a team's own text: two corpora mixed by weight, and conversations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.data.document import Document
from workbench.data.tokenizer import train_tokenizer
from workbench.records.run import Run, open_folder
from workbench.roadmap import STAGES

ROOT = Path(__file__).parents[2]
TINY = [
    "readiness.probe.enabled=false", "data.vocab_size=300", "data.sequence_length=32",
    "data.holdout_share=0.3", "train.steps=12", "train.batch_size=4", "train.eval_sequences=4",
    "model.overrides={hidden_size: 64, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2}",
    "measure_ab.arms=[full_precision,ternary,int8]", "measure_ab.interactive_output_tokens=[2]",
    "measure_ab.batch_output_tokens=2", "measure_ab.prompt_tokens=8", "measure_ab.budget_s=4",
    "measure_ab.load.blocks=0", "measure_ab.meters.sources=[]", "hybrid_plan.sequences=2",
    "deploy_rollback.duration_s=2", "deploy_rollback.drill.ways=[monitor]",
    "profile_load.synthetic.prompt_tokens_p50=6", "profile_load.synthetic.prompt_tokens_p99=12",
    "profile_load.synthetic.output_tokens_p50=2", "profile_load.synthetic.output_tokens_p99=6",
]  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def finished(folder: Path, *words: str) -> Run:
    """The run of the smallest pilot, which must end well."""
    command = [sys.executable, "-m", "workbench.cli", "run", str(ROOT / "pilots/smoke.yaml")]
    sets = [f"--set={word}" for word in (*TINY, *words)]
    found = subprocess.run(
        [*command, "--no-notebooks", *sets],
        env={**os.environ, "WORKBENCH_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "2"},
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    run = open_folder(next((folder / "runs").glob("*/*/run.json")).parent)
    assert all(run.record(stage) for stage in STAGES)
    return run


def test_two_corpora_are_mixed_and_judged_apart_to_the_report(tmp_path: Path) -> None:
    tickets = tmp_path / "tickets.jsonl"
    rows = [{"id": i, "text": f"Ticket {i * 7919 % 997}: floor {i * i} is dark. " * 6}
            for i in range(60)]  # fmt: skip
    tickets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manuals = tmp_path / "manuals"
    manuals.mkdir()
    for i in range(40):
        (manuals / f"{i}.md").write_text(f"# Manual {i}\n\nTurn screw {i * 31 % 101} left.\n" * 6)
    sources = f"[{{corpus: {tickets}, weight: 3.0}}, {{corpus: {manuals}}}]"
    run = finished(tmp_path, f"data.sources={sources}")
    trained, measured = run.record("train_qat"), run.record("measure_ab")
    parts = {part["name"]: part for part in trained.facts["corpus"]["parts"]}
    assert {name: part["share"] for name, part in parts.items()} == {
        "tickets.jsonl": 0.75, "manuals": 0.25,
    }  # fmt: skip
    assert all(part["training"] and part["heldout"] for part in parts.values())
    for arm in ("full_precision", "ternary"):
        each = [measured.metric("corpus_bits_per_byte", arm=arm, corpus=name) for name in parts]
        whole = measured.metric("bits_per_byte", arm=arm)
        assert min(m.value for m in each) <= whole.value <= max(m.value for m in each)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "tickets.jsonl" in page and "manuals" in page


def test_conversations_are_learned_by_their_answers_to_the_report(tmp_path: Path) -> None:
    rows = []
    for i in range(60):
        question, answer = f"What is {i} plus {i % 7}?", f"It is {i + i % 7}, as {i} says. " * 3
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"id": i, "messages": turns})
    talks = tmp_path / "talks.jsonl"
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = " ".join(turn["content"] for row in rows for turn in row["messages"])
    tokenizer = train_tokenizer([Document("a", "test", words + " user assistant system\n")], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    run = finished(tmp_path, f"data.corpus={talks}", f"data.tokenizer={tmp_path / 'tokenizer'}")
    corpus = run.record("train_qat").facts["corpus"]
    assert 0.3 < corpus["answer_tokens"] / corpus["training_tokens"] < 0.9
    heldout = run.record("train_qat").table("heldout")
    assert len(heldout) == corpus["heldout_documents"] > 5
    bits = run.record("measure_ab").metric("bits_per_byte", arm="ternary")
    assert 0 < bits.value < 12
    assert (run.folder / "report.html").stat().st_size > 100_000
