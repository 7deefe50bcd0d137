"""Replies of an endpoint on disk: each is appended as it comes, so that none is paid for twice.

JSON Lines `{"digest", "reply"}`, append only. A kill can tear the last line at most; it is cut off when the file is
opened again. (Not SQLite: its locks do not hold on the network file systems of many clusters.)
"""

import json
import os
from pathlib import Path

from llava_ohd.errors import DataFormatError
from llava_ohd.files import storage_errors

__all__ = ["Replies"]


class Replies:
    """The replies so far, by the digest of their request.

    Args:
        path: The file; made when the first reply comes.

    Raises:
        DataFormatError: the file is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = _read(path) if path.exists() else {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, digest: str) -> str | None:
        """Returns the reply, or None."""
        return self._known.get(digest)

    def put(self, digest: str, reply: str) -> None:
        """Keeps a reply.

        Raises:
            StorageError: the disk is full or not writable.
        """
        line = json.dumps({"digest": digest, "reply": reply}, ensure_ascii=False) + "\n"
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())  # one call: lines of two processes do not mix
            finally:
                os.close(descriptor)
        self._known[digest] = reply


def _read(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with storage_errors(path):
            os.truncate(path, len(whole))
    known = {}
    for number, line in enumerate(whole.decode().split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            known[str(record["digest"])] = str(record["reply"])
        except (ValueError, KeyError, TypeError):
            raise DataFormatError(
                f"{path} line {number} is not a kept reply; remove the line (its request is sent again) or the file"
            ) from None
    return known
