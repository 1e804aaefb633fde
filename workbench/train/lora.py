"""LoRA on top of a frozen ternary base: full-precision adapters beside layers of -1, 0 and +1.

    y = BitLinear(x) + (alpha / rank) * B(A(x))

The base is frozen at full strength, so its ternary weights are made once and kept; only A and B
learn (PEFT adds them, https://huggingface.co/docs/peft). The base's artefact stays as it is and
serves any number of adapters, each a few megabytes. Merging B A into the base would make its
weights dense, so nothing here merges.

An adapter has learned to correct one set of ternary weights. Its folder therefore holds, beside
PEFT's own files, the base's threshold version and a checksum of the weights that its codes and
scales are made from, and does not go onto a base with others. Codes and scales themselves would not
do: a GPU, or another processor, sums in another order, and the last bit of a scale with it.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from workbench.errors import ConfigError
from workbench.records.events import Progress
from workbench.ternary import bit_linears, set_reuse, set_strength
from workbench.ternary.folder import replacing_folder
from workbench.ternary.manifest import FORMAT, NAME, read_json_object
from workbench.ternary.threshold import ThresholdVersion
from workbench.train.arm import train_arm
from workbench.train.evaluator import Evaluator
from workbench.train.setup import TrainingSetup

if TYPE_CHECKING:
    from peft import PeftModel

KIND = "adapter"


def add_lora(
    base: PreTrainedModel,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
) -> PeftModel:
    """``base`` (a ternary model, e.g. of ``load_master``) frozen, with new adapters.

    targets: endings of the names of ternary layers. The new model computes what the base does
    until it is trained: B starts at zero.

    Raises ConfigError without PEFT, for a model without ternary layers, and for a target that
    is not one of them.

    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import add_lora, to_ternary
    >>> base = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(base)
    >>> model = add_lora(base, rank=2, targets=["q_proj"])
    >>> [tuple(p.shape) for p in model.parameters() if p.requires_grad]
    [(2, 32), (32, 2)]
    """
    _require_peft()
    import peft

    _freeze(base)
    endings = sorted({name.rpartition(".")[2] for name, _ in bit_linears(base)})
    if unknown := sorted(set(targets) - set(endings)):
        raise ConfigError(
            f"LoRA targets {', '.join(unknown)}: no ternary layers of that name",
            allowed=", ".join(endings),
        )
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # it is divided by the rank, whole or not
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    with _older_names():
        return peft.get_peft_model(base, config)


def train_lora(
    model: PeftModel, setup: TrainingSetup, folder: Path, progress: Progress
) -> Evaluator:
    """Train the adapters of ``model`` on ``setup``; resumes in ``folder`` like any arm.

    The threshold is on from the first step: the phases before it are for weights that learn.
    """
    train = setup.train
    at_once = train.model_copy(
        update={
            "warmup": train.warmup.model_copy(update={"share": 0.0}),
            "threshold": train.threshold.model_copy(update={"share": 0.0}),
        }
    )
    setup = replace(setup, train=at_once, new_norms=False)
    wrapped = cast("PreTrainedModel", model)  # PEFT's wrapper has the model's own interface
    return train_arm("ternary", wrapped, setup, folder, progress)


def save_lora(model: PeftModel, folder: str | Path) -> None:
    """Write the adapters and what base they belong to; an older folder is replaced whole.

    folder: takes PEFT's files (A [rank, in] and B [out, rank] of each layer, float32) and
    ``ternary.json``. Raises ConfigError for a model without ternary layers.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import add_lora, save_lora, to_ternary
    >>> base = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(base)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_lora(add_lora(base, rank=2), f"{folder}/adapter")
    ...     Path(folder, "adapter", "ternary.json").exists()
    True
    """
    folder = Path(folder)
    base = model.get_base_model()
    threshold = _threshold(base)
    value = {
        "format": FORMAT,
        "kind": KIND,
        "threshold": threshold.to_json(),
        "threshold_id": threshold.id,
        "base_crc32": base_checksum(base),
    }
    with replacing_folder(folder) as partial:
        model.save_pretrained(str(partial), save_embedding_layers=False)
        (partial / NAME).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def load_lora(base: PreTrainedModel, folder: str | Path, *, trainable: bool = False) -> PeftModel:
    """``base`` with the adapters of ``folder``, frozen unless ``trainable``.

    Raises ConfigError for a folder without such adapters, for a base with another threshold
    version (both are named) and for other ternary weights than those it was trained on.

    >>> import tempfile
    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import add_lora, load_lora, load_master, save_lora, to_ternary
    >>> from workbench.ternary.master import save_master
    >>> base = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(base)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_master(base, f"{folder}/master")
    ...     save_lora(add_lora(base, rank=2), f"{folder}/adapter")
    ...     model = load_lora(load_master(f"{folder}/master"), f"{folder}/adapter")
    >>> any(p.requires_grad for p in model.parameters())
    False
    """
    folder = Path(folder)
    _require_peft()
    import peft

    path = folder / NAME
    value = read_json_object(path)
    if value.get("kind") != KIND or value.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: kind {value.get('kind')!r}, format {value.get('format')!r}",
            allowed=f"kind {KIND!r}, format {FORMAT}",
            next_step="give a folder that save_lora has written",
        )
    ThresholdVersion.from_json(value.get("threshold"), str(path)).require(
        _threshold(base), str(folder)
    )
    if (found := base_checksum(base)) != value.get("base_crc32"):
        raise ConfigError(
            f"{folder} was trained on a base with checksum {value.get('base_crc32')}, "
            f"this one has {found}",
            next_step="give the ternary model that the adapter was trained on, or train it again",
        )
    _freeze(base)
    try:
        with _older_names():
            return peft.PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{folder} cannot be loaded: {str(error).splitlines()[0]}",
            next_step="the folder is damaged or incomplete; train the adapter again",
        ) from error


def base_checksum(base: nn.Module) -> int:
    """CRC-32 of the master weights and learned scales of all ternary layers, in their order."""
    total = 0
    for _, layer in bit_linears(base):
        for tensor in (layer.weight, *([] if layer.alpha is None else [layer.alpha])):
            octets = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
            total = zlib.crc32(octets.data, total)
    return total


@contextmanager
def _older_names() -> Iterator[None]:
    """PEFT asks transformers for an attribute by a name that 5.20 has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def _freeze(base: nn.Module) -> None:
    _threshold(base)
    base.requires_grad_(False)
    set_strength(base, 1.0)
    set_reuse(base, True)


def _threshold(base: nn.Module) -> ThresholdVersion:
    layers = bit_linears(base)
    if not layers:
        raise ConfigError(
            f"LoRA on {type(base).__name__}: it has no trainable ternary layers",
            allowed="a model of load_master (artefact ternary_master), or after to_ternary",
        )
    return layers[0][1].threshold


def _require_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "LoRA needs the package peft, which is not installed",
            next_step="pip install peft, or pip install 'ternary-workbench[lora]'",
        )
