"""Where training images come from: a folder, a zip or tar file, or a folder in which some parts are such files.

Archives are read where they lie. Only the list of members is kept; every read names its place in the file (`pread`), so
that forked and spawned workers, and threads, never disturb each other.
"""

import os
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from llava_ohd.errors import DataFormatError, ImageError

__all__ = ["ARCHIVES", "Archive", "Folder", "ImageSource", "image_source"]

ARCHIVES = (".zip", ".tar")
_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name


class ImageSource(Protocol):
    """Images by name."""

    path: Path

    def __contains__(self, name: str) -> bool:
        """Whether there is a file of this name."""
        ...

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file.

        Raises:
            ImageError: there is none, or its archive is damaged.
        """
        ...

    def size(self, name: str) -> int:
        """Returns a number that another file under this name would hardly have: its bytes, as they are stored.

        Raises:
            ImageError: there is none.
        """
        ...


def image_source(path: str | Path) -> ImageSource:
    """Opens a folder or an archive of images.

    Raises:
        DataFormatError: neither of both, a damaged archive, or a compressed tar, in which nothing can be looked up.
    """
    path = Path(path)
    if path.is_dir():
        return Folder(path)
    if path.suffix.lower() in ARCHIVES and path.is_file():
        return Archive(path)
    if path.is_file():
        raise DataFormatError(f"{path}: images come from a folder, a .zip or an uncompressed .tar; unpack it")
    raise DataFormatError(f"{path}: there is no such folder of images, and no such .zip or .tar")


class Folder:
    """A folder of images. `coco/train2017/1.jpg` may also lie in `coco/train2017.zip` (or .tar), as `1.jpg`.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __contains__(self, name: str) -> bool:
        return (self.path / name).is_file() or self._packed(name) is not None

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; raises as `ImageSource.read`."""
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            packed = self._packed(name)
        except (OSError, ValueError) as error:
            raise ImageError(f"image {self.path / name} cannot be read ({error})") from error
        if packed is None:
            raise ImageError(f"image {self.path / name} does not exist; check --image_folder")
        return packed[0].read(packed[1])

    def size(self, name: str) -> int:
        """Returns the bytes of a file; raises as `ImageSource.size`."""
        try:
            return (self.path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            packed = self._packed(name)
        if packed is None:
            raise ImageError(f"image {self.path / name} does not exist; check --image_folder")
        return packed[0].size(packed[1])

    def _packed(self, name: str) -> "tuple[Archive, str] | None":
        """Returns the archive that holds the image in place of a folder, and the name inside."""
        for parent in list(Path(name).parents)[:-1]:
            for suffix in ARCHIVES:
                file = self.path / f"{parent}{suffix}"
                if file.is_file():
                    archive, inside = _archive(file), str(Path(name).relative_to(parent))
                    return (archive, inside) if inside in archive else None
        return None


class Archive:
    """A zip or an uncompressed tar file. One folder around everything inside may be left out of the names.

    Args:
        path: The file.

    Raises:
        DataFormatError: damaged, compressed as a whole (tar.gz), or encrypted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        try:
            self._members = _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, ValueError) as error:
            raise DataFormatError(
                f"{path} cannot be read as an archive ({error}); copy it again, or unpack it"
            ) from error
        tops = {name.split("/", 1)[0] if "/" in name else "" for name in self._members}
        self._top = f"{tops.pop()}/" if len(tops) == 1 and tops != {""} else ""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def _member(self, name: str) -> tuple[int, int, int, int] | None:
        name = os.path.normpath(name)
        return self._members.get(name) or self._members.get(f"{self._top}{name}")

    def __contains__(self, name: str) -> bool:
        return self._member(name) is not None

    def read(self, name: str) -> bytes:
        """Returns the bytes of a member; raises as `ImageSource.read`."""
        member = self._member(name)
        if member is None:
            raise ImageError(f"image {name} is not in {self.path}; check --image_folder")
        place, size, method, check = member
        if method != _TAR:
            header = self._read(place, _LOCAL_HEADER, name)
            place += _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._read(place, size, name)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompress(data, -zlib.MAX_WBITS)
            except zlib.error as error:
                raise ImageError(f"image {name} in {self.path} is damaged ({error}); copy the archive again") from error
        if method != _TAR and zlib.crc32(data) != check:
            raise ImageError(f"image {name} in {self.path} is damaged (check sum differs); copy the archive again")
        return data

    def size(self, name: str) -> int:
        """Returns the stored bytes of a member; raises as `ImageSource.size`."""
        member = self._member(name)
        if member is None:
            raise ImageError(f"image {name} is not in {self.path}; check --image_folder")
        return member[1]

    def _read(self, place: int, size: int, name: str) -> bytes:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        parts, got = [], 0
        while got < size:
            part = os.pread(self._file, size - got, place + got)
            if not part:
                raise ImageError(f"image {name} in {self.path} ends too early; copy the archive again")
            parts.append(part)
            got += len(part)
        return b"".join(parts)


_TAR = -1  # the "method" of a member that lies in the file as it is


def _zip_members(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Returns by name: place of the header, bytes in the file, method, check sum."""
    members = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is encrypted or packed in a rare way")
            name = os.path.normpath(info.filename)
            members[name] = (info.header_offset, info.compress_size, info.compress_type, info.CRC)
    return members


def _tar_members(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Returns by name: place of the data, bytes; a link stands for the file that it leads to."""
    members: dict[str, tuple[int, int, int, int]] = {}
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            name = os.path.normpath(info.name)
            if info.isreg():
                members[name] = (info.offset_data, info.size, _TAR, 0)
            elif info.islnk() and os.path.normpath(info.linkname) in members:
                members[name] = members[os.path.normpath(info.linkname)]
            archive.members = []  # type: ignore[attr-defined]  # else every header stays in memory
    return members


@lru_cache
def _archive(path: Path) -> Archive:
    return Archive(path)
