"""The error tree. A message gives the value found, what was expected, and what mends it.

LlavaOhdError
├── EncoderNotFound      a name given as --encoder or --vision_tower leads nowhere
├── EncoderFormatError   an encoder directory is incomplete, altered, or of another geometry
├── ModelNotFound        no LLaVA model is known for an encoder, or a model directory is missing
├── ModelFormatError     a LLaVA model directory is incomplete or does not belong to its encoder
├── DataFormatError      an input file is missing, empty, or not in the documented format
├── ImageError           an image is missing, truncated, or cannot be decoded
├── AnswersMismatch      answers do not belong to the questions: missing, extra, duplicate
├── OptionError          an option of a command has a value that it cannot have
├── MissingDependency    an optional package, or data of one, is not installed
├── StorageError         the disk is full or not writable; nothing half-written is left behind
└── StageFailed          a stage of a longer job stopped; names the log and the command that resumes
"""

__all__ = [
    "AnswersMismatch",
    "DataFormatError",
    "EncoderFormatError",
    "EncoderNotFound",
    "ImageError",
    "LlavaOhdError",
    "MissingDependency",
    "ModelFormatError",
    "ModelNotFound",
    "OptionError",
    "StageFailed",
    "StorageError",
    "exit_on_error",
]

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class LlavaOhdError(Exception):
    """Base of every error that this package raises on purpose."""


class EncoderNotFound(LlavaOhdError):
    """A name or path of an encoder leads nowhere."""


class EncoderFormatError(LlavaOhdError):
    """An encoder directory is incomplete, altered, or of another geometry."""


class ModelNotFound(LlavaOhdError):
    """No LLaVA model is known for an encoder, or its directory is missing."""


class ModelFormatError(LlavaOhdError):
    """A LLaVA model directory is incomplete or does not belong to its encoder."""


class DataFormatError(LlavaOhdError):
    """An input file is missing, empty, or not in the documented format."""


class ImageError(LlavaOhdError):
    """An image is missing, truncated, or cannot be decoded."""


class AnswersMismatch(LlavaOhdError):
    """Answers do not belong to the questions: missing, extra, or duplicate."""


class OptionError(LlavaOhdError):
    """An option of a command has a value that it cannot have."""


class MissingDependency(LlavaOhdError):
    """An optional package, or data of one, is not installed."""


class StorageError(LlavaOhdError):
    """The disk is full or not writable; nothing half-written is left behind."""


class StageFailed(LlavaOhdError):
    """A stage of a longer job stopped."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Ends a command with one line on stderr and exit code 2 when the package raises on purpose.

    Errors that nobody foresaw keep their traceback: they are bugs.
    """
    try:
        yield
    except LlavaOhdError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
