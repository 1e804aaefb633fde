"""Several corpora: their shares at every point of a training, their split, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from workbench.data.corpus import read_corpus, require_documents
from workbench.data.dataset import PackedSequences, parts_of, write_tokens
from workbench.data.mix import TokenPart, mixed_order
from workbench.data.patterns import UNNAMED, select
from workbench.data.tokenizer import train_tokenizer
from workbench.errors import ConfigError
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.data import Data


@pytest.mark.parametrize("shares", [[0.75, 0.25], [0.5, 0.3, 0.2], [0.999, 0.001], [1.0]])
def test_every_beginning_has_the_corpora_in_proportion(shares: list[float]) -> None:
    parts, places = mixed_order(shares, 3000, seed=5)
    for part, share in enumerate(shares):
        counts = np.cumsum(parts == part)
        assert np.abs(counts - share * np.arange(1, 3001)).max() < len(shares)
        assert places[parts == part].tolist() == list(range(counts[-1]))
    longer = mixed_order(shares, 4000, seed=5)
    assert np.array_equal(longer[0][:3000], parts), "more steps change nothing before them"
    other = mixed_order(shares, 3000, seed=6)[0]
    assert len(shares) == 1 or not np.array_equal(other, parts)


def test_sequences_of_a_mix_come_from_their_parts_each_pass_whole() -> None:
    tokens = np.arange(40 * 8, dtype=np.uint16)
    parts = (TokenPart("small", 0.5, 0, 8 * 8), TokenPart("large", 0.5, 8 * 8, 40 * 8))
    data = PackedSequences(tokens, 8, 64, seed=3, parts=parts)
    firsts = [int(data[i]["input_ids"][0]) // 8 for i in range(64)]
    small = [place for place in firsts if place < 8]
    assert len(small) == pytest.approx(32, abs=1) and len(data) == 64
    assert sorted(small[:8]) == list(range(8)), "all of it before any is seen again"
    assert small[:8] != small[8:16] and all(data[i]["labels"][0] % 8 == 0 for i in range(64))
    again = PackedSequences(tokens, 8, 200, seed=3, parts=parts)
    assert [int(again[i]["input_ids"][0]) // 8 for i in range(64)] == firsts
    with pytest.raises(ConfigError, match="4 tokens to learn from of tiny, 0 sequences of 8"):
        PackedSequences(tokens, 8, 9, 3, parts=(TokenPart("tiny", 0.5, 0, 4), parts[1]))


def corpora(tmp_path: Path) -> Data:
    """60 tickets in a file, 30 manuals and as many other files in a folder."""
    rows = [{"id": i, "text": f"ticket {i * 7919 % 997} about floor {i * i}"} for i in range(60)]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(30):
        folder = tmp_path / "manuals" / ("archive" if i % 3 == 0 else "new")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.md").write_text(f"# Manual {i}\n\nTurn the {i * 31 % 101}th screw.\n")
        (folder / f"{i}.csv").write_text("a;b\n")
    return Data(
        sources=[
            {"corpus": str(tmp_path / "tickets.jsonl"), "weight": 3.0},
            {"corpus": str(tmp_path / "manuals"), "include": ["**/*.md"], "exclude": ["archive/*"]},
        ],
        holdout_share=0.3,
    )


def test_each_corpus_is_split_and_all_are_judged_in_proportion(tmp_path: Path) -> None:
    data = corpora(tmp_path)
    corpus = read_corpus(data, 7)
    tickets, manuals = corpus.parts
    assert (tickets.name, manuals.name) == ("tickets.jsonl", "manuals")
    assert (tickets.share, manuals.share) == (0.75, 0.25)
    assert tickets.training + tickets.heldout == 60 and manuals.training + manuals.heldout == 20
    assert manuals.heldout > 1 and len(corpus.heldout) == tickets.heldout + manuals.heldout
    assert (
        manuals.files.left_out == {"archive/*": 20, UNNAMED: 20} and len(manuals.files.taken) == 20
    )
    assert "20 files taken, left out: 20 by archive/*, 20 by fits no" in str(manuals)
    first = [d.corpus for d in corpus.heldout[:8]]
    assert first.count("tickets.jsonl") in (5, 6, 7)
    assert {d.id.partition("/")[0] for d in corpus.training} == {"tickets.jsonl", "manuals"}
    assert read_corpus(data, 7).digest == corpus.digest
    assert [d.corpus for d in require_documents(data)] == ["tickets.jsonl"] * 2 + ["manuals"] * 2


def test_tokens_know_their_corpus(tmp_path: Path) -> None:
    data = corpora(tmp_path)
    corpus = read_corpus(data, 7)
    tokenizer = train_tokenizer(corpus.training, 300)
    tokens = write_tokens(tmp_path / "tokens.npy", tokenizer, corpus.training)
    one, two = parts_of(tmp_path / "tokens.npy", data)
    assert (one.name, one.share, one.begin) == ("tickets.jsonl", 0.75, 0)
    assert (two.name, two.begin, two.end) == ("manuals", one.end, len(tokens))
    assert tokenizer.decode(tokens[two.begin : two.begin + 9]).startswith("<|endoftext|># Manual")
    assert parts_of(tmp_path / "other.npy", Data()) == ()


def test_a_pilot_names_its_sources_from_where_it_lies(tmp_path: Path, monkeypatch) -> None:
    corpora(tmp_path)
    head = "name: a\nquestion: b?\ndata:\n  sources:\n"
    path = tmp_path / "p.yaml"
    path.write_text(head + "    - {corpus: tickets.jsonl, weight: 2}\n    - corpus: manuals\n")
    found = resolve(path).pilot.data
    assert found.sources[1].corpus == str(tmp_path / "manuals") and found.shares[0] == 2 / 3
    monkeypatch.chdir(tmp_path)
    one = resolve(path, ["data.sources=[{corpus: tickets.jsonl}]"])
    assert one.pilot.data.parts[0].corpus == str(tmp_path / "tickets.jsonl")
    path.write_text(head + "    - {corpus: tickets.jsonl}\n    - corpus: absent\n")
    with pytest.raises(ConfigError, match=r"p.yaml:6: data.sources.1.corpus: no such file"):
        resolve(path)


def test_one_of_corpus_and_sources_and_a_name_each(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give one of both"):
        Data(corpus="a", sources=[{"corpus": "b"}])
    with pytest.raises(ValidationError, match="two sources are called b: give each a name"):
        Data(sources=[{"corpus": "a/b"}, {"corpus": "c/b"}])
    named = Data(sources=[{"corpus": "a/b"}, {"corpus": "c/b", "name": "other"}])
    assert named.part_names == ["b", "other"] and named.described == "50% a/b + 50% c/b"
    with pytest.raises(ConfigError, match=r"corpus python is no folder, and data.include"):
        read_corpus(Data(include=["*.py"]), 1)


NAMES = ["README.md", "docs/a.md", "docs/deep/b.md", "docs/c.txt", "old/docs/d.md", "weird[1].md"]


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ([], [], NAMES),
        (["*.md"], [], [name for name in NAMES if name.endswith(".md")]),
        (["**/*.md"], ["old/**"], ["README.md", "docs/a.md", "docs/deep/b.md", "weird[1].md"]),
        (["docs/*.md"], [], ["docs/a.md"]),
        (["docs/**/*.md"], [], ["docs/a.md", "docs/deep/b.md"]),
        (["?EADME.md", "weird[1].md"], [], ["README.md", "weird[1].md"]),
        (["docs/**"], ["*.txt", "**/deep/*"], ["docs/a.md"]),
    ],
)
def test_patterns(include: list[str], exclude: list[str], taken: list[str]) -> None:
    selection = select(NAMES, include, exclude, "corpus x")
    assert selection.taken == taken
    assert len(taken) + sum(selection.left_out.values()) == len(NAMES)


def test_a_pattern_that_fits_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"data.include: '\*.rst' fits none of 6 files[\s\S]*READ"
    ):
        select(NAMES, ["*.rst"], [], "corpus x")
    with pytest.raises(ConfigError, match=r"data.exclude: 'new/\*' fits none"):
        select(NAMES, [], ["new/*"], "corpus x")
    with pytest.raises(ConfigError, match="leave none of 6 files"):
        select(NAMES, ["*.txt"], ["docs/*"], "corpus x")
