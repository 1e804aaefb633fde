"""``ternary.json`` of a packed folder: what a reader must know to compute the same numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictBool

from workbench.errors import ConfigError
from workbench.pilot.problems import validated
from workbench.ternary.bitlinear import Activations
from workbench.ternary.policy import Precision
from workbench.ternary.threshold import ThresholdVersion

FORMAT = 1
NAME = "ternary.json"
Width = Annotated[int, Field(strict=True, gt=0)]


@dataclass(frozen=True)
class LayerEntry:
    """One linear layer or embedding. sub_norm: an RMSNorm of the input lies inside it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    precision: Precision
    out_features: Width
    in_features: Width
    sub_norm: StrictBool


@dataclass(frozen=True)
class Manifest:
    """activations: of all ternary and INT8 layers. tied: modules that share one stored matrix,
    kept under the first's name."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    threshold: ThresholdVersion
    activations: Activations
    layers: dict[str, LayerEntry]
    tied: list[Annotated[list[str], Field(min_length=2)]]

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
        rest = {name: value[name] for name in ("activations", "layers", "tied") if name in value}
        manifest = validated(cls, {"threshold": threshold, **rest}, str(path))
        strangers = {name for group in manifest.tied for name in group} - manifest.layers.keys()
        if strangers:
            raise ConfigError(
                f"{path}: tied modules that are no layers: {', '.join(sorted(strangers))}",
                allowed="names of its layers",
                next_step="the file was changed or is damaged; pack the model again",
            )
        return manifest


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
