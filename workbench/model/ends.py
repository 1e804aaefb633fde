"""The tokens that end a text, from both of the files that name them.

``config.json`` has the one of the pretraining; a chat model's end of a turn often stands in
``generation_config.json`` alone (Llama 3, Qwen), and whoever reads only the former runs on to the
limit. A GGUF file and the engine read the configuration, so both are joined there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from workbench.errors import ConfigError

FILE = "generation_config.json"


def end_tokens(*sources: PretrainedConfig | GenerationConfig | None) -> list[int]:
    """The ids that any of ``sources`` names, each once, in their order; none in some models."""
    found = [token for each in sources if each is not None for token in _listed(each.eos_token_id)]
    return list(dict.fromkeys(found))


def join_ends(config: PretrainedConfig, generation: GenerationConfig | None) -> None:
    """Let ``config``, which is changed, name the end tokens of both."""
    ends = end_tokens(config, generation)
    config.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def generation_config(folder: Path) -> GenerationConfig | None:
    """That of a model's folder, of which only the end tokens are read; None where there is none.

    Raises ConfigError for a file that is damaged: its end tokens would be missed silently.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    ends = value.get("eos_token_id") if isinstance(value, dict) else value
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not isinstance(value, dict) or not all(type(i) is int and i >= 0 for i in ids):
        raise _damaged(path, f"names {ends!r} as its end tokens")
    return GenerationConfig(eos_token_id=ends)


def _listed(ends: Any) -> list[int]:
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} {what}",
        allowed="eos_token_id: a token's id, or a list of them",
        next_step="correct it, or remove it if config.json names every token that ends a text",
    )
