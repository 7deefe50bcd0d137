"""The tokenizer of an encoder folder: loaded, or only compared with the text tower that it feeds."""

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.record import read_object

__all__ = ["check_tokenizer", "has_pieces", "load_tokenizer", "read_pieces", "tokenizer_for"]

_END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(path: str | Path) -> CLIPTokenizer:
    """Loads the tokenizer of an encoder folder; `truncation=True` cuts at the length that the text tower takes.

    Raises:
        EncoderFormatError: the folder has no tokenizer files, or they do not belong to its text tower.
    """
    return tokenizer_for(read_config(Path(path)).text_config, path)


def tokenizer_for(text: Any, path: str | Path) -> CLIPTokenizer:
    """Loads the tokenizer in a folder for the text tower of configuration `text`, as `load_tokenizer`."""
    folder = Path(path)
    if not has_pieces(folder):
        raise EncoderFormatError(f"{folder} has no tokenizer files; copy them from the encoder it was made from")
    check_tokenizer(folder, text)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    _compare(folder, len(tokenizer), tokenizer.eos_token_id, text)
    tokenizer.model_max_length = min(tokenizer.model_max_length, text.max_position_embeddings)
    return tokenizer


def check_tokenizer(folder: Path, text: Any) -> None:
    """Compares the tokenizer files with a text tower, without making a tokenizer of them.

    A folder without any passes: LLaVA needs none. A larger `model_max_length` passes too, as `load_tokenizer` cuts at
    the tower's length and other programs stop with an error there; a smaller one would cut captions without a word.

    Args:
        folder: The encoder folder.
        text: Configuration of its text tower.

    Raises:
        EncoderFormatError: another number of pieces, end of text or length; or a damaged file.
    """
    if not has_pieces(folder):
        return
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second counts more
        if (folder / name).is_file():
            settings |= read_object(folder / name, "damaged tokenizer")
    token = settings.get("eos_token") or _END_OF_TEXT
    end = str(token.get("content") if isinstance(token, dict) else token)
    for name in ("tokenizer.json", "vocab.json"):
        if (folder / name).is_file():
            pieces = read_pieces(folder / name)
            _compare(folder, max(pieces.values(), default=-1) + 1, pieces.get(end), text)
    length = settings.get("model_max_length", text.max_position_embeddings)
    if isinstance(length, bool) or not isinstance(length, int | float) or length < text.max_position_embeddings:
        raise EncoderFormatError(
            f"{folder}/tokenizer_config.json: model_max_length is {length!r}, the text tower takes "
            f"{text.max_position_embeddings} tokens; longer captions would be cut. Set it to that"
        )


def has_pieces(folder: Path) -> bool:
    """Says whether a folder has a vocabulary, in the files of any version."""
    return (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()


def read_pieces(file: Path) -> dict[str, int]:
    """Returns pieces and their numbers out of vocab.json or tokenizer.json.

    Raises:
        EncoderFormatError: damaged, or not the byte-pair vocabulary of a CLIP.
    """
    record = read_object(file, "damaged tokenizer")
    try:
        if file.name == "tokenizer.json":
            record = {**record["model"]["vocab"], **{row["content"]: row["id"] for row in record["added_tokens"]}}
        return {str(piece): int(number) for piece, number in record.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderFormatError(f"{file} is not the byte-pair vocabulary of a CLIP ({error}); copy it again") from None


def _compare(folder: Path, count: int, end: int | None, text: Any) -> None:
    # The text tower reads a caption off at this token; 2 stands for the highest id in configurations made before 2023.
    expected = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    if end != expected or count > text.vocab_size:
        raise EncoderFormatError(
            f"{folder}: the tokenizer has {count} pieces and ends a caption with {end}; the text tower knows "
            f"{text.vocab_size} and looks for {expected}. Copy the tokenizer it was trained with"
        )
