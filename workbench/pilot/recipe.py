"""The recipe for a checkpoint: what a training takes by itself where the pilot names none.

A model that knows something already wants another training than one from scratch. What carries
it is the checkpoint's own word, the KL divergence from it as a teacher (public reports; the study
``checkpoint`` in docs/studies.md): a pilot's text is far too little to learn a language from anew.
So the arm starts from codes that make up for each other's errors and is ternary from its first step
(where that does not fit what the pilot says, the threshold comes on over the first tenth), nothing
pulls the weights to zero, and the rates are those of a fine-tuning, found by a short sweep: their
window is narrow.

Each value holds where ``model.checkpoint`` is given and the pilot's own files and ``--set`` say
nothing of that field. What ``workbench:base`` says is the workbench's own word for a training from
scratch, and gives way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.pilot.yaml_file import Keys

SOURCE = "recipe for model.checkpoint"
"""Where ``workbench show`` says that such a value came from."""

RATES: list[float] = [1e-4, 3e-4, 1e-3]
"""What the sweep tries."""

CHECKPOINT: dict[str, Any] = {
    "train": {
        "lr": 1e-4,
        "lr_final_factor": 0.1,
        "betas": [0.9, 0.95],
        "weight_decay": 0.0,
        "warmup": {"share": 0.0, "weight_decay": 0.0},
        "threshold": {"share": 0.1, "weight_decay": 0.0},
        "finetune": {"weight_decay": 0.0},
        "distillation": {"teacher": "checkpoint", "alpha": 0.9},
        "rate_sweep": {"rates": RATES},
    },
    "model": {"threshold": {"granularity": "row"}},
    # INT8 everywhere takes half of bf16's bytes and two bits an eighth: between them a plan chooses
    "hybrid_plan": {"max_size_ratio": 0.25},
}

COMPENSATED: dict[str, Any] = {
    "train": {"compensated_start": {"sequences": 64}, "threshold": {"share": 0.0}}
}
"""The start, and the threshold that goes with it."""

SEQUENCES = ("train", "compensated_start", "sequences")

OWN_WAY = (
    ("train", "warmup", "share"),
    ("train", "threshold", "share"),
    ("train", "threshold", "ramp"),
)
"""Whoever names one of these has a way of his own to ternary weights."""

SWEPT = (("train", "ternary_lr"), ("train", "lr"))
"""Who names a rate has found it: no sweep."""


def recipe_for(values: dict[str, Any], given: set[Keys]) -> Iterator[tuple[Keys, Any]]:
    """(keys, value) of each field that the recipe decides in a pilot of ``values``.

    given: what the pilot's own files and ``--set`` say, as whole paths of keys.
    """
    model = values.get("model")
    if not isinstance(model, dict) or not model.get("checkpoint") or model.get("ternary"):
        return
    recipe = dict(_leaves(CHECKPOINT, ()))
    if _starts_compensated(model, given) and _sequences(values) != 0:
        recipe |= dict(_leaves(COMPENSATED, ()))
    for keys, value in recipe.items():
        if keys == ("train", "rate_sweep", "rates") and any(k in given for k in SWEPT):
            continue
        if not any(keys[: len(own)] == own or own[: len(keys)] == keys for own in given):
            yield keys, value


def on_its_own_way(values: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be changed in a pilot of ``values`` that starts compensated when ``over``, laid
    over it, names another way to ternary weights: the threshold comes on as it does without."""
    given = {keys for keys, _ in _leaves(over, ())}
    model = {**(values.get("model") or {}), **over.get("model", {})}
    if SEQUENCES in given or _starts_compensated(model, given):
        return {}
    share = CHECKPOINT["train"]["threshold"]["share"]
    return {"train": {"compensated_start": {"sequences": 0}, "threshold": {"share": share}}}


def _sequences(values: Mapping[str, Any]) -> Any:
    """What the pilot itself says of ``train.compensated_start.sequences``; None for nothing."""
    found: Any = values
    for key in SEQUENCES:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _starts_compensated(model: dict[str, Any], given: set[Keys]) -> bool:
    """Where nothing that the pilot says stands against it."""
    threshold = model.get("threshold")
    rule = threshold.get("rule", "absmean") if isinstance(threshold, dict) else "absmean"
    said = any(
        keys[: len(own)] == own or own[: len(keys)] == keys for keys in given for own in OWN_WAY
    )
    return rule == "absmean" and not model.get("sub_norm") and not said


def _leaves(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    if not isinstance(value, Mapping):
        yield keys, value
        return
    for key, item in value.items():
        yield from _leaves(item, (*keys, key))
