"""``prompts``: a file of your own prompts, which every arm answers."""

from __future__ import annotations

from pydantic import Field

from workbench.pilot.sections.base import Count, Section, input_path


class Prompts(Section):
    """Your own prompts. Every arm of the pilot answers them greedily, and is held against the
    checkpoint as it came (without one, against full precision); where rows have checks, the
    accepted answers are counted, and the cost is one of an accepted answer too."""

    file: input_path() | None = Field(  # type: ignore[valid-type]
        None,
        description="JSONL, one prompt a row: `prompt` (text) or `messages` (chat turns with role "
        "and content); optional `id`, `max_tokens`, and what an answer must keep to: `contains` (a "
        "text, or a list of which each must be in it, letter case ignored), `regex`, `json_valid: "
        "true`, `json_schema`; null leaves this out",
    )
    max_tokens: Count = Field(
        64, description="of an answer at most, tokens; a row's own max_tokens goes before it"
    )
    most: Count = Field(64, description="rows taken, from the first on")
