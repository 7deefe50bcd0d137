"""Images in folders and archives, read by several processes at once."""

import io
import multiprocessing
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ImageError
from llava_ohd.llava15.dataset import Pixels
from llava_ohd.llava15.image_source import Archive, ImageSource, image_source

NAMES = [f"part{number % 3}/{number:03d}.png" for number in range(30)]


def content(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (int(Path(name).stem), 80, 200)).save(file, "png")
    return file.getvalue()


def make_zip(path: Path, method: int, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("part0") if not top else None
        for name in NAMES:
            archive.writestr(f"{top}{name}", content(name))
    return path


def make_tar(path: Path, mode: str, top: str = "") -> Path:
    with tarfile.open(path, mode) as archive:
        for name in NAMES:
            info = tarfile.TarInfo(f"{top}{name}")
            info.size = len(content(name))
            archive.addfile(info, io.BytesIO(content(name)))
    return path


def make_folder(path: Path) -> Path:
    for name in NAMES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content(name))
    return path


@pytest.fixture(params=["folder", "stored", "deflated", "tar", "top zip", "top tar"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSource:
    made = {
        "folder": lambda: make_folder(tmp_path / "images"),
        "stored": lambda: make_zip(tmp_path / "a.zip", zipfile.ZIP_STORED),
        "deflated": lambda: make_zip(tmp_path / "a.zip", zipfile.ZIP_DEFLATED),
        "tar": lambda: make_tar(tmp_path / "a.tar", "w"),
        "top zip": lambda: make_zip(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, "images/"),
        "top tar": lambda: make_tar(tmp_path / "a.tar", "w", "./images/"),
    }
    return image_source(made[request.param]())


def test_every_kind_gives_the_same_bytes(source: ImageSource) -> None:
    for name in NAMES:
        assert name in source
        assert source.read(name) == content(name)
    assert all(abs(source.size(name) - len(content(name))) < 20 for name in NAMES)
    assert pickle.loads(pickle.dumps(source)).read(NAMES[0]) == content(NAMES[0])
    assert "part0/none.png" not in source
    for ask in (source.read, source.size):
        with pytest.raises(ImageError, match=r"none\.png"):
            ask("part0/none.png")


def _read_many(source: ImageSource, wrong: "multiprocessing.Queue[int]") -> None:
    wrong.put(sum(source.read(name) != content(name) for _ in range(20) for name in NAMES))


def test_forked_workers_do_not_disturb_each_other(source: ImageSource) -> None:
    source.read(NAMES[0])  # the file is open before the fork, as in a DataLoader
    context = multiprocessing.get_context("fork")
    wrong: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_read_many, args=(source, wrong)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [wrong.get(timeout=60) for _ in workers] == [0, 0, 0, 0]
    for worker in workers:
        worker.join()


def test_an_archive_stands_for_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images")
    (folder / "coco").mkdir()
    make_zip(folder / "coco/train2017.zip", zipfile.ZIP_STORED)
    source = image_source(folder)
    assert source.read("coco/train2017/part1/001.png") == content("part1/001.png")
    assert source.size("coco/train2017/part1/001.png") == len(content("part1/001.png"))
    assert "coco/train2017/part1/none.png" not in source
    assert source.read("part0/000.png") == content("part0/000.png")


def test_damage_is_named(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", zipfile.ZIP_STORED)
    archive = Archive(path)
    data = bytearray(path.read_bytes())
    place = data.index(content(NAMES[3])) + 40
    data[place] ^= 255
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"003\.png in .* is damaged \(check sum differs\)"):
        archive.read(NAMES[3])
    assert archive.read(NAMES[4]) == content(NAMES[4])
    os.truncate(path, 50)
    with pytest.raises(ImageError, match="ends too early"):
        archive.read(NAMES[4])
    with pytest.raises(DataFormatError, match="cannot be read as an archive"):
        image_source(path)


def test_what_is_no_source_of_images(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"uncompressed \.tar; unpack"):
        image_source(make_tar(tmp_path / "a.tar.gz", "w:gz"))
    with pytest.raises(DataFormatError, match="no such folder"):
        image_source(tmp_path / "none")
    with pytest.raises(DataFormatError, match="cannot be read as an archive"):
        (tmp_path / "b.tar").write_bytes(b"no tar at all")
        image_source(tmp_path / "b.tar")


def test_pixels_from_an_archive_are_those_from_the_folder(tmp_path: Path, tiny_encoder_dir: Path) -> None:
    processor = tower.load_processor(tiny_encoder_dir)
    folder = Pixels(make_folder(tmp_path / "images"), processor, True, None)
    packed = Pixels(make_zip(tmp_path / "a.zip", zipfile.ZIP_DEFLATED), processor, True, None)
    assert (folder(NAMES[5]) == packed(NAMES[5])).all()
