"""Files appear whole or not at all, and bad ones are named."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import SafetensorError

from llava_ohd import files
from llava_ohd.errors import DataFormatError, StorageError
from llava_ohd.files import (
    atomic_folder,
    atomic_path,
    locked,
    read_json,
    read_jsonl,
    remove_folder,
    write_json,
    write_jsonl,
)

DEAD = 2**22 - 1  # above every process number of this machine


def test_a_folder_that_is_being_removed_is_no_longer_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill in the middle of the removal leaves is not taken for a folder, and goes at the next writing."""
    folder = tmp_path / "data"
    with atomic_folder(folder, marker="annotations") as new:
        (new / "annotations").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(files.os, "getpid", lambda: DEAD)
        remove_folder(folder)
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_folder(folder, marker="annotations") as new:
        (new / "annotations").mkdir()
    remove_folder(folder)
    assert list(tmp_path.iterdir()) == []


def test_round_trip(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": "ü"}, {"a": "one\u2028two\x85three"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_json(tmp_path / "rows.json", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == read_jsonl(tmp_path / "rows.json") == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("  \n", "is empty"),
        ('{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ("[1, 2]", "row 1 is int"),
        ("[]", "has no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataFormatError, match=message):
        read_jsonl(path)


def test_truncated_json_gives_the_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1,\n2')
    with pytest.raises(DataFormatError, match="line 2"):
        read_json(tmp_path / "x.json")


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_folder_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "d") as temporary:
        (temporary / "x").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.platform, "node", lambda: "node-7.cluster")
    kept = {
        ".x.node-7-cluster.1.ab.part": "of a living process",
        f".x.node-8-cluster.{DEAD}.ab.part": "of another machine, where that process may live",
        f".x.old.node-7-cluster.{DEAD}.ab.part": "of the file x.old",
    }
    for name in (*kept, f".x.node-7-cluster.{DEAD}.ab.part"):
        (tmp_path / name).write_text("half")
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"x", *kept}


def test_threads_that_write_one_folder(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with atomic_folder(tmp_path / "d") as new:
                for name in "ab":
                    write_json(new / name, number)
                    write_json(tmp_path / "file", number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert read_json(tmp_path / "d" / "a") == read_json(tmp_path / "d" / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"d", "file"}


def test_a_name_with_wildcards_touches_no_other(tmp_path: Path) -> None:
    other = tmp_path / f".xy.{files._machine()}.{DEAD}.ab.part"
    other.write_text("half")
    write_json(tmp_path / "x*", 1)
    assert other.exists()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_clear_error(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(StorageError, match=r"the disk is full.*free"), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("x")
    with pytest.raises(StorageError, match=r"holds something else \(no annotations in it\)"):
        with atomic_folder(tmp_path / "photos", marker="annotations"):
            pass
    assert (tmp_path / "photos" / "mine.jpg").read_text() == "x"


def test_a_lock_that_is_not_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with (
            pytest.raises(StorageError, match=r"another process is at work in .*; wait for its end"),
            locked(tmp_path / "run", wait=False),
        ):
            pass
    with locked(tmp_path / "run", wait=False):
        pass
