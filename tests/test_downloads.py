"""Benchmark files come with the right sum or not at all; from a folder, and from a server on this machine."""

import functools
import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from llava_ohd.downloads import BenchmarkFile, bring, choose, read_manifest
from llava_ohd.errors import DataFormatError, StorageError

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CONTENT = b'{"question_id": 1}\n'


@pytest.fixture
def file() -> BenchmarkFile:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return BenchmarkFile("set/a.json", "owner/name", "c" * 40, "data/a.json", digest, len(CONTENT), "MIT")


@pytest.fixture
def server(tmp_path, file):
    """Serves the file as its origin does, and returns the address."""
    place = tmp_path / "served" / file.repository / file.commit / file.origin
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_every_file_has_a_place_a_commit_and_a_sum():
    files = read_manifest()
    assert len({file.path for file in files}) == len(files) > 50
    for file in files:
        assert len(file.commit) == 40
        assert len(file.sha256) == 64
        assert not file.path.startswith("/")
        assert file.licence


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_the_sums_are_those_of_the_files(tmp_path):
    assert [file.path for file in read_manifest() if not file.is_in(SHARED)] == []
    chosen = choose(read_manifest(), ["repope", "pope/pope_v2/"])
    assert [bring(file, tmp_path, source=SHARED) for file in chosen] == ["copied"] * 4
    assert [bring(file, tmp_path) for file in chosen] == ["there"] * 4


def test_a_folder_that_is_not_known():
    with pytest.raises(DataFormatError, match=r"no files for 'popes'; the folders are amber, amber/query"):
        choose(read_manifest(), ["popes"])


def test_a_source_with_another_file(tmp_path, file):
    with pytest.raises(DataFormatError, match=r"set/a.json does not exist; expected are 19 bytes, sha256"):
        bring(file, tmp_path / "out", source=tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.json").write_bytes(CONTENT.replace(b"1", b"2"))
    with pytest.raises(DataFormatError, match="has another sum"):
        bring(file, tmp_path / "out", source=tmp_path)
    assert not (tmp_path / "out/set/a.json").exists()


def test_a_download(tmp_path, file, server):
    pytest.importorskip("pooch", reason="pooch is not installed (extra eval)")
    assert bring(file, tmp_path / "out", base=server) == "downloaded"
    assert (tmp_path / "out/set/a.json").read_bytes() == CONTENT
    assert bring(file, tmp_path / "out", base="http://127.0.0.1:9") == "there"


def test_downloads_that_fail(tmp_path, file, server):
    pytest.importorskip("pooch", reason="pooch is not installed (extra eval)")
    with pytest.raises(StorageError, match=r"could not be fetched: .* give a mirror"):
        bring(file, tmp_path / "out", base=f"{server}/elsewhere")
    (tmp_path / "served" / file.repository / file.commit / file.origin).write_bytes(b"another")
    with pytest.raises(DataFormatError, match="is not the file of the manifest"):
        bring(file, tmp_path / "out", base=server)
    assert not (tmp_path / "out/set/a.json").exists()
