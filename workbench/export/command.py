"""``workbench export``: an arm of a run, or a model folder, for other tools."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError, StageError, reason_of
from workbench.export.bitnet_folder import write_bitnet_folder
from workbench.export.gguf_file import write_gguf
from workbench.export.onnx_file import require_onnx, write_onnx
from workbench.gguf_reader import require_gguf
from workbench.model.checkpoint import load_checkpoint
from workbench.model.ends import generation_config, join_ends
from workbench.paths import shown
from workbench.pilot.problems import closest
from workbench.records.run import HEADER, find_run
from workbench.ternary.manifest import NAME as MANIFEST
from workbench.ternary.manifest import Manifest, read_json_object
from workbench.ternary.nbits import Bits
from workbench.ternary.packed import load_packed
from workbench.train.quiet import quiet_transformers

ARMS = {
    "hybrid": "hybrid_plan",
    "ternary": "train_qat",
    "post_training": "train_qat",
    "int8": "train_qat",
    "int4": "train_qat",
    "full_precision": "train_qat",
    "checkpoint": "train_qat",
}
"""Arm -> the stage that makes it."""


def export_command(
    source: Path,
    out: Path,
    *,
    arm: str | None = None,
    kind: str | None = None,
    tokenizer: bool = True,
    bits: Bits | None = None,
    rest_bits: Bits | None = None,
) -> None:
    """Write ``out``: a GGUF file if it ends in ``.gguf``, an ONNX file if in ``.onnx``, else a
    Hugging Face BitNet folder.

    source: a run's folder or name, or a model folder. arm: of a run; None for the hybrid. kind:
    block type of the ternary layers in a GGUF file; None for TQ2_0. tokenizer: False leaves it out.
    bits: of ternary layers in an ONNX file; None for 2. rest_bits: of its layers in high precision,
    which are rounded; None leaves them.
    Prints what was written to standard error, and the path last, to standard output.
    Raises ConfigError where ``out`` exists or cannot be written, StageError without that arm.
    """
    to_gguf, to_onnx = (out.suffix.lower() == suffix for suffix in (".gguf", ".onnx"))
    if to_gguf:
        require_gguf()
    if to_onnx:
        require_onnx()
    for option, given, fits, suffix in (
        ("--type", kind, to_gguf, ".gguf"),
        ("--bits", bits, to_onnx, ".onnx"),
        ("--rest-bits", rest_bits, to_onnx, ".onnx"),
    ):
        if given and not fits:
            what = "file" if to_gguf or to_onnx else "Hugging Face folder"
            raise ConfigError(
                f"{option} {given} for the {what} {shown(out)}",
                allowed=f"with a file that ends in {suffix}",
                next_step=f"leave {option} out, or give a name that ends in {suffix}",
            )
    to_folder = not (to_gguf or to_onnx)
    if to_folder and re.fullmatch(r"\.[a-z]\w*", out.suffix.lower()) and not out.is_dir():
        near = closest(out.suffix.lower(), [".gguf", ".onnx"])
        raise ConfigError(
            f"{shown(out)}: {out.suffix} is no ending of a file that is written{near}",
            allowed="a name that ends in .gguf or .onnx, or a folder's name without an ending",
            next_step=f"if a folder of that name is meant, make it first: mkdir "
            f"{shlex.quote(shown(out))}",
        )
    with _place(out):
        taken = out.exists() and not (out.is_dir() and to_folder and not any(out.iterdir()))
    if taken:
        raise ConfigError(
            f"{shown(out)} exists", next_step="give another name, or move that out of the way"
        )
    name, folder = _found(source, arm)
    model, description = _load(folder)
    with _place(out):
        if to_onnx:
            done_onnx = write_onnx(
                model, out, name=name, description=description, bits=bits or 2, rest_bits=rest_bits
            )
            print(done_onnx, file=sys.stderr)
            print(out)
            return
    words = load_tokenizer(str(folder)) if tokenizer else None
    with _place(out):
        if to_gguf:
            done = write_gguf(
                model, words, out, kind or "tq2_0", name=name, description=description
            )
            print(done, file=sys.stderr)
        else:
            print(write_bitnet_folder(model, words, out), file=sys.stderr)
    print(out)


@contextmanager
def _place(out: Path) -> Iterator[None]:
    """A ConfigError that names ``out`` where the file system refuses it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{shown(out)} cannot be written: {error.strerror or reason_of(error)}",
            next_step="give a name in a folder that can be written to and has room",
        ) from None


def _found(source: Path, arm: str | None) -> tuple[str, Path]:
    """What to call the model, and its folder."""
    if (source / "config.json").is_file() and not (source / HEADER).exists():
        if arm:
            raise ConfigError(
                f"--arm {arm} of {shown(source)}, which is one model and no run",
                next_step="leave --arm out, or name a run",
            )
        return source.resolve().name, source
    run, arm = find_run(str(source)), arm or "hybrid"
    record = run.record(ARMS[arm])
    if record is None:
        raise StageError(
            f"{run.name} has no finished {ARMS[arm]}, which makes the arm {arm}",
            next_step="finish that run with workbench run, or name another --arm",
        )
    if arm not in record.artefacts:
        raise StageError(
            f"{run.name} has no arm {arm}: its {ARMS[arm]} was run by an older workbench",
            allowed=", ".join(a for a in ARMS if a in record.artefacts),
            next_step="run that pilot again with workbench run, or name another --arm",
        )
    return f"{run.name} {arm}", record.artefact(arm)


def _load(folder: Path) -> tuple[PreTrainedModel, str]:
    """The model, and what it is in a sentence."""
    if not (folder / MANIFEST).exists():
        with quiet_transformers():
            return load_checkpoint(str(folder)), "full precision"
    if read_json_object(folder / MANIFEST).get("kind") == "master":
        raise ConfigError(
            f"{shown(folder)} holds master weights, which are not ternary yet",
            allowed="a packed model folder, or a run with --arm ternary",
            next_step="as a Hugging Face folder it can be read as it is",
        )
    manifest = Manifest.read(folder)
    counts = {p: len(manifest.named(p)) for p in ("ternary", "int8", "int4", "high_precision")}
    words = ", ".join(f"{n} {p.replace('_', ' ')}" for p, n in counts.items() if n)
    model = load_packed(folder)
    join_ends(model.config, generation_config(folder))
    return model, f"layers: {words}; threshold {manifest.threshold}"
