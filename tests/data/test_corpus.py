"""Corpora: every format, the split, and what a user reads when the text is wrong."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import zstandard

from workbench.data.corpus import Corpus, look_ahead, read_corpus, require_documents
from workbench.data.python_corpus import python_documents
from workbench.errors import ConfigError
from workbench.pilot.sections.data import Data

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def read(path: Path | str, seed: int = 7, **fields: object) -> Corpus:
    return read_corpus(Data(corpus=str(path), **fields), seed)


def texts(corpus: Corpus) -> set[str]:
    return {d.text for d in corpus.training + corpus.heldout}


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ROWS: list[dict[str, object]] = [{"id": f"d{i}", "text": f"text é number {i}"} for i in range(40)]


def test_default_corpus_is_text_of_three_kinds_in_a_fixed_order() -> None:
    first, again = list(python_documents()), list(python_documents())
    assert first == again
    assert {"source", "docstrings"} <= {d.source for d in first}
    assert sum(d.size_bytes for d in first) > 4_000_000
    assert len({d.id for d in first}) == len(first)
    assert not any("site-packages" in d.id or "/test/" in d.id for d in first)


def test_a_corpus_that_is_cut_says_so(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(jsonl(ROWS))
    whole, cut = (read(tmp_path / "c.jsonl", max_bytes=n).parts[0] for n in (10_000, 300))
    assert whole.cut_bytes is None and "cut at" not in str(whole)
    assert cut.cut_bytes == 300 and "cut at 0.0003 MB (data.max_bytes)" in str(cut)


def test_max_bytes_bounds_the_corpus_and_samples_all_of_it() -> None:
    corpus = read("python", max_bytes=400_000)
    assert corpus.training_bytes + corpus.heldout_bytes <= 400_000
    assert corpus.training_bytes + corpus.heldout_bytes > 399_990
    names = {d.id.split("/")[1][0] for d in corpus.training}
    assert len(names) > 8


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".JSONL", ".jsonl.GZ", ".JSONL.Zst"]
)
def test_jsonl_packed_or_not_gives_the_same_documents(tmp_path: Path, suffix: str) -> None:
    content = jsonl(ROWS)
    if suffix.lower().endswith(".gz"):
        content = gzip.compress(content)
    elif suffix.lower().endswith(".zst"):
        content = zstandard.compress(content)
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(content)
    corpus = read(path)
    assert texts(corpus) == {row["text"] for row in ROWS}
    assert {d.id for d in corpus.heldout} <= {row["id"] for row in ROWS}


def test_parquet_and_arrow_give_the_same_split(tmp_path: Path) -> None:
    import pyarrow as pa

    frame = pd.DataFrame(ROWS)
    frame.to_parquet(tmp_path / "c.parquet")
    table = pa.Table.from_pandas(frame)
    with pa.ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    parquet = read(tmp_path / "c.parquet")
    assert texts(parquet) == {row["text"] for row in ROWS}
    assert parquet.digest == read(tmp_path / "c.arrow").digest
    assert parquet.digest == read(tmp_path / "file.arrow").digest


def test_a_folder_takes_each_text_file_as_one_document(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("first\n\nof two parts")
    (tmp_path / "two.md").write_text("second")
    (tmp_path / ".hidden").write_text("never read")
    corpus = read(tmp_path)
    assert texts(corpus) == {"first\n\nof two parts", "second"}
    assert len(corpus.training) == len(corpus.heldout) == 1


def test_one_text_file_is_cut_into_documents_that_join_to_the_whole(tmp_path: Path) -> None:
    whole = "".join(f"line {i}\n" + ("\n" if i % 50 == 0 else "") for i in range(9000))
    (tmp_path / "book.txt").write_text(whole)
    corpus = read(tmp_path / "book.txt")
    pieces = sorted(corpus.training + corpus.heldout, key=lambda d: int(d.id.split("#")[1]))
    assert "".join(d.text for d in pieces) == whole
    assert len(pieces) > 5


def test_the_split_depends_on_the_seed_and_the_document_alone(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_bytes(jsonl(ROWS[:30]))
    (tmp_path / "more.jsonl").write_bytes(jsonl(list(reversed(ROWS))))
    few = read(tmp_path / "few.jsonl", holdout_share=0.3)
    more = read(tmp_path / "more.jsonl", holdout_share=0.3)
    known = {row["id"] for row in ROWS[:30]}
    assert {d.id for d in few.heldout} == {d.id for d in more.heldout} & known
    other = read(tmp_path / "few.jsonl", holdout_share=0.3, seed=8)
    assert {d.id for d in few.heldout} != {d.id for d in other.heldout}
    assert few.digest == read(tmp_path / "few.jsonl", holdout_share=0.3).digest != other.digest


def test_the_held_out_share_is_about_the_one_asked_for(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{i}"} for i in range(3000)]
    (tmp_path / "c.jsonl").write_bytes(jsonl(rows))
    share = len(read(tmp_path / "c.jsonl", holdout_share=0.1).heldout) / 3000
    assert 0.08 < share < 0.12


def test_copies_are_dropped_and_repeated_ids_told_apart(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": 1, "text": "a"},
        {"id": 1, "text": "b"},
        {"id": 2, "text": "a"},
        {"id": 3, "text": " \n"},
    ]
    (tmp_path / "c.jsonl").write_bytes(jsonl(rows))
    corpus = read(tmp_path / "c.jsonl")
    assert corpus.copies == 1
    assert sorted(d.id for d in corpus.training + corpus.heldout) == ["1", "1~2"]


def test_an_id_that_looks_like_a_repeated_one_stays_apart(tmp_path: Path) -> None:
    ids = ["x", "x", "x~2", "y~2", "y", "y"]
    rows: list[dict[str, object]] = [{"id": name, "text": str(i)} for i, name in enumerate(ids)]
    (tmp_path / "c.jsonl").write_bytes(jsonl(rows))
    corpus = read(tmp_path / "c.jsonl")
    found = sorted(d.id for d in corpus.training + corpus.heldout)
    assert found == ["x", "x~2", "x~2~2", "y", "y~2", "y~3"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system refuses such names")
def test_names_that_utf8_cannot_spell_become_question_marks(tmp_path: Path) -> None:
    for name in (b"a\xff.txt", b"a\xfe.txt"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_text(str(name))
    corpus = read(tmp_path)
    assert {d.id for d in corpus.training + corpus.heldout} == {"a?.txt", "a?.txt~2"}
    (tmp_path / "c.jsonl").write_text('{"id": "a\\ud800", "text": "b"}\n{"text": "c"}\n')
    corpus = read(tmp_path / "c.jsonl")
    assert {d.id for d in corpus.training + corpus.heldout} == {"a?", "c.jsonl#2"}


def test_a_cut_never_splits_a_character(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(jsonl([{"text": "abc"}, {"text": "ééééé"}]))
    corpus = read(tmp_path / "c.jsonl", max_bytes=8)
    assert texts(corpus) == {"abc", "éé"}


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "a\\ud800b"}\n{"text": "c"}\n')
    assert texts(read(tmp_path / "c.jsonl")) == {"a?b", "c"}


BAD = {
    "missing_field.jsonl": (b'{"text": "a"}\n{"body": "x", "n": 1}\n', ["line 2", "'body', 'n'"]),
    "not_text.jsonl": (b'{"text": 3}\n', ["line 1", "holds int", "data.text_field"]),
    "list.json": (b"[1, 2]\n", ["line 1", "got list", "one JSON object a line"]),
    "cut_line.jsonl": (b'{"text": "a"}\n{"text": "b', ["line 2", "middle of a line"]),
    "cut.jsonl.gz": (gzip.compress(jsonl(ROWS))[:-20], ["truncated or damaged"]),
    "cut.jsonl.zst": (zstandard.compress(jsonl(ROWS))[:-20], ["truncated or damaged"]),
    "not.parquet": (b"PAR1 no", ["truncated or damaged"]),
    "deep.jsonl": (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", ["line 2", "not JSON"]),
    "packed.jsonl": (gzip.compress(jsonl(ROWS)), ["compressed with gzip", ".gz"]),
    "packed.txt": (zstandard.compress(b"text"), ["compressed with zstd", ".zst"]),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(jsonl(ROWS))), ["compressed with gzip"]),
    "zip.txt": (b"PK\x03\x04\x14\x00\xff", ["compressed with zip", "unpack it"]),
    "table.txt": (b"PAR1\x15\x04\xff", ["is Parquet", "data.format: parquet"]),
    "a.tar": (b"a.txt\0\0\0", [".tar files are not read", "unpack it"]),
    "a.tar.gz": (gzip.compress(b"a.txt\0\0\0"), [".tar files are not read"]),
    "a.TGZ": (gzip.compress(b"a.txt\0\0\0"), [".tgz files are not read"]),
    "a.zip": (b"PK", [".zip files are not read"]),
    "a.7z": (b"7z", [".7z files are not read"]),
    "a.jsonl.bz2": (bz2.compress(jsonl(ROWS)), [".bz2 files are not read"]),
    "a.jsonl.xz": (b"", [".xz files are not read"]),
    "a.txt.lz4": (b"", [".lz4 files are not read"]),
    "latin.txt": ("café".encode("latin-1"), ["not UTF-8", "iconv"]),
    "empty.txt": (b"", ["0 document(s)", "at least two"]),
    "short.txt": (b"one piece only", ["1 document(s)", "at least two"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_message(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / name)
    for word in [name, *words]:
        assert word in str(caught.value)


def test_a_parquet_file_without_the_column_lists_those_it_has(tmp_path: Path) -> None:
    pd.DataFrame({"content": ["a", "b"], "n": [1, 2]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match="'content', 'n'"):
        read(tmp_path / "c.parquet")


@pytest.mark.parametrize("name", ["c.parquet", "c.arrow"])
def test_a_column_that_is_there_twice_is_refused_as_text_and_ignored_as_id(
    tmp_path: Path, name: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    a, b = pa.array(["a", "b"]), pa.array(["c", "d"])

    def write(names: list[str]) -> Path:
        table = pa.table([a, b, b], names=names)
        if name == "c.parquet":
            pq.write_table(table, tmp_path / name)
        else:
            with pa.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
                writer.write_table(table)
        return tmp_path / name

    with pytest.raises(ConfigError, match="2 columns are called 'text'"):
        read(write(["id", "text", "text"]))
    corpus = read(write(["text", "id", "id"]))
    assert {d.id for d in corpus.training + corpus.heldout} == {f"{name}#1", f"{name}#2"}


def test_a_parquet_file_with_bytes_that_are_no_text_names_the_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    latin = pa.array([b"caf\xe9", b"b"]).view(pa.string())
    pq.write_table(pa.table({"text": latin}), tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match="'text' is not UTF-8"):
        read(tmp_path / "c.parquet")


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.txt").write_text("text")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read(tmp_path / "c.txt")


def test_a_parquet_file_with_gaps_names_the_row(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match="row 2"):
        read(tmp_path / "c.parquet")


@pytest.mark.parametrize("name", BAD)
def test_what_a_corpus_begins_with_is_checked_without_reading_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name][0])
    with pytest.raises(ConfigError):
        require_documents(Data(corpus=str(tmp_path / name)))


def test_a_corpus_that_begins_well_is_read_no_further(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b" \n" + jsonl(ROWS[:2]) + b"no JSON\n")
    require_documents(Data(corpus=str(tmp_path / "c.jsonl")))
    require_documents(Data(corpus="python"))
    require_documents(Data(corpus="hf:never/asked"))
    with pytest.raises(ConfigError, match="'body'"):
        require_documents(Data(corpus=str(tmp_path / "c.jsonl"), text_field="body"))


@pytest.mark.parametrize("check", [read_corpus, lambda data, seed: require_documents(data)])
def test_too_little_text_is_told_what_would_help(tmp_path: Path, check) -> None:
    def said(*files: str, **fields: int) -> str:
        for place, text in enumerate(files):
            (tmp_path / f"{place}.txt").write_text(text)
        with pytest.raises(ConfigError) as caught:
            check(Data(corpus=str(tmp_path), **fields), 7)
        return caught.value.next_step

    assert "empty or blank" in said("", "  \n")
    assert "max_bytes" not in said("", "some text")
    assert "fills data.max_bytes: raise it" in said("text " * 99, "more", max_bytes=100)


def test_looking_ahead_counts_what_will_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(jsonl(ROWS))
    data = Data(corpus=str(tmp_path / "c.jsonl"), holdout_share=0.3)
    ahead, held = look_ahead(data, 7, 64), read_corpus(data, 7).parts[0].heldout
    assert ahead.whole and not ahead.taken and len(ahead.points) == 40
    assert sum(point < 0.3 for point in ahead.points) == held
    assert not look_ahead(data, 7, 3).whole and len(look_ahead(data, 7, 3).points) < 40
    size = (tmp_path / "c.jsonl").stat().st_size
    text = sum(len(str(row["text"]).encode()) for row in ROWS)
    for room, taken in ((text // 2, [(data.corpus, size, text // 2 / size)]), (text + 9, [])):
        fewer = data.model_copy(update={"max_bytes": room})
        assert look_ahead(fewer, 7, 64).taken == taken


def test_an_empty_folder_and_an_absent_path_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no files"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="no such file or folder"):
        read(tmp_path / "absent.jsonl")


def test_a_hub_data_set_without_the_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workbench.data.hub.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ternary-workbench\[hub\]"):
        read("hf:owner/name")


def test_a_hub_data_set_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConfigError, match="Couldn't reach the Hub") as caught:
        read("hf:owner/name")
    assert "give its folder" in str(caught.value)


def test_a_hub_data_set_gives_documents_and_names_its_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    rows = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert texts(read("hf:owner/name")) == {row["text"] for row in ROWS}
    with pytest.raises(ConfigError, match="'id', 'text'"):
        read("hf:owner/name", text_field="body")


def test_peps_are_read_whole() -> None:
    path = SHARED / "peps.jsonl.zst"
    if not path.exists():
        pytest.skip("../shared/data/peps.jsonl.zst is absent")
    corpus = read(path)
    assert len(corpus.training) + len(corpus.leaks) + corpus.copies == 703
    assert 13_000_000 < corpus.training_bytes + corpus.heldout_bytes < 15_000_000
    # PEP 8016 became PEP 13, and most of PEP 407 stands in PEP 413
    left_out = corpus.leaks[corpus.leaks["left_out"]].set_index("document")["learned_in"]
    assert left_out.to_dict() == {"pep-8016": "pep-0013", "pep-0407": "pep-0413"}
    assert not set(left_out.index) & {d.id for d in corpus.heldout}


BOILERPLATE = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this. "
)


def test_what_was_learned_is_not_judged(tmp_path: Path) -> None:
    """A planted leak: half of one held-out document stands, otherwise spaced, in a learned one."""
    rows = [
        {"id": f"d{i}", "text": " ".join(f"{w}{i * w * w % 997}" for w in range(60))}
        for i in range(40)
    ]
    write = lambda: (tmp_path / "c.jsonl").write_bytes(jsonl(rows))  # noqa: E731
    write()
    clean = read(tmp_path / "c.jsonl", holdout_share=0.3)
    assert clean.leaks["leaked"].sum() == 0 and not clean.leaks["left_out"].any()
    held = {d.id for d in clean.heldout}
    leaky, licensed, *_ = sorted(held)
    learned = next(row for row in rows if row["id"] not in held)
    by_id = {row["id"]: row for row in rows}
    half = by_id[leaky]["text"][: len(by_id[leaky]["text"]) // 2]
    learned["text"] += "\n" + half.upper().replace(" ", " -\n") + BOILERPLATE
    by_id[licensed]["text"] += BOILERPLATE
    write()
    corpus = read(tmp_path / "c.jsonl", holdout_share=0.3)
    assert {d.id for d in corpus.heldout} == held - {leaky}
    found = corpus.leaks.set_index("document")
    assert found.loc[leaky, "share"] == pytest.approx(0.5, abs=0.03)
    assert found.loc[leaky, "learned_in"] == found.loc[licensed, "learned_in"] == learned["id"]
    assert found.loc[leaky, "passage"].startswith("0")
    assert found.loc[licensed, "leaked"] == sum(map(str.isalnum, BOILERPLATE))
    assert found.loc[licensed, "passage"] == BOILERPLATE.strip().rstrip(".")
    assert found["left_out"].to_dict() == {name: name == leaky for name in found.index}
    assert read(tmp_path / "c.jsonl", holdout_share=0.3, max_leaked_share=1.0).heldout[0]
    everything = read(tmp_path / "c.jsonl", holdout_share=0.3, max_leaked_share=0.0)
    assert {d.id for d in everything.heldout} == held - {leaky, licensed}


def test_where_all_is_learned_all_is_judged_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": i, "text": BOILERPLATE * 3 + str(i)} for i in range(20)]
    (tmp_path / "c.jsonl").write_bytes(jsonl(rows))
    corpus = read(tmp_path / "c.jsonl", holdout_share=0.3)
    assert len(corpus.heldout) == len(corpus.leaks) > 1
    assert not corpus.leaks["left_out"].any() and (corpus.leaks["share"] > 0.9).all()
