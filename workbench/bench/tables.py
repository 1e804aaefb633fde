"""What an INT4 embedding and head would cost in quality, and bring in speed.

``python -m workbench.bench.tables loss MODEL`` judges held-out text with a checkpoint's tables as
they came, in INT8 and in INT4 (groups of 32, scales by least squares), all else alike; ``python
-m workbench.bench.tables speed`` decodes a ternary model of the 3B shape with its head in INT8 and
in INT4, in turns. One JSON object a row.

The kernels look up no INT4 rows yet: the embedding is looked up in what its INT4 codes stand for,
rounded to bf16, and only the head is multiplied in INT4. Neither figure depends on that: a token's
look-up reads one row of 128,256.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from ternary_kernels import PackedHalf, PackedInt4, PackedInt8, set_threads
from ternary_kernels.llama import create
from torch import Tensor

from workbench.bench.cpu import SHAPES
from workbench.bench.cpu_turns import Contender, Limits, Turns
from workbench.data.corpus import read_corpus
from workbench.data.document import documents_frame
from workbench.data.tokenizer import load_tokenizer
from workbench.engine.architecture import kernel_config
from workbench.engine.build import Weights
from workbench.engine.engine import Engine
from workbench.engine.modules import ModelSource
from workbench.engine.random_weights import random_weight, random_weights
from workbench.engine.weights import collect_weights
from workbench.machine.cpu import measurement_threads
from workbench.measure.quality import engine_losses, independent_units, judged_excerpts
from workbench.measure.statistics import bits_per_byte, bits_per_byte_difference
from workbench.model.checkpoint import load_checkpoint
from workbench.pilot.sections.data import Data

RESAMPLES, SEED = 2000, 1234
PROMPT, OUTPUT = 32, 16


def loss(checkpoint: str, corpus: str, documents: int, length: int) -> Iterator[dict[str, Any]]:
    """A row for each precision of the tables: bits a byte, and the difference from INT8 and from
    the tables as they came, on the same excerpts, with intervals."""
    tokenizer = load_tokenizer(checkpoint)
    model = load_checkpoint(checkpoint)
    config = kernel_config(model.config)
    tied = model.config.tie_word_embeddings
    body = collect_weights(config, model.config.model_type, tied, ModelSource(model), "half")
    held_out = documents_frame(
        read_corpus(Data(corpus=corpus, holdout_share=0.12, max_bytes=2_000_000), SEED).heldout
    )
    judged = judged_excerpts(held_out, tokenizer, length, documents)
    found = {}
    for precision, tables in _tables(body).items():
        with Engine(create(config, body | tables, 1, 4 * length)) as engine:
            found[precision] = engine_losses(engine, tokenizer, judged, length, lambda done: None)
    for precision, rows in found.items():
        labels, how = independent_units(rows)
        by: Any = {"groups": labels, "resamples": RESAMPLES, "seed": SEED}
        row = {"kind": "loss", "model": checkpoint.rpartition("/")[2], "tables": precision}
        size = int(rows["bytes"].sum())
        own = bits_per_byte(rows["nats"], rows["bytes"], **by)
        row |= {"excerpts": len(rows), "bytes": size, "bits_per_byte": own.value, "how": how}
        for other in ("half", "int8"):
            if other != precision:
                gap = bits_per_byte_difference(
                    found[other]["nats"], rows["nats"], rows["bytes"], **by
                )
                row |= {f"over_{other}": gap.value, f"over_{other}_lo": gap.lo}
                row |= {f"over_{other}_hi": gap.hi}
        yield row


def _tables(body: Weights) -> dict[str, dict[str, Any]]:
    """Precision -> embedding and head, of a model in half precision."""
    came = {name: body[name] for name in ("embed", "head") if name in body}
    assert all(isinstance(table, PackedHalf) for table in came.values())
    floats: dict[str, Tensor] = {name: table.dequantize() for name, table in came.items()}
    int4 = {name: PackedInt4.from_float(table) for name, table in floats.items()}
    looked_up = PackedHalf.from_float(int4["embed"].dequantize(), torch.bfloat16)
    return {
        "half": came,
        "int8": {name: PackedInt8.from_float(table) for name, table in floats.items()},
        "int4": {"embed": looked_up, "head": int4.get("head", int4["embed"])},
    }


def speed(shape: str, threads: int) -> Iterator[dict[str, Any]]:
    """Decode with both heads, and their ratio; each run beside the bandwidth around it."""
    set_threads(threads)
    config, limits = SHAPES[shape], Limits(threads)
    weights = random_weights(config, "ternary", tied=True)
    table = (config.vocab_size, config.hidden_size)
    head = random_weight(table, "int4", torch.Generator().manual_seed(SEED))
    room = 1, PROMPT + OUTPUT
    with (
        create(config, weights, *room) as int8,
        create(config, weights | {"head": head}, *room) as int4,
    ):
        looked_up = weights["embed"].nbytes
        read = {"int8": int8.weight_bytes, "int4": int4.weight_bytes - looked_up}
        cores = {"int8": int8, "int4": int4}

        def decode(name: str) -> int:
            for position in range(PROMPT, PROMPT + OUTPUT):
                cores[name].forward([7], [0], [position], True)
            return OUTPUT

        contenders = []
        for name, core in cores.items():
            core.forward(np.arange(PROMPT), np.zeros(PROMPT), np.arange(PROMPT), False)
            core.forward([7], [0], [PROMPT], True)
            run = lambda name=name: decode(name)  # noqa: E731
            contenders.append(Contender("decode", ("ours", name, threads), run, read[name]))
        turns = Turns(limits, *contenders)
        ratio = turns.ratio("decode, INT4 tables over INT8", contenders[1], contenders[0])
        for row in (*turns.rows(), ratio):
            made = json.loads(row.as_json())
            yield {
                "kind": "speed",
                "shape": shape,
                "resident_gb": read[row.precision] / 1e9,
                **made,
            }


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    of_loss = commands.add_parser("loss")
    of_loss.add_argument("checkpoint")
    of_loss.add_argument("--corpus", default="python")
    of_loss.add_argument("--documents", type=int, default=32)
    of_loss.add_argument("--length", type=int, default=128)
    of_speed = commands.add_parser("speed")
    of_speed.add_argument("--shape", default="llama-3.2-3b", choices=list(SHAPES))
    of_speed.add_argument("--threads", type=int, default=measurement_threads(0))
    given = vars(parser.parse_args())
    for row in (loss if given.pop("what") == "loss" else speed)(**given):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
