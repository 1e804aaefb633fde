"""What the end-to-end parts of ``workbench bench gpu`` run, and their tiny twins."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.model.presets import PRESETS, Shape


@dataclass(frozen=True)
class EndToEnd:
    """What the end-to-end parts run. Lengths in tokens."""

    decode: tuple[str, Shape] = ("bitnet-3b", PRESETS["bitnet-3b"])
    capacity: tuple[str, Shape] = ("llama-30b", PRESETS["llama-30b"])
    large: tuple[str, Shape] = ("llama-3-70b", PRESETS["llama-3-70b"])
    prompt: int = 512
    output: int = 128
    capacity_output: int = 512
    memory_bytes: float = 80e9
    most_slots: int = 512
    batches: tuple[int, ...] = (1, 32)
    repeats: int = 7

    @classmethod
    def tiny(cls) -> EndToEnd:
        """For the rehearsal."""
        shape = Shape(32, 48, 1, 2, 1, 40, 64)
        name = ("tiny", shape)
        return cls(name, name, name, 5, 2, 2, 25e3, 2, (1,), 1)


@dataclass(frozen=True)
class Trained:
    name: str = "bitnet-3b"
    shape: Shape = PRESETS["bitnet-3b"]
    batch: int = 2
    sequence: int = 2048

    @classmethod
    def tiny(cls) -> Trained:
        return cls("tiny", Shape(32, 48, 1, 2, 2, 40, 64), 1, 4)
