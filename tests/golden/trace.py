"""Golden losses: 20 steps of both arms of a tiny preset, to the bit.

    make golden                            # write them anew, after a change that is to move them
    python tests/golden/trace.py FOLDER    # into another folder

A refactor keeps the losses as they are. To the bit they can only be had from the same arithmetic,
so the training runs in a process with one thread and without the instructions that only some
processors have (``SETUP``: torch's plain C++ kernels, and MKL's branch that promises every x86
processor the same bits), and each file begins with what it was made with. ``arithmetic`` in it
is a digest of a few steps in which no line of the workbench takes part. Where it comes out as
another (another torch, an ARM), ``test_golden.py`` compares within a tolerance, and says so.
"""

# ruff: noqa: E402  what torch reads of the environment must be set before it is imported
from __future__ import annotations

import os
import sys

SETUP = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
if __name__ == "__main__" and any(os.environ.get(name) != SETUP[name] for name in SETUP):
    # They are read once, while torch is loaded.
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | SETUP)

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import kl_div
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.pilot.resolve import resolve
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.stages import train_qat
from workbench.stages.context import StageContext

PILOT = Path(__file__).parents[2] / "pilots" / "base.yaml"
SETTINGS = [
    "model.preset=tiny-1m", "data.vocab_size=300", "data.sequence_length=32",
    "data.holdout_share=0.3", "train.steps=20", "train.batch_size=4", "train.evaluations=1",
    "train.eval_sequences=8",
]  # fmt: skip
TRACES = {
    "distilled": [],  # as shipped: pilots/base.yaml names the full-precision arm as the teacher
    "not_distilled": ["train.distillation.teacher=none"],
}
TEXTS = [f"def f{i}(x):\n    return x * {i * i % 89} + {i}  # {i} times\n" * 6 for i in range(60)]
TO_THE_BIT = ("loss", "objective", "teacher_kl", "grad_norm", "lr")
"""Columns of the table ``loss`` that are kept, as ``float.hex`` writes them."""


def arithmetic() -> str:
    """A digest of what this machine computes: a few steps of distillation in plain torch and
    ``transformers``, in the shapes of the traces, without a line of the workbench."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=128, intermediate_size=352, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    teacher, model = LlamaForCausalLM(config), LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids_BT = torch.randint(config.vocab_size, (4, 32))
    digest = hashlib.sha256()
    for _ in range(3):
        output = model(input_ids=ids_BT, labels=ids_BT)
        with torch.no_grad():
            wanted_BTV = teacher(input_ids=ids_BT).logits.log_softmax(-1)
        student_BTV = output.logits.log_softmax(-1)
        kl = kl_div(student_BTV, wanted_BTV, reduction="batchmean", log_target=True)
        (output.loss + kl).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        digest.update(torch.stack([output.loss, kl, norm]).detach().numpy().tobytes())
    means = torch.stack([p.detach().abs().mean() for p in model.parameters()])
    digest.update(means.numpy().tobytes())
    return digest.hexdigest()[:16]


def header() -> dict[str, object]:
    """What a trace was made with; ``arithmetic`` alone decides how it is compared."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "setup": SETUP,
        "arithmetic": arithmetic(),
    }


def rows(settings: list[str]) -> list[dict[str, Any]]:
    """One of the traces: a row for every step of each arm, then one for each final quality.

    The whole stage ``train_qat`` runs, from the text to the final weights.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        pilot = resolve(PILOT, [*SETTINGS, f"data.corpus={corpus}", *settings]).pilot
        record = StageRecord("train_qat", folder)
        progress = Progress(folder / "events.jsonl", "train_qat")
        train_qat.run(StageContext(pilot, record, progress, {}))
        loss = record.table("loss")
        kept = [name for name in TO_THE_BIT if name in loss]
        steps = [
            {"arm": row["arm"], "step": row["step"], "phase": row["phase"], "batch": row["batch"]}
            | {name: float(row[name]).hex() for name in kept if row[name] == row[name]}
            for row in loss.to_dict("records")
        ]
        finals = [m for m in record.metrics if m.name == "final_bits_per_byte"]
        return steps + [
            {"arm": m.labels["arm"], "final_bits_per_byte": float(m.value).hex()} for m in finals
        ]


def write(folder: Path) -> None:
    """Every trace as ``<name>.jsonl``: the header, then the rows."""
    torch.use_deterministic_algorithms(True)
    made_with = header()
    for name, settings in TRACES.items():
        lines = [made_with, *rows(settings)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
