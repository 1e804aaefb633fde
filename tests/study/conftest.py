"""A study small enough for tests: networks of a few thousand weights on generated text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.data.corpus import read_corpus
from workbench.data.tokenizer import make_tokenizer
from workbench.pilot.resolve import resolve
from workbench.records.stage_record import StageRecord
from workbench.study import one_arm, run
from workbench.study.run import STUDIES, run_study
from workbench.sweep.attempts import JobArray, JobEnd

PILOT = """# Question
# Command
name: small
question: does a study run?
data: {{corpus: {corpus}, vocab_size: 300, sequence_length: 16, holdout_share: 0.3}}
model:
  preset: tiny-1m
  overrides:
    {{hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1,
     num_attention_heads: 2, num_key_value_heads: 2, head_dim: 16}}
train: {{steps: 6, batch_size: 2, save_every: 3, evaluations: 1, eval_sequences: 40, lr: 5e-3}}
study:
  seeds: [1, 2]
  recipe:
    arms:
      straight_through: {{train: {{warmup: {{share: 0}}, threshold: {{share: 0}}}}}}
      lambda_warmup: {{train: {{warmup: {{share: 0}}, threshold: {{share: 0.5}}}}}}
      distilled: {{train: {{distillation: {{teacher: full_precision}}}}}}
  checkpoint:
    arms:
      lambda_warmup:
        train:
          threshold: {{share: 0.5}}
          distillation: {{teacher: none}}
          rate_sweep: {{rates: []}}
      rotation: {{train: {{rate_sweep: {{rates: []}}}}, model: {{threshold: {{rotation: 128}}}}}}
      pull: {{train: {{rate_sweep: {{rates: []}}, regularisation: pull}}}}
  parity: {{full_width: 32, widths: [32, 48, 64]}}
  size: {{widths: [16, 32, 48], tokens_per_parameter: 0.01}}
"""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models of a few thousand weights gain nothing from threads, and lose on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_by_one(array: JobArray, *_: object) -> list[JobEnd]:
    """The jobs of a study without processes."""
    for number in array.names:
        one_arm.do(array.plan, number)
    return []


@pytest.fixture(autouse=True, scope="session")
def in_this_process() -> Iterator[None]:
    """Trainings of a few steps: a process of its own takes longer to begin than any of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_here", one_by_one)
        yield


@pytest.fixture(scope="session")
def pilot_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    text = "def f{0}(x):\n    return x + {1}  # sum {0}\n" * 4
    rows = [{"id": f"d{i}", "text": text.format(i, i * i % 97)} for i in range(60)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small.yaml").write_text(PILOT.format(corpus=corpus))
    return folder / "small.yaml"


@pytest.fixture(scope="session")
def checkpoint_file(pilot_file: Path) -> Path:
    """The same pilot with a checkpoint in the place of the preset: a pretrained model, as far as a
    few thousand random weights are one, with its tokenizer."""
    folder = pilot_file.parent / "checkpoint"
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    data = resolve(pilot_file).pilot.data
    make_tokenizer(data, read_corpus(data, 1).training).save_pretrained(folder)
    before, _, after = pilot_file.read_text().partition("model:\n")
    after = after[after.index("train: {") :].replace(
        "train: {", "train: {rate_sweep: {rates: [1e-3, 5e-3], share: 1.0, sequences: 4}, ", 1
    )
    path = pilot_file.with_name("checkpoint.yaml")
    path.write_text(f"{before}model: {{checkpoint: {folder}}}\n{after}")
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs of this test's own."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def finished(
    pilot_file: Path, checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of runs in which every study is finished; tests may add to it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder))
        for name in STUDIES:
            run_study(name, resolve(checkpoint_file if name == "checkpoint" else pilot_file))
    return folder


@pytest.fixture(scope="session")
def records(finished: Path, pilot_file: Path, checkpoint_file: Path) -> dict[str, StageRecord]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(finished))
        return {
            name: run_study(name, resolve(checkpoint_file if name == "checkpoint" else pilot_file))
            for name in STUDIES
        }
