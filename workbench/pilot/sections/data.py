"""``data``: the text to train and judge on, and its tokenizer."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.pilot.sections.base import Count, Positive, Section, Share, input_path

Pattern = Annotated[str, Field(min_length=1)]


class CorpusSource(Section):
    """One of several corpora that are mixed: all parts of ``data`` that say what a corpus is."""

    corpus: input_path("python", hub=True) = Field(  # type: ignore[valid-type]
        description="python, a file or folder, or hf:owner/name, as data.corpus"
    )
    weight: Positive = Field(
        1.0, description="share of the training tokens, over the sum of all weights"
    )
    name: str | None = Field(
        None, min_length=1, description="in figures and tables; null: the last part of corpus"
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
    include: list[Pattern] = Field(
        [], description="files of a folder that are taken, such as '**/*.md'; empty: all"
    )
    exclude: list[Pattern] = Field(
        [], description="files of a folder that are left out, such as 'old/**'"
    )
    split: str = Field("train", description="split of a Hugging Face data set")

    @property
    def label(self) -> str:
        return self.name or PurePath(self.corpus).name or self.corpus


class Data(Section):
    """A corpus split by document, or several mixed by weight."""

    corpus: input_path("python", hub=True) = Field(  # type: ignore[valid-type]
        "python",
        description="python (the installed Python's own documentation and source), a file or "
        "folder of text, JSONL (also .zst) or Parquet, or hf:owner/name",
    )
    sources: list[CorpusSource] = Field(
        [], description="several corpora in the place of corpus, mixed by their weights"
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
    include: list[Pattern] = Field(
        [], description="files of a folder that are taken, such as '**/*.md'; empty: all"
    )
    exclude: list[Pattern] = Field(
        [], description="files of a folder that are left out, such as 'old/**'"
    )
    split: str = Field("train", description="split of a Hugging Face data set")
    conversations: Literal["template", "plain"] = Field(
        "template",
        description="written by the tokenizer's chat template; plain: as lines of plain text, "
        "all of which is learned and judged",
    )
    max_bytes: Count = Field(16_000_000, description="UTF-8 bytes taken at most")
    holdout_share: float = Field(0.06, gt=0, lt=0.5, description="share of documents held out")
    max_leaked_share: Share = Field(
        0.2,
        description="of a held-out document's letters and digits that stand in the training text "
        "too, in stretches of 50: a document with more is not judged; 1 judges all",
    )
    tokenizer: input_path(hub=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="a tokenizer's folder or hf:owner/name; null takes that of model.checkpoint, "
        "or trains byte-level BPE where there is none",
    )
    vocab_size: int = Field(2048, ge=257, description="of the trained byte-level BPE")
    sequence_length: int = Field(128, ge=8, description="tokens of a training sequence")

    @model_validator(mode="after")
    def one_of_both(self) -> Data:
        if not self.sources:
            return self
        if self.corpus != "python" or self.include or self.exclude:
            raise ValueError(
                "corpus (with include and exclude) beside sources: give one of both; each source "
                "has its own"
            )
        labels = [source.label for source in self.sources]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two sources are called {twice[0]}: give each a name of its own")
        return self

    @property
    def parts(self) -> list[CorpusSource]:
        """The corpora with their fields; a single one has the name "" of none."""
        if self.sources:
            return self.sources
        own = {
            field: getattr(self, field) for field in CorpusSource.model_fields if field in FIELDS
        }
        return [CorpusSource.model_construct(**own, weight=1.0, name=None)]

    @property
    def shares(self) -> list[float]:
        """Of the training tokens, each part's."""
        whole = sum(part.weight for part in self.parts)
        return [part.weight / whole for part in self.parts]

    @property
    def part_names(self) -> list[str]:
        """Of several corpora; that of a single one is empty."""
        return [source.label for source in self.sources] or [""]

    @property
    def described(self) -> str:
        """What is read, in words."""
        if not self.sources:
            return self.corpus
        return " + ".join(
            f"{share:.0%} {source.corpus}"
            for share, source in zip(self.shares, self.sources, strict=True)
        )


FIELDS = tuple(name for name in CorpusSource.model_fields if name in Data.model_fields)
