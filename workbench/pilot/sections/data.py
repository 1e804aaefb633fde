"""``data``: the text to train and judge on, and its tokenizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.pilot.sections.base import Count, Section, input_path


class Data(Section):
    """A corpus split by document."""

    corpus: input_path("python", hub=True) = Field(  # type: ignore[valid-type]
        "python",
        description="python (the installed Python's own documentation and source), a file or "
        "folder of text, JSONL (also .zst) or Parquet, or hf:owner/name",
    )
    format: Literal["auto", "text", "jsonl", "parquet"] = Field(
        "auto", description="of the corpus; auto tells it from the file's ending"
    )
    text_field: str = Field("text", description="column or key that holds a document's text")
    messages_field: str = Field(
        "messages",
        min_length=1,
        description="column or key that holds a conversation (OpenAI's form: role and content, "
        "also tool_calls), read where there is no text_field; its answers alone are learned and "
        "judged",
    )
    conversations: Literal["template", "plain"] = Field(
        "template",
        description="written by the tokenizer's chat template; plain: as lines of plain text, "
        "all of which is learned and judged",
    )
    split: str = Field("train", description="split of a Hugging Face data set")
    max_bytes: Count = Field(16_000_000, description="UTF-8 bytes taken at most")
    holdout_share: float = Field(0.06, gt=0, lt=0.5, description="share of documents held out")
    tokenizer: input_path(hub=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="a tokenizer's folder or hf:owner/name; null takes that of model.checkpoint, "
        "or trains byte-level BPE where there is none",
    )
    vocab_size: int = Field(2048, ge=257, description="of the trained byte-level BPE")
    sequence_length: int = Field(128, ge=8, description="tokens of a training sequence")
