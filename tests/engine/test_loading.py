"""Loading: packed folders, Hugging Face's BitNet format, and everything that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from ternary_kernels import PackedTernary
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig, PreTrainedModel

from workbench.engine.cores import require_packing
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.errors import ConfigError, StageError, WorkbenchError
from workbench.pilot.sections.model import Policy
from workbench.pilot.sections.readiness import Packing
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.master import save_master
from workbench.ternary.packed import load_packed, save_packed
from workbench.ternary.token_counts import save_token_counts

SHAPE = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = list(range(20, 40))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_says_what_to_set() -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    with pytest.raises(StageError, match=r"engine on cuda, but torch.*\n.*\n.*readiness\.device"):
        Engine.random(config, "ternary", device="cuda")


def make_model(**changes) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **changes)).eval()


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> np.ndarray:
    return model(torch.tensor([TOKENS])).logits[0].float().numpy()


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    model = make_model(tie_word_embeddings=True)
    report = to_ternary(model, Policy(), ThresholdVersion())
    precisions = {
        **report.precisions,
        "model.layers.1.mlp.down_proj": "int8",
        "model.layers.1.self_attn.v_proj": "high_precision",
        "model.layers.1.mlp.up_proj": "int4",
    }
    for name, (K, N) in (("down", (128, 64)), ("up", (64, 128))):
        plain = torch.nn.Linear(K, N, bias=False)
        model.set_submodule(f"model.layers.1.mlp.{name}_proj", plain, strict=True)
    save_packed(model, tmp_path / "packed", precisions, ThresholdVersion())
    return tmp_path / "packed"


def test_a_packed_folder_with_four_precisions(packed: Path) -> None:
    wanted = logits_of(load_packed(packed))
    with Engine.load(packed, kv_dtype="float32") as engine:
        kinds = {name: w.kind for name, w in engine.core.weights.items() if hasattr(w, "kind")}
        assert kinds["layers.0.down"] == "ternary" and kinds["layers.1.down"] == "int8"
        assert kinds["layers.1.v"] == "half" and kinds["layers.1.up"] == "int4"
        assert kinds["embed"] == "int8" and "head" not in kinds
        assert error(engine.logits(TOKENS), wanted) < 2e-2


def test_a_master_folder_runs_as_ternary(tmp_path: Path) -> None:
    model = make_model()
    to_ternary(model, Policy(), ThresholdVersion(granularity="row"))
    save_master(model, tmp_path)
    with Engine.load(tmp_path, kv_dtype="float32") as engine:
        assert isinstance(engine.core.weights["layers.0.q"], PackedTernary)
        assert error(engine.logits(TOKENS), logits_of(model)) < 2e-2


def test_norms_inside_the_layers_run_through_transformers(tmp_path: Path) -> None:
    model = make_model()
    report = to_ternary(model, Policy(), ThresholdVersion(), sub_norm=True)
    save_packed(model, tmp_path / "packed", report.precisions, ThresholdVersion())
    with Engine.load(tmp_path / "packed") as engine:
        assert "has a norm inside" in engine.notes[0]
        assert error(engine.logits(TOKENS), logits_of(load_packed(tmp_path / "packed"))) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("same", [True, False])
def test_a_head_in_the_file_of_a_tied_model(same: bool, tmp_path: Path) -> None:
    """A head of its own is the model's head, whatever config.json says; a copy costs no memory."""
    make_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = table.clone() if same else table.flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for load in (lambda: Engine.load(tmp_path), lambda: Engine.from_model(model)):
        with load() as engine:
            assert ("head" in engine.core.weights) is not same
            assert error(engine.logits(TOKENS), logits_of(model)) < 2e-2


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_both_scale_conventions_of_bitnet(linear_class: str, tmp_path: Path) -> None:
    """The same model written with 1/absmean and with absmean gives the same logits."""
    folder, wanted = _bitnet_folder(tmp_path, linear_class)
    with Engine.load(folder, kv_dtype="float32") as engine:
        assert error(engine.logits(TOKENS), wanted) < 2e-2


def test_a_bitnet_scale_of_the_other_convention_is_refused(tmp_path: Path) -> None:
    folder, _ = _bitnet_folder(tmp_path, "bitlinear")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["linear_class"] = "autobitlinear"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkbenchError, match=r"weight_scale .* cannot be right"):
        Engine.load(folder)


def test_other_quantisation_is_refused(tmp_path: Path) -> None:
    folder, _ = _bitnet_folder(tmp_path, "bitlinear")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkbenchError, match="quantised with gptq"):
        Engine.load(folder)


def _bitnet_folder(folder: Path, linear_class: str) -> tuple[Path, np.ndarray]:
    """A packed BitNet checkpoint as Hugging Face writes it, and the logits it stands for."""
    torch.manual_seed(0)
    config = BitNetConfig(**SHAPE, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().mean()
            codes = (tensor / scale).round().clamp(-1, 1)
            quarters = (codes + 1).to(torch.uint8).chunk(4)
            tensors[name] = sum(q << (2 * i) for i, q in enumerate(quarters))
            stored = 1 / scale if linear_class == "bitlinear" else scale
            tensors[f"{name}_scale"] = stored.reshape(1)
        elif name != "lm_head.weight":
            tensors[name] = tensor.clone()
    config.quantization_config = {
        "quant_method": "bitnet", "linear_class": linear_class,
        "quantization_mode": "offline", "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # The reference: our own ternary layers over the master weights.
    to_ternary(model, Policy(), ThresholdVersion())
    return folder, logits_of(model)


def _without(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def _truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _forbidden_code(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.codes"][3, 1] = 0xFF
    save_file(tensors, folder / "model.safetensors")


def _other_threshold(folder: Path) -> None:
    layout = json.loads((folder / "ternary.json").read_text())
    layout["threshold"]["rule"] = "absmode"
    (folder / "ternary.json").write_text(json.dumps(layout))


def _wrong_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 99
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncate, "truncated"),
        (lambda f: (f / "model.safetensors").unlink(), "missing, truncated"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be used"),
        (lambda f: _without(f, "model.norm.weight"), "no tensor model.norm.weight"),
        (lambda f: _without(f, "model.layers.0.mlp.up_proj.codes"), "up_proj.weight"),
        (lambda f: _without(f, "model.layers.0.mlp.up_proj.scale"), "no tensor .*up_proj.scale"),
        (_forbidden_code, "forbidden code 3"),
        (_other_threshold, "absmode"),
        (_wrong_shape, r"embed_tokens is \[101, 64\]"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_with_its_cure(packed: Path, damage, says: str) -> None:
    damage(packed)
    with pytest.raises(WorkbenchError, match=says) as caught:
        Engine.load(packed)
    assert "allowed" in str(caught.value)


def test_a_context_beyond_the_model_is_refused(packed: Path) -> None:
    with pytest.raises(WorkbenchError, match="at most 64"):
        Engine.load(packed, context=65)


@pytest.mark.parametrize(
    ("prompt", "output", "says"),
    [
        (range(30), 0, "30 prompt and 0 output tokens; allowed: 24 together"),
        (range(20), 5, "20 prompt and 5 output tokens; allowed: 24 together"),
        ([5, 101], 1, "token 101; allowed: 0 to 100"),
        ([5, -1], 1, "token -1; allowed: 0 to 100"),
        ([], 1, "no tokens"),
    ],
)
def test_a_bad_prompt_is_refused(packed: Path, prompt, output: int, says: str) -> None:
    with Engine.load(packed, context=24) as engine:
        with pytest.raises(ValueError, match=says):
            engine.check_tokens(list(prompt), output)
        if prompt and output:
            with pytest.raises(ValueError, match=says):
                engine.generate(GenerationRequest(tuple(prompt), output))
        assert not engine.core.filled.any()


def test_a_slot_in_use_is_not_overwritten(packed: Path) -> None:
    with Engine.load(packed, slots=2) as engine:
        engine.prefill(0, TOKENS)
        with pytest.raises(ValueError, match="slot 0 is in use"):
            engine.logits(TOKENS)
        with pytest.raises(ValueError, match="slots"):
            engine.prefill(2, TOKENS)
        with pytest.raises(ValueError, match="positions"):
            engine.prefill(0, list(range(50)))


def test_a_mixed_table_keeps_what_the_folder_knows_to_be_frequent(packed: Path) -> None:
    mixed = Packing(tables="mixed")

    def frequent() -> set[int]:
        with Engine.load(packed, packing=mixed) as engine:
            table = engine.core.weights["embed"]
            assert "head" not in engine.core.weights and table.kind == "mixed"
            assert engine.backend.endswith("mixed tables")
            return set((table.places < table.first.shape[0]).nonzero()[:, 0].tolist())

    with Engine.load(packed) as engine:
        vocabulary = engine.vocab_size
    some = frequent()
    assert some == set(range(len(some))), "nothing is known: the lowest numbers"
    counts = np.arange(vocabulary)
    save_token_counts(packed, counts)
    assert frequent() == set(range(vocabulary - len(some), vocabulary))


def test_cores_of_other_kinds_take_tables_as_they_are_stored(packed: Path) -> None:
    asked = Packing(tables="mixed", ternary="base3")
    with Engine.load(packed, packing=asked, core="transformers") as engine:
        assert error(engine.logits(TOKENS), logits_of(load_packed(packed))) < 1e-5
    with pytest.raises(ConfigError, match="packing mixed, base3 with core transformers\n"):
        require_packing(asked, "transformers", "cpu")
    require_packing(asked, "auto", "cpu")
