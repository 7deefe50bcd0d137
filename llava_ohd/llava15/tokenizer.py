"""The language model's tokenizer as LLaVA uses it: SentencePiece itself.

LLaVA loads Llama's tokenizer with `use_fast=False`, which hands every text to the SentencePiece library. transformers 5
has no such class any more: from a bare `tokenizer.model` (all that lmsys/vicuna-7b-v1.5 has) it makes merges by piece
number instead of score, and runs of spaces get other tokens ("two  spaces" is 1023 259 22854 instead of 1023 29871
8162). So SentencePiece is asked directly; a folder that has only tokenizer.json goes to transformers.

`"legacy": false` in tokenizer_config.json (Vicuna v1.5 has it) changes one thing: a text that follows an end token does
not begin with a space. The second "USER" of a conversation is 11889 then, instead of 3148 1001.
Source: transformers 4.37.2 `LlamaTokenizer.tokenize`.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_ohd.errors import ModelFormatError, ModelNotFound
from llava_ohd.files import read_json

__all__ = ["SentencePieceTokenizer", "load_tokenizer"]


class SentencePieceTokenizer:
    """A `tokenizer.model` behind the few calls of transformers' tokenizers that are used here.

    Args:
        file: The SentencePiece model.
        legacy: Whether a text that follows an end token begins with a space, as every other text does.

    Raises:
        ModelFormatError: not a SentencePiece model, or one without begin and end tokens.
    """

    def __init__(self, file: Path, legacy: bool = True) -> None:
        import sentencepiece

        self.legacy = legacy
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (OSError, RuntimeError) as error:
            raise ModelFormatError(f"{file} is not a SentencePiece model ({error}); copy it again") from None
        self.bos_token_id, self.eos_token_id = self._model.bos_id(), self._model.eos_id()
        if min(self.bos_token_id, self.eos_token_id) < 0:
            raise ModelFormatError(f"{file} has no begin or no end token; a Llama tokenizer is expected")

    def __len__(self) -> int:
        return self._model.get_piece_size()

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        """Tokenises each text on its own, without begin and end tokens; "</s>" in a text is plain text."""
        return {"input_ids": [self._model.encode(text) for text in texts]}  # a list would start threads

    def after_end(self, texts: list[str]) -> list[list[int]]:
        """Tokenises texts that each follow an end token and do not begin with a space."""
        model = self._model if self.legacy else self._without_first_space
        return [model.encode(text) for text in texts]

    @cached_property
    def _without_first_space(self) -> Any:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2 as messages

        record = messages.ModelProto.FromString(self._model.serialized_model_proto())  # type: ignore[attr-defined]
        record.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=record.SerializeToString())

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Returns the text of the ids; begin and end tokens give nothing."""
        return self._model.decode(list(ids))


def load_tokenizer(folder: str | Path) -> Any:
    """Loads the tokenizer of a language model folder.

    Raises:
        ModelNotFound: there is no such folder.
        ModelFormatError: the folder has neither tokenizer.model nor tokenizer.json, or they are damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is not a folder; give the folder of a language model")
    if (folder / "tokenizer.model").is_file():
        settings = folder / "tokenizer_config.json"
        legacy = read_json(settings).get("legacy") if settings.is_file() else None
        return SentencePieceTokenizer(folder / "tokenizer.model", legacy is not False)
    if not (folder / "tokenizer.json").is_file():
        raise ModelFormatError(f"{folder} has no tokenizer.model and no tokenizer.json; copy one from the base model")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ModelFormatError(
            f"{folder}/tokenizer.json has no begin or no end token (tokenizer_config.json names them); a Llama "
            "tokenizer is expected"
        )
    return tokenizer
