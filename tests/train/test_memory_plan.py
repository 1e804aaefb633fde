"""The memory plan of a training: counted, said, and refused with what would fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workbench.errors import StageError
from workbench.machine.device import Device
from workbench.model.build import preset_config
from workbench.model.presets import PRESETS
from workbench.pilot.sections.model import Model
from workbench.pilot.sections.train import Distillation, Train, TrainingLaunch
from workbench.pilot.spec import Pilot
from workbench.stages import train_qat
from workbench.train import preflight
from workbench.train.memory_plan import memory_plans, require_memory

MODEL = Model(preset="bitnet-3b")
CONFIG = preset_config(MODEL, 32_000, 2048)
AB_3B = Train(
    batch_size=4, gradient_accumulation=32, precision="bfloat16", gradient_checkpointing=True,
    optimizer="adamw_torch_fused",
)  # fmt: skip


def test_the_plan_counts_what_a_shape_counts() -> None:
    shape = PRESETS["tiny-2m"]
    model = Model(preset="tiny-2m")
    for precision, value in (("float32", 4), ("bfloat16", 2)):
        for checkpointing in (False, True):
            train = Train(batch_size=2, precision=precision, gradient_checkpointing=checkpointing)
            config = preset_config(model, shape.vocab, 128)
            ternary = memory_plans(config, model, train, 128)[1]
            wanted = shape.training_bytes(
                2, 128, bytes_per_value=value, checkpointing=checkpointing
            )
            # Beside it, in bf16, autocast's copy of the head.
            assert ternary.total_bytes == pytest.approx(wanted, rel=0.06)


def test_3b_fits_an_80_gb_gpu_and_says_so() -> None:
    said: list[str] = []
    require_memory(CONFIG, MODEL, AB_3B, 2048, 84e9, said.append)
    assert [text.split(":")[0] for text in said] == [
        "memory plan, full precision", "memory plan, ternary", "memory plan"
    ]  # fmt: skip
    assert "optimizer 27.4" in said[0] and "84.0 GB are free" in said[2]


def test_a_teacher_is_planned_for_in_the_arm_it_teaches() -> None:
    taught = AB_3B.model_copy(update={"distillation": Distillation(teacher="full_precision")})
    precise, ternary = memory_plans(CONFIG, MODEL, taught, 2048)
    assert "teacher" not in precise.parts
    # 3.4e9 parameters in bf16 and three tensors of 8,192 x 32,000 logits.
    assert ternary.parts["teacher"] == pytest.approx(2 * 3.43e9 + 14 * 8192 * 32_000, rel=0.01)


def test_each_gpu_of_several_has_the_whole_model_and_its_part_of_a_batch() -> None:
    wide = AB_3B.model_copy(update={"batch_size": 8, "gradient_accumulation": 1})
    alone = memory_plans(CONFIG, MODEL, wide, 2048)[1].parts
    each = memory_plans(CONFIG, MODEL, launched(wide, processes=4), 2048)[1].parts
    assert each["weights"] == alone["weights"] and each["optimizer"] == alone["optimizer"]
    assert each["logits"] == alone["logits"] / 4
    assert each["buckets of gradients"] == each["gradients"]


def launched(train: Train, **launch: object) -> Train:
    return train.model_copy(update={"launch": TrainingLaunch(**launch)})


def test_shards_take_their_part_of_weights_gradients_and_the_optimizers_state() -> None:
    wide = AB_3B.model_copy(update={"batch_size": 8, "gradient_accumulation": 1})
    alone = memory_plans(CONFIG, MODEL, wide, 2048)[1]
    each = memory_plans(CONFIG, MODEL, launched(wide, processes=8, strategy="fsdp"), 2048)[1]
    for part in ("weights", "gradients", "optimizer"):
        assert each.parts[part] == alone.parts[part] / 8
    assert each.total_bytes < alone.total_bytes / 4
    within = launched(wide, processes=4, nodes=2, strategy="hsdp")
    repeated = memory_plans(CONFIG, MODEL, within, 2048)[1]
    assert repeated.parts["weights"] == alone.parts["weights"] / 4


@pytest.mark.parametrize(
    ("train", "free", "cure"),
    [
        ({"batch_size": 8, "gradient_checkpointing": False}, 90e9, "gradient_checkpointing: true"),
        ({"batch_size": 32}, 78e9, r"train.batch_size: 4 with train.gradient_accumulation: 256"),
        ({}, 60e9, r"batch_size: 1 with .*, train.optimizer: adamw_bnb_8bit"),
        ({}, 24e9, "smaller model.preset"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_change_that_does(
    train: dict, free: float, cure: str
) -> None:
    with pytest.raises(StageError, match=cure):
        require_memory(CONFIG, MODEL, AB_3B.model_copy(update=train), 2048, free, lambda _: None)


def test_the_stage_says_its_plan_before_it_reads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    pilot = Pilot(name="plan", question="Does it fit?", model=MODEL, train=AB_3B)
    context = SimpleNamespace(
        pilot=pilot,
        record=None,
        progress=SimpleNamespace(note=said.append),
        device=Device("cuda", "a GPU"),
    )
    monkeypatch.setattr(preflight, "torch_gpu_memory", lambda: (int(20e9), int(85e9)))
    with pytest.raises(StageError, match=r"training needs about .* GB of GPU memory"):
        train_qat.run(context)
    assert said[0].startswith("memory plan, full precision")
