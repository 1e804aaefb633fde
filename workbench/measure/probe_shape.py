"""The shape that the speed probe measures: a preset's, or the pilot's own checkpoint's.

A checkpoint's shape stands in its configuration or in the metadata of its GGUF file: no weight is
read for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig, PretrainedConfig

from workbench.engine.architecture import NotForKernels, kernel_config
from workbench.errors import ConfigError
from workbench.model.checkpoint import checkpoint_config
from workbench.model.presets import PRESETS, Shape
from workbench.wording.counts import number_of

OWN = "checkpoint"
"""The label ``shape`` of the pilot's own checkpoint."""


@dataclass(frozen=True)
class Subject:
    """What is probed. name: the label ``shape``. shape, config: as measured. layers: of the whole,
    more than ``shape`` has where that does not fit."""

    name: str
    shape: Shape
    config: PretrainedConfig
    layers: int

    @classmethod
    def preset(cls, name: str) -> Subject:
        shape = PRESETS[name]
        return cls(name, shape, LlamaConfig(**shape.config_fields()), shape.layers)

    @property
    def whole(self) -> Shape:
        return self.shape.with_layers(self.layers)

    @property
    def of_layers(self) -> str:
        """In words where the whole was not measured; else empty."""
        if self.layers == self.shape.layers:
            return ""
        return (
            f"measured with {self.shape.layers} of {number_of(self.layers, 'block')} and "
            "extrapolated"
        )


def own_config(checkpoint: str) -> tuple[PretrainedConfig | None, str]:
    """The configuration of a checkpoint whose shape the kernels compute, or why there is none."""
    try:
        config = checkpoint_config(checkpoint)
        if config is None:
            return None, f"the shape of {checkpoint} is not known before it is loaded"
        kernel_config(config)
    except (ConfigError, NotForKernels) as error:
        return None, f"the checkpoint's own shape cannot be computed by the kernels: {error}"
    return config, ""


def own_shape(checkpoint: str | None) -> Shape | None:
    """None where the pilot has no checkpoint, or one without a shape of that kind."""
    config = own_config(checkpoint)[0] if checkpoint else None
    return Shape.of_config(config) if config else None
