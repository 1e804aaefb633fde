"""lm-evaluation-harness through the engine and through the server: offline tasks, equal scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench.data.tokenizer import encode

lm_eval = pytest.importorskip("lm_eval", reason="the extra eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and of what it brings
CHOICES = [("def f(x):", ["return x", "café"], 0), ("# café", ["日本語", "return"], 0)]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{more}
metric_list: [{{metric: {metric}, aggregation: {aggregation}, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Multiple choice, rolling and generation over one small file."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": question, "choices": choices, "answer": answer}
        for question, choices, answer in CHOICES
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kinds = {
        "own_choice": ("multiple_choice", "acc", "mean",
                       "doc_to_choice: choices\ndoc_to_target: answer"),
        "own_rolling": ("loglikelihood_rolling", "bits_per_byte", "bits_per_byte",
                        'doc_to_target: "{{question}}"'),
        "own_text": ("generate_until", "exact_match", "mean",
                     'doc_to_target: "x"\ngeneration_kwargs: {until: ["\\n"], max_gen_toks: 12}'),
    }  # fmt: skip
    for name, (kind, metric, aggregation, more) in kinds.items():
        text = TASK.format(
            name=name, file=file, kind=kind, metric=metric, aggregation=aggregation, more=more
        )
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def evaluated(tasks: Path, names: list[str], model: Any, **options: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, bootstrap_iters=0, **options
    )
    assert found is not None
    return found


def test_a_task_has_the_same_scores_through_the_engine_and_the_server(
    arms, answering, tasks, offline
) -> None:
    from workbench.measure.lm_eval_model import WorkbenchModel

    folder = str(arms["full_precision"])
    model = WorkbenchModel(folder, max_length=128, threads=1)
    names = ["own_choice", "own_rolling", "own_text"]
    here = evaluated(tasks, names, model)
    served = evaluated(
        tasks,
        ["own_choice"],
        "local-completions",
        model_args={
            "model": "full_precision", "base_url": f"{answering.address}/v1/completions",
            "tokenizer": folder, "max_length": 128, "num_concurrent": 1,
        },
    )  # fmt: skip
    scores = [
        np.array([[score[0] for score in sample["filtered_resps"]]
                  for sample in found["samples"]["own_choice"]])
        for found in (here, served)
    ]  # fmt: skip
    assert scores[0].shape == (2, 2) and (scores[0] < 0).all()
    np.testing.assert_allclose(scores[0], scores[1], atol=0.05)
    # The harness's own question, worked out from the engine's logits.
    ids = encode(answering.tokenizer, ["def f(x):", "def f(x): return x"])
    logits = answering.engine.logits(ids[1]).astype(np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    wanted = sum(log_p[k - 1, ids[1][k]] for k in range(len(ids[0]), len(ids[1])))
    assert scores[0][0, 0] == pytest.approx(wanted, abs=0.05)
    per_byte = here["results"]["own_rolling"]["bits_per_byte,none"]
    assert 1.0 < per_byte < 9.0, "an untrained model knows nothing"
    (text,) = here["samples"]["own_text"][0]["filtered_resps"]
    assert "\n" not in text and len(encode(answering.tokenizer, [text])[0]) <= 12
    model.engine.close()


def test_what_is_longer_than_the_model_loses_its_beginning(arms, offline) -> None:
    from lm_eval.api.instance import Instance

    from workbench.measure.lm_eval_model import WorkbenchModel

    model = WorkbenchModel(str(arms["full_precision"]), max_length=24, threads=1)
    line = "def f(x):\n    return x  # café\n"

    def instance(kind: str, *arguments: Any) -> Instance:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    ((nats, greedy),) = model.loglikelihood([instance("loglikelihood", line * 20, " return")])
    assert nats < 0 and greedy in (True, False)
    short, long = (
        model.loglikelihood_rolling([instance("loglikelihood_rolling", line * n)])[0]
        for n in (1, 9)
    )
    assert long < 3 * short < 0, "every token counts once, in windows"
    how = {"until": ["\n"], "max_gen_toks": 8}
    (text,) = model.generate_until([instance("generate_until", line * 20, how)])
    assert "\n" not in text
    model.engine.close()
