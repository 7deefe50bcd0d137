"""The tokenizer in the files that every reader of an exported folder takes: one vocabulary, LLaVA's ids.

LLaVA tokenises the text on either side of an image on its own, so that what follows it begins with "▁". The files make
every version do the same (`legacy` in transformers' words). tokenizer.json is made here from tokenizer.model, because
transformers 5 makes other merges of it (tokenizer.py), and because transformers 4.37 does not read what 5 saves. The
class is the plain one for tokenizer.json: LlamaTokenizer of transformers 5 replaces what is in there by rules of its
own, which drop one of several spaces at the beginning of a text.

Source: transformers 4.37 convert_slow_tokenizer.py `LlamaConverter`; llava-hf/llava-1.5-7b-hf.
"""

import shutil
from pathlib import Path
from typing import Any

from llava_ohd.errors import ModelFormatError
from llava_ohd.files import read_json, write_json
from llava_ohd.llava15.convert.vocabulary import ADDED

__all__ = ["pieces_of", "write_for_hf", "write_for_llava"]

_SPACE = "▁"
_PROBES = ("A ball. ", "two  spaces", "  ", "\n\nlines \t tab", "naïve Ç ﬁ ① 日本 🎉", "USER: Is it? ASSISTANT: 12")


def _sentencepiece(file: Path) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ModelFormatError(f"{file} is not a SentencePiece model ({error}); copy it again") from None


def pieces_of(folder: Path) -> int:
    """Returns the number of pieces of a tokenizer, without the tokens that HF adds.

    Raises:
        ModelFormatError: the folder has neither tokenizer.model nor tokenizer.json.
    """
    if (folder / "tokenizer.model").is_file():
        return int(_sentencepiece(folder / "tokenizer.model").get_piece_size())
    if not (folder / "tokenizer.json").is_file():
        raise ModelFormatError(f"{folder} has no tokenizer.model and no tokenizer.json; copy one from the base model")
    record = read_json(folder / "tokenizer.json")
    others = {row["id"] for row in record["added_tokens"] if row["content"] not in ADDED}
    return max([*record["model"]["vocab"].values(), *others]) + 1


def write_for_hf(source: Path, folder: Path, max_length: int, chat_template: str) -> dict[str, int]:
    """Writes tokenizer.model, tokenizer.json, and the settings around them.

    Args:
        source: Folder with tokenizer.model or tokenizer.json.
        folder: Where to write.
        max_length: `model_max_length`.
        chat_template: Jinja.

    Returns:
        Ids of the tokens that were added: `<image>` and `<pad>`.

    Raises:
        ModelFormatError: the source has no tokenizer, or one that is not Llama's.
    """
    pieces = pieces_of(source)
    added = {token: pieces + number for number, token in enumerate(ADDED)}
    if (source / "tokenizer.model").is_file():
        shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
        record, special = _from_sentencepiece(_sentencepiece(source / "tokenizer.model"))
    else:
        record, special = _from_json(source / "tokenizer.json")
    tokens = [_token(number, text) for text, number in {**special, **added}.items()]
    write_json(folder / "tokenizer.json", record | {"added_tokens": tokens})
    _check_same(source, folder)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True)) | {"pad_token": ADDED[1]}
    decoder = {str(row.pop("id")): row for row in ({**token} for token in tokens)}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "LlavaProcessor"}
    settings |= {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    settings |= {"padding_side": "left", "model_max_length": max_length}
    settings |= {"model_input_names": ["input_ids", "attention_mask"]}  # 4.57 makes token_type_ids otherwise
    settings |= {"added_tokens_decoder": decoder, "chat_template": chat_template}
    write_json(folder / "tokenizer_config.json", settings | names)
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "added_tokens.json", added)
    return added


def _check_same(source: Path, folder: Path) -> None:
    """Raises where tokenizer.json gives other ids than SentencePiece: for models that change spaces or letters."""
    if not (source / "tokenizer.model").is_file():
        return
    import tokenizers

    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = _sentencepiece(source / "tokenizer.model")
    for text in _PROBES:
        ids = made.encode(text, add_special_tokens=False).ids
        if ids != model.encode(text):
            raise ModelFormatError(
                f"{source}/tokenizer.model is not built like Llama's (no normalisation, spaces kept): {text!r} is "
                f"{model.encode(text)} in it and would be {ids} in HF's files; take a language model with Llama's own"
            )


def _token(number: int, text: str) -> dict[str, Any]:
    switches = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **switches, "special": True}


def _from_sentencepiece(model: Any) -> tuple[dict[str, Any], dict[str, int]]:
    pieces = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    scores = {piece: model.get_score(number) for piece, number in vocabulary.items()}
    kinds = (model.unk_id(), model.bos_id(), model.eos_id())
    if min(kinds) < 0:
        raise ModelFormatError("the tokenizer has no unknown, begin or end token; a Llama tokenizer is expected")
    special = {pieces[number]: number for number in kinds}
    return _record(vocabulary, _merges(vocabulary, scores), special, pieces[kinds[1]]), special


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[str]:
    """Returns every way to put a piece together from two, best piece first: what SentencePiece would merge next."""
    found = []
    for piece in vocabulary:
        ways = ((piece[:place], piece[place:]) for place in range(1, len(piece)))
        known = [(left, right) for left, right in ways if left in vocabulary and right in vocabulary]
        found += [(-scores[piece], left, right) for left, right in sorted(known, key=lambda way: vocabulary[way[0]])]
    return [f"{left} {right}" for _, left, right in sorted(found, key=lambda row: row[0])]


def _record(vocabulary: dict[str, int], merges: list[str], special: dict[str, int], begin: str) -> dict[str, Any]:
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    starts = [{"SpecialToken": {"id": begin, "type_id": number}} for number in (0, 1)]
    unknown = next(iter(special))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [starts[0], first],
            "pair": [starts[0], first, starts[1], second],
            "special_tokens": {begin: {"id": begin, "ids": [special[begin]], "tokens": [begin]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _from_json(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Takes vocabulary and merges from tokenizer.json of any version."""
    model = read_json(file)["model"]
    vocabulary = model["vocab"]
    if model["type"] != "BPE" or not model.get("byte_fallback") or not {"<unk>", "<s>", "</s>"} <= vocabulary.keys():
        raise ModelFormatError(f"{file} is not Llama's tokenizer (byte-pair, with <unk>, <s> and </s>)")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]  # lists since 0.20
    special = {text: vocabulary[text] for text in ("<unk>", "<s>", "</s>")}
    return _record(vocabulary, merges, special, "<s>"), special


def write_for_llava(source: Path, folder: Path, max_length: int) -> None:
    """Writes tokenizer.model and the settings with which the original LLaVA makes its ids of it.

    Raises:
        ModelFormatError: the source has no tokenizer.model, without which LLaVA's slow tokenizer cannot be loaded.
    """
    if not (source / "tokenizer.model").is_file():
        raise ModelFormatError(
            f"{source} has no tokenizer.model, which LLaVA needs (it loads with use_fast=False); copy it there from "
            "the language model"
        )
    shutil.copyfile(source / "tokenizer.model", folder / "tokenizer.model")
    model = _sentencepiece(folder / "tokenizer.model")
    kinds = {"unk_token": model.unk_id(), "bos_token": model.bos_id(), "eos_token": model.eos_id()}
    names = {name: model.id_to_piece(number) for name, number in kinds.items()}
    names["pad_token"] = names["unk_token"]  # as LLaVA trains
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": _legacy(source), "padding_side": "right"}
    settings |= {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", settings | {"model_max_length": max_length} | names)
    write_json(folder / "special_tokens_map.json", names)


def _legacy(source: Path) -> bool:
    file = source / "tokenizer_config.json"
    return bool(read_json(file).get("legacy", True)) if file.is_file() else True
