"""``ternary.json`` of a packed folder: what a reader must know to compute the same numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.ternary.bitlinear import Activations
from workbench.ternary.policy import PRECISIONS, Precision
from workbench.ternary.threshold import ThresholdVersion

FORMAT = 1
NAME = "ternary.json"


@dataclass(frozen=True)
class LayerEntry:
    """One linear layer or embedding. sub_norm: an RMSNorm of the input lies inside it."""

    precision: Precision
    out_features: int
    in_features: int
    sub_norm: bool


@dataclass(frozen=True)
class Manifest:
    """activations: of all ternary and INT8 layers. tied: modules that share one stored matrix,
    kept under the first's name."""

    threshold: ThresholdVersion
    activations: Activations
    layers: dict[str, LayerEntry]
    tied: list[list[str]]

    def named(self, precision: Precision) -> list[str]:
        return [name for name, entry in self.layers.items() if entry.precision == precision]

    def later_of_ties(self) -> set[str]:
        """Tied modules whose matrix is stored under another's name."""
        return {name for group in self.tied for name in group[1:]}

    def write(self, folder: Path) -> None:
        value = {
            "format": FORMAT,
            "kind": "packed",
            "threshold": self.threshold.to_json(),
            "threshold_id": self.threshold.id,
            "activations": self.activations,
            "layers": {name: asdict(entry) for name, entry in self.layers.items()},
            "tied": self.tied,
        }
        (folder / NAME).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises ConfigError for a folder that is not packed, or by another format."""
        path = folder / NAME
        value = read_json_object(path)
        if value.get("kind") != "packed" or value.get("format") != FORMAT:
            raise ConfigError(
                f"{path}: kind {value.get('kind')!r}, format {value.get('format')!r}",
                allowed=f"kind 'packed', format {FORMAT}",
                next_step="give a folder that save_packed of this version has written",
            )
        threshold = ThresholdVersion.from_json(value.get("threshold"), str(path))
        try:
            layers = {name: LayerEntry(**entry) for name, entry in value["layers"].items()}
            manifest = cls(threshold, value["activations"], layers, value["tied"])
            valid = manifest._is_valid()
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {type(error).__name__} {error}") from error
        if not valid:
            raise ConfigError(
                f"{path} names a precision, shape, activation or tie that cannot be",
                next_step="the file was changed or is damaged; pack the model again",
            )
        return manifest

    def _is_valid(self) -> bool:
        return (
            self.activations in ("int8", "none")
            and all(
                entry.precision in PRECISIONS
                and type(entry.sub_norm) is bool
                and all(type(n) is int and n > 0 for n in (entry.out_features, entry.in_features))
                for entry in self.layers.values()
            )
            and all(len(group) > 1 and set(group) <= self.layers.keys() for group in self.tied)
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}",
            next_step="give the folder of a ternary model, or make it again",
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}", allowed="a JSON object")
    return value
