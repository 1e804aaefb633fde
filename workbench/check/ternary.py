"""Whether a model on the disk is ternary, whatever format it is in."""

from __future__ import annotations

import sys
from pathlib import Path

from workbench.check.evidence import TernaryCheck
from workbench.errors import CheckError, ConfigError, WorkbenchError
from workbench.paths import shown
from workbench.ternary.manifest import NAME, read_json_object

KINDS = (
    "a packed folder, a folder of ternary master weights, a Hugging Face BitNet folder, or a "
    "GGUF or ONNX file"
)


def check_ternary(path: str | Path) -> TernaryCheck:
    """Prove on the files of a model which of its matrices are ternary.

    path: a packed folder, a folder of master weights, a Hugging Face BitNet folder, a GGUF file
    (with the package ``gguf``) or an ONNX file (with ``onnx``). Returns the evidence: for each
    matrix [N, K] its precision, the shares of -1, 0 and +1 (0 to 1, their sum is 1) and the range
    of its scales; the threshold version; SHA-256 of the weight files; and what is wrong. A damaged
    file is no exception but a problem in the result, so that ``check.ok`` is the answer.

    Raises ConfigError for what is none of these: no such path, full precision, an adapter, a run.

    >>> import tempfile, torch
    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import ThresholdVersion, check_ternary, save_packed, to_ternary
    >>> shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=50,
    ...              num_attention_heads=2, num_key_value_heads=2)
    >>> model = AutoModelForCausalLM.from_config(LlamaConfig(**shape))
    >>> report = to_ternary(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_packed(model, f"{folder}/packed", report.precisions, report.threshold)
    ...     check = check_ternary(f"{folder}/packed")
    >>> check.ok, len(check.ternary), check.threshold
    (True, 7, 'absmean/tensor/half_even/eps1e-5')
    >>> round(sum(check.ternary[0].shares), 6)
    1.0
    """
    path = Path(path)
    try:
        return _check(path)
    except OSError as error:
        raise ConfigError(
            f"{shown(path)} cannot be read: {error.strerror or error}",
            next_step="see to its permissions, or copy it to where it can be read",
        ) from error


def _check(path: Path) -> TernaryCheck:
    if path.is_file():
        if path.suffix.lower() == ".onnx":
            from workbench.check.onnx_file import check_onnx

            return check_onnx(path)
        if path.suffix.lower() != ".gguf":
            raise _not_for_this(path, "is a file that does not end in .gguf or .onnx")
        from workbench.check.gguf_file import check_gguf

        return check_gguf(path)
    if not path.is_dir():
        raise _not_for_this(path, "does not exist")
    if (path / NAME).exists():
        return _of_the_workbench(path)
    if not (path / "config.json").exists():
        what = "is a run" if (path / "run.json").exists() else "has no config.json"
        raise _not_for_this(path, what)
    return _of_hugging_face(path)


def _of_the_workbench(folder: Path) -> TernaryCheck:
    from workbench.check.packed import check_master, check_packed

    try:
        kind = read_json_object(folder / NAME).get("kind")
    except ConfigError as error:
        return TernaryCheck(folder, "folder of the workbench", problems=[error.got])
    if kind == "packed":
        return check_packed(folder)
    if kind == "master":
        return check_master(folder)
    raise _not_for_this(folder, f"has a {NAME} of kind {kind!r}")


def _of_hugging_face(folder: Path) -> TernaryCheck:
    from workbench.check.bitnet import check_bitnet
    from workbench.engine.bitnet_checkpoint import BitnetCheckpoint

    try:
        config = read_json_object(folder / "config.json")
    except ConfigError as error:
        return TernaryCheck(folder, "Hugging Face folder", problems=[error.got])
    try:
        bitnet = BitnetCheckpoint.of(config.get("quantization_config"), folder)
    except WorkbenchError as error:
        raise _not_for_this(folder, error.got.removeprefix(f"{folder} ")) from error
    if bitnet is None:
        raise _not_for_this(folder, "is a model in full precision: nothing in it is ternary")
    return check_bitnet(folder, bitnet)


def _not_for_this(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{shown(path)} {what}",
        allowed=KINDS,
        next_step="a run's models lie in stages/train_qat/ternary and stages/hybrid_plan/hybrid",
    )


def check_command(path: Path, *, as_json: bool = False) -> None:
    """``workbench check``: print the evidence; CheckError where the files are not what they say."""
    import json

    check = check_ternary(path)
    if as_json:
        print(json.dumps(check.to_json()))
    elif check.ok:
        print(check)
    else:
        print(check, file=sys.stderr)
    if not check.ok:
        faults = len(check.problems)
        raise CheckError(
            f"{shown(path)} is no sound ternary model: {faults} fault{'s' * (faults > 1)}",
            next_step="make it again (pack, export or copy), and check it again",
        )
