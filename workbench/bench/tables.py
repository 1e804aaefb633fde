"""What each packing of embedding and head costs in quality, and brings in speed.

``python -m workbench.bench.tables loss MODEL`` judges held-out text with a model's tables as they
came, in INT8, mixed and in INT4, all else alike; ``python -m workbench.bench.tables speed`` decodes
models of the 3B shape with each of them, ternary layers in two bits, in triples and in base 3,
and INT4 layers, in turns. One JSON object a row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ternary_kernels import set_threads
from ternary_kernels.llama import LlamaConfig, LlamaModel, create

from workbench.bench.cpu import SHAPES
from workbench.bench.cpu_turns import Contender, Limits, Turns
from workbench.data.corpus import read_corpus
from workbench.data.document import documents_frame
from workbench.data.tokenizer import encode, load_tokenizer
from workbench.engine.architecture import kernel_config
from workbench.engine.build import read_config
from workbench.engine.engine import Engine
from workbench.engine.modules import ModelSource
from workbench.engine.packing import Weights, pack_table
from workbench.engine.random_weights import denser, random_table, random_weights
from workbench.engine.weights import FolderSource, Source, collect_weights
from workbench.machine.cpu import measurement_threads
from workbench.measure.quality import engine_losses, independent_units, judged_excerpts
from workbench.measure.statistics import bits_per_byte, bits_per_byte_difference
from workbench.model.checkpoint import load_checkpoint
from workbench.pilot.sections.data import Data
from workbench.ternary.manifest import NAME as MANIFEST
from workbench.ternary.manifest import Manifest
from workbench.ternary.token_counts import count_tokens

RESAMPLES, SEED = 2000, 1234
PROMPT, OUTPUT = 32, 16


def loss(model: str, corpus: str, documents: int, length: int) -> Iterator[dict[str, Any]]:
    """A row for each packing of the tables: bits a byte, and the difference from INT8 and from
    the tables as they came, on the same excerpts, with intervals. Frequent tokens are those of the
    rest of the corpus.

    model: a packed folder, or a checkpoint as ``model.checkpoint`` takes it.
    """
    tokenizer = load_tokenizer(model)
    config, body = _body(model)
    text = read_corpus(Data(corpus=corpus, holdout_share=0.12, max_bytes=4_000_000), SEED)
    judged = judged_excerpts(documents_frame(text.heldout), tokenizer, length, documents)
    learned = encode(tokenizer, [document.text for document in text.training])
    counts = count_tokens(np.concatenate(learned), config.vocab_size)
    found = {}
    for packing, tables in _tables(body, ("auto", "int8", "mixed", "int4"), counts).items():
        with Engine(create(config, body | tables, 1, 4 * length)) as engine:
            found[packing] = engine_losses(engine, tokenizer, judged, length, lambda done: None)
    for packing, rows in found.items():
        labels, how = independent_units(rows)
        by: Any = {"groups": labels, "resamples": RESAMPLES, "seed": SEED}
        row = {"kind": "loss", "model": Path(model).name, "corpus": corpus}
        row["tables"] = f"{body['embed'].kind}, as they came" if packing == "auto" else packing
        size = int(rows["bytes"].sum())
        own = bits_per_byte(rows["nats"], rows["bytes"], **by)
        row |= {"excerpts": len(rows), "bytes": size, "bits_per_byte": own.value, "how": how}
        for other, name in (("auto", "as_they_came"), ("int8", "int8")):
            if other != packing:
                gap = bits_per_byte_difference(
                    found[other]["nats"], rows["nats"], rows["bytes"], **by
                )
                row |= {f"over_{name}": gap.value, f"over_{name}_lo": gap.lo}
                row |= {f"over_{name}_hi": gap.hi}
        yield row


def _body(model: str) -> tuple[LlamaConfig, Weights]:
    if (Path(model) / MANIFEST).exists():
        config = read_config(Path(model))
        source: Source = FolderSource(Path(model), config, Manifest.read(Path(model)))
    else:
        loaded = load_checkpoint(model)
        config, source = loaded.config, ModelSource(loaded)
    shape = kernel_config(config)
    return shape, collect_weights(shape, config.model_type, config.tie_word_embeddings, source)


def _tables(body: Weights, packings: Sequence[str], counts: np.ndarray) -> dict[str, Weights]:
    """Packing of the tables -> embedding and head, of a model in half precision."""
    came = {name: body[name] for name in ("embed", "head") if name in body}
    return {
        kind: {name: pack_table(table, kind, counts) for name, table in came.items()}
        for kind in packings
    }


def speed(shape: str, threads: int) -> Iterator[dict[str, Any]]:
    """Decode with each packing, and how much faster than two bits and INT8 tables; each run beside
    the bandwidth around it."""
    set_threads(threads)
    config, limits = SHAPES[shape], Limits(threads)
    layers = {
        "ternary": {"two_bits": random_weights(config, "ternary", tied=True)},
        "int4": {"int4": random_weights(config, "int4", tied=True)},
    }
    for packing in ("triples", "base3"):
        layers["ternary"][packing] = denser(layers["ternary"]["two_bits"], packing)
    for kinds in layers.values():
        yield from _decoded(config, kinds, limits, shape)


def _decoded(
    config: LlamaConfig, layers: dict[str, Weights], limits: Limits, shape: str
) -> Iterator[dict[str, Any]]:
    vocabulary = (config.vocab_size, config.hidden_size)
    draw = torch.Generator().manual_seed(SEED)
    tables = {kind: random_table(vocabulary, kind, draw) for kind in ("int8", "mixed", "int4")}
    with ExitStack() as open_cores:
        contenders = {}
        for name, weights in layers.items():
            for kind, table in tables.items():
                core = create(config, weights | {"embed": table}, 1, PROMPT + OUTPUT)
                open_cores.enter_context(core)
                contenders[name, kind] = _decode(core, f"{name}, tables in {kind}", limits.threads)
        turns = Turns(limits, *contenders.values())
        usual = next(iter(contenders.values()))
        for it in contenders.values():
            ratio = turns.ratio(f"decode over {usual.what[1]}", it, usual)
            for row in (turns.row(it), ratio) if it is not usual else (turns.row(it),):
                resident = {"resident_gb": it.bytes_per_token / 1e9}
                yield {"kind": "speed", "shape": shape, **resident, **json.loads(row.as_json())}


def _decode(core: LlamaModel, precision: str, threads: int) -> Contender:
    """The bytes are every weight once; the cache of a short text is left out."""
    core.forward(np.arange(PROMPT), np.zeros(PROMPT), np.arange(PROMPT), False)
    core.forward([7], [0], [PROMPT], True)

    def run() -> int:
        for position in range(PROMPT, PROMPT + OUTPUT):
            core.forward([7], [0], [position], True)
        return OUTPUT

    return Contender("decode", ("ours", precision, threads), run, core.weight_bytes)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    of_loss = commands.add_parser("loss")
    of_loss.add_argument("model")
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
