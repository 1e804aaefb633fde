"""The count of operations behind "41 times", made for this run's model, and the bytes it moves.

Three things are easily taken for one: the energy of arithmetic by a count of operations, the bytes
that a token moves, and what a meter shows. The count is that of the paper: energies of single
operations on a 7 nm process (FP16 multiply 0.34 pJ, add 0.16; INT8 multiply 0.07, add 0.007; table
of arXiv:2310.11453 after arXiv:2112.00133). A product with full-precision weights is a multiply and
an add in FP16, one with ternary weights an INT8 add, and an FP16 multiply an output for the scale;
embedding head and the products of attention keep their own precision. The count knows no memory, no
static power and no quantisation of activations. Decoding moves every weight once for a token at
batch 1, and the keys and values of what came before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.files import read_json
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.counts import number_of

FP16_MULTIPLY, FP16_ADD, INT8_MULTIPLY, INT8_ADD = 0.34, 0.16, 0.07, 0.007
"""pJ, 7 nm."""
OPERATIONS, BYTES = "operations_energy_ratio", "bytes_moved_ratio"
BITS = {"ternary": 2.0, "int8": 8.0, "int4": 4.5, "high_precision": 16.0}


@dataclass(frozen=True)
class TokenCount:
    """Of one token at a context: arithmetic in pJ and bytes moved, of both arms."""

    full_pj: float
    ternary_pj: float
    full_bytes: float
    ternary_bytes: float


def operation_ratios(records: Mapping[str, StageRecord]) -> list[Metric]:
    """Both ratios of this run's ternary model, or why they cannot be counted."""
    trained, load = records.get("train_qat"), records.get("profile_load")
    labels = {"arm": "ternary"}
    if trained is None or "ternary" not in trained.artefacts:
        return _missing("no ternary model was trained in this run", labels)
    folder = trained.artefact("ternary")
    try:
        config, manifest = read_json(folder / "config.json"), read_json(folder / "ternary.json")
        counted = count_token(config, manifest["layers"], context := _context(load))
    except (OSError, KeyError, ValueError, TypeError) as error:
        return _missing(f"the model's files do not tell its matrices: {error!r}", labels)
    at = f"one token at a context of {number_of(context, 'token', form='.0f')}, batch 1"
    return [
        Metric(
            OPERATIONS, counted.full_pj / counted.ternary_pj, "x",
            f"arithmetic of {at}, in pJ of single operations on a 7 nm process; no memory, no "
            "static power", "theoretical", labels=labels, basis="exact",
        ),
        Metric(
            BYTES, counted.full_bytes / counted.ternary_bytes, "x",
            f"weights and cache read for {at}: {counted.full_bytes / 1e6:.4g} MB over "
            f"{counted.ternary_bytes / 1e6:.4g} MB", "modelled", labels=labels, basis="exact",
        ),
    ]  # fmt: skip


def count_token(config: dict[str, Any], layers: dict[str, Any], context: float) -> TokenCount:
    """config: of Hugging Face. layers: name -> precision, out_features, in_features.

    A tied embedding is the head too; an embedding of its own is looked up, not multiplied.
    """
    head_name = next((n for n in layers if n.endswith("lm_head")), None)
    embedding = next((n for n in layers if n.endswith("embed_tokens")), None)
    multiplied = {n: each for n, each in layers.items() if n != embedding or head_name is None}
    full_pj = ternary_pj = full_bytes = ternary_bytes = 0.0
    for each in multiplied.values():
        size, precision = each["out_features"] * each["in_features"], each["precision"]
        full_pj += size * (FP16_MULTIPLY + FP16_ADD)
        ternary_pj += {
            "ternary": size * INT8_ADD + each["out_features"] * FP16_MULTIPLY,
            "int8": size * (INT8_MULTIPLY + INT8_ADD) + each["out_features"] * FP16_MULTIPLY,
            "int4": size * (INT8_MULTIPLY + INT8_ADD) + size / 32 * FP16_MULTIPLY,
            "high_precision": size * (FP16_MULTIPLY + FP16_ADD),
        }[precision]
        full_bytes += 2 * size
        ternary_bytes += size * BITS[precision] / 8
    if head_name is None and embedding is None:  # the head is not among the packed layers
        size = config["vocab_size"] * config["hidden_size"]
        full_pj, ternary_pj = (pj + size * (FP16_MULTIPLY + FP16_ADD)
                               for pj in (full_pj, ternary_pj))  # fmt: skip
        full_bytes, ternary_bytes = full_bytes + 2 * size, ternary_bytes + 2 * size
    depth, heads = config["num_hidden_layers"], config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    attention = 2 * depth * heads * width * context * (FP16_MULTIPLY + FP16_ADD)
    cache = 2 * depth * (config.get("num_key_value_heads") or heads) * width * 2 * context
    return TokenCount(
        full_pj + attention, ternary_pj + attention, full_bytes + cache, ternary_bytes + cache
    )


def _context(load: StageRecord | None) -> float:
    """In the middle of a request of the load; without one the 512 tokens of the paper."""
    if load is None or "profile" not in load.artefacts:
        return 512.0
    summary = read_json(load.artefact("profile"))
    tokens, n = summary["tokens"], summary["requests"]
    return float(tokens["prompt"] / n + tokens["output"] / n / 2)


def _missing(reason: str, labels: dict[str, str]) -> list[Metric]:
    return [Metric.missing(name, "x", reason, **labels) for name in (OPERATIONS, BYTES)]
