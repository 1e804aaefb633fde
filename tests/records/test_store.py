"""A store: what is created once, what is waited for, and what is refused in a sentence."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec import get_filesystem_class

from workbench.errors import ConfigError, StageError
from workbench.records import store as stores
from workbench.records.store import MARK, RunStore, places_of_runs, store_here


def test_of_many_that_create_one_name_one_wins_and_all_are_told_which(place) -> None:
    writers = [RunStore(place), RunStore(place)] * 4
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda n: writers[n].create("a/record", b"%d" % n), range(8)))
    assert len(set(kept)) == 1, "one content, whoever asks"
    assert sum(content == b"%d" % n for n, content in enumerate(kept)) == 1
    assert writers[0].read("a/record") == kept[0]
    assert writers[0].create("a/record", b"later") == kept[0], "and it stays"


def test_files_go_there_and_come_back(place, tmp_path) -> None:
    store = RunStore(place)
    store.check()
    (tmp_path / "model").write_bytes(bytes(range(256)) * 30_000)
    store.put(tmp_path / "model", "files/x/deep/model")
    assert store.names("files") == ["files/x/deep/model"] and store.names("runs") == []
    assert store.read("files/none") is None
    store.get("files/x/deep/model", tmp_path / "back" / "model")
    assert (tmp_path / "back" / "model").read_bytes() == (tmp_path / "model").read_bytes()


def test_a_name_whose_answer_was_lost_is_known_as_ones_own(place, monkeypatch, quick) -> None:
    store, create = RunStore(place), RunStore._create_new

    def lost(self, name, content) -> None:
        create(self, name, content)
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(RunStore, "_create_new", lost)
    assert store.create("a", b"mine") == b"mine"
    assert store.create("a", b"other") == b"mine"


@pytest.mark.parametrize("how", ["gone", "503"])
def test_an_object_store_that_comes_back_is_waited_for(s3, monkeypatch, how) -> None:
    monkeypatch.setattr(stores, "WAIT_S", 30.0)
    monkeypatch.setattr(stores, "FIRST_PAUSE_S", 0.1)
    said: list[str] = []
    store = RunStore("s3://pilots/back", said.append)
    store.create("a", b"1")
    if how == "gone":
        s3.stop()
        s3.start_in(0.5)
    else:
        monkeypatch.setattr(s3, "unavailable", True)

        def say(text: str) -> None:
            said.append(text)
            s3.unavailable = False

        store.say = say
    assert store.read("a") == b"1"
    assert said and said[0].startswith("waiting for the store s3://pilots/back, 30 s at most: ")


def test_an_object_store_that_does_not_come_back_ends_in_a_sentence(s3, quick) -> None:
    store = RunStore("s3://pilots/away", lambda text: None)
    s3.stop()
    try:
        with pytest.raises(StageError, match=r"did not answer for 1 s, reading a: .*connect") as e:
            store.read("a")
    finally:
        s3.start()
    assert "the same command goes on and publishes it" in e.value.next_step


def test_a_folder_that_is_unmounted_meanwhile_is_waited_for(tmp_path, monkeypatch, quick) -> None:
    (tmp_path / "shared").mkdir()
    said: list[str] = []
    store = RunStore(str(tmp_path / "shared"), said.append)
    store.create("a", b"1")
    (tmp_path / "shared").rename(tmp_path / "away")
    with pytest.raises(StageError, match=r"did not answer.*is gone"):
        store.create("b", b"2")
    assert not (tmp_path / "shared").exists(), "nothing is written below a mount point"
    monkeypatch.setattr(store, "say", lambda text: (tmp_path / "away").rename(tmp_path / "shared"))
    assert store.read("a") == b"1"


def test_what_no_waiting_cures_is_refused_at_once(s3, monkeypatch, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"refuses creating store.json: .*bucket does not exist"):
        RunStore("s3://nobodys/x").check()
    s3.asked("POST", "moto-api/reset-auth", "0")
    try:
        with pytest.raises(ConfigError, match=r"refuses .*Access Key") as wrong:
            RunStore("s3://pilots/x").check()
    finally:
        s3.asked("POST", "moto-api/reset-auth", "inf")
    assert "credentials" in wrong.value.allowed
    get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="Unable to locate credentials"):
        RunStore("s3://pilots/x").check()
    get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///no/such/place", "there is no folder /no/such/place"),
        ("shared/pilots", "a relative path"),
        ("nothing://x", "nothing://x: .*Protocol not known"),
        ("memory://x", "cannot create a file once"),
    ],
)
def test_a_place_that_cannot_be_a_store_is_said_to_be_none(url, said) -> None:
    with pytest.raises(ConfigError, match=said):
        RunStore(url)


def test_a_store_that_overwrites_is_refused(place, monkeypatch) -> None:
    RunStore(place).check()
    monkeypatch.setattr(RunStore, "_create_new", lambda self, name, content: None)
    with pytest.raises(ConfigError, match="was to be created once is overwritten"):
        RunStore(place).check()


def test_a_store_of_another_layout_is_refused(place) -> None:
    RunStore(place).create(MARK, b'{"format": 2}\n')
    with pytest.raises(ConfigError, match="another version"):
        RunStore(place).check()


def test_a_file_system_without_hard_links_is_refused(tmp_path, monkeypatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(stores.os, "link", link)
    with pytest.raises(ConfigError, match="has no hard links"):
        RunStore(str(tmp_path)).create("a", b"1")
    assert not list(tmp_path.rglob("*.partial"))


def test_the_environment_names_the_store(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(stores.VARIABLE, raising=False)
    assert store_here() is None and set(places_of_runs()) == {"WORKBENCH_RUNS"}
    monkeypatch.setenv(stores.VARIABLE, str(tmp_path))
    said: list[str] = []
    assert store_here() is store_here(said.append) and store_here().say == said.append
    assert places_of_runs()[stores.VARIABLE] == str(tmp_path)
