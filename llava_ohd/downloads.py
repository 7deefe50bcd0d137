"""Benchmark files that are not part of this package: where each comes from, its sum, its licence.

The manifest, evals/benchmark_files.json, names repository, commit and SHA-256 of every file, and its place under
$LLAVA_OHD_DATA.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from llava_ohd.errors import DataFormatError, MissingDependency, StorageError
from llava_ohd.files import atomic_path, read_json, sha256_file, storage_errors

__all__ = ["ORIGIN", "BenchmarkFile", "bring", "choose", "read_manifest"]

ORIGIN = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class BenchmarkFile:
    """A file of somebody else.

    Attributes:
        path: Relative to the data folder.
        repository: Owner and name on GitHub.
        commit: 40 digits.
        origin: Path in the repository.
        sha256: Of its bytes.
        bytes: Its size.
        licence: Of the repository.
    """

    path: str
    repository: str
    commit: str
    origin: str
    sha256: str
    bytes: int
    licence: str

    def url(self, base: str = ORIGIN) -> str:
        """Returns the address below `base`."""
        return f"{base.rstrip('/')}/{self.repository}/{self.commit}/{self.origin}"

    def is_in(self, folder: Path) -> bool:
        """Says whether the folder has this file, byte for byte."""
        file = folder / self.path
        return file.is_file() and file.stat().st_size == self.bytes and sha256_file(file) == self.sha256


def read_manifest() -> list[BenchmarkFile]:
    """Returns all files of the manifest."""
    sources = read_json(Path(__file__).parent / "evals" / "benchmark_files.json")
    return [
        BenchmarkFile(repository=source["repository"], commit=source["commit"], licence=source["licence"], **file)
        for source in sources
        for file in source["files"]
    ]


def choose(files: Sequence[BenchmarkFile], wanted: Iterable[str]) -> list[BenchmarkFile]:
    """Returns the files below the given folders (`pope`, `pope/gqa_seem`, `amber`); all if none is given.

    Raises:
        DataFormatError: a folder that holds none.
    """
    names = [name.strip("/") for name in wanted]
    for name in names:
        if not any(_below(file, name) for file in files):
            folders = sorted({file.path.rpartition("/")[0] for file in files})
            raise DataFormatError(f"there are no files for {name!r}; the folders are {', '.join(folders)}")
    return [file for file in files if not names or any(_below(file, name) for name in names)]


def _below(file: BenchmarkFile, name: str) -> bool:
    return file.path == name or file.path.startswith(f"{name}/")


def bring(file: BenchmarkFile, folder: Path, *, source: Path | None = None, base: str = ORIGIN) -> str:
    """Puts one file into the data folder.

    Args:
        file: The file.
        folder: The data folder.
        source: A folder that has the file at the same path; None downloads it.
        base: Where it is downloaded from.

    Returns:
        "there", "copied" or "downloaded".

    Raises:
        DataFormatError: the source lacks it, or what came has another sum; nothing is kept of that.
        StorageError: it could not be fetched or written.
        MissingDependency: pooch is not installed.
    """
    if file.is_in(folder):
        return "there"
    if source is not None:
        if not file.is_in(source):
            found = "has another sum" if (source / file.path).is_file() else "does not exist"
            raise DataFormatError(
                f"{source / file.path} {found}; expected are {file.bytes} bytes, sha256 {file.sha256}"
            )
        with atomic_path(folder / file.path) as temporary:
            copyfile(source / file.path, temporary)
        return "copied"
    _download(file, folder / file.path, file.url(base))
    return "downloaded"


def _download(file: BenchmarkFile, destination: Path, url: str) -> None:
    try:
        import pooch
    except ImportError:
        raise MissingDependency(
            "downloading needs pooch (extra `eval`: pip install pooch); or give a folder that has the files as --from"
        ) from None
    pooch.get_logger().setLevel("WARNING")
    with storage_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            pooch.retrieve(url, f"sha256:{file.sha256}", fname=destination.name, path=destination.parent)
        except ValueError:
            raise DataFormatError(
                f"{url} is not the file of the manifest (sha256 {file.sha256}); it was not kept"
            ) from None
        except Exception as error:  # of requests, whose kinds are many
            if type(error).__module__.partition(".")[0] not in ("requests", "urllib3"):
                raise
            raise StorageError(
                f"{url} could not be fetched: {error}. Try again, give a mirror of it as --mirror, or a folder that "
                "has the files as --from"
            ) from None
