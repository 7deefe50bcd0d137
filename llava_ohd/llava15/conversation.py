"""LLaVA-1.5's conversation templates as token ids, with the mask of what is trained.

plain   <s><image>CAPTION\\n                                              stage projector
v1      <s>SYSTEM USER: <image>\\nQUESTION ASSISTANT: ANSWER</s>USER: ... stage lora, and every evaluation

The ids are those of LLaVA's own preprocessing: the text between two special tokens is tokenised on its own, `<image>`
stands for one token per patch. The mask is found otherwise. LLaVA tokenises each round again, subtracts constants and
drops the row where the sums disagree ("tokenization mismatch (ignored)"); here a conversation is built turn by turn,
and what precedes an answer is checked to be a prefix of what includes it. Of the rows that LLaVA drops, those that
merely quote " ASSISTANT: " train here; those with an empty question or a control token in a text are refused.

Source: haotian-liu/LLaVA conversation.py, train/train.py `preprocess_v1` and `preprocess_plain`, mm_utils.py
`tokenizer_image_token` @ c121f04.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llava_ohd.errors import DataFormatError

__all__ = ["CONTROL", "IGNORE", "IMAGE", "IMAGE_TOKEN", "SYSTEM", "TEMPLATES", "encode", "encode_question"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE = "<image>"
IMAGE_TOKEN = -200
"""Stands for one patch of an image in token ids; no vocabulary has it. LLaVA's IMAGE_TOKEN_INDEX."""
IGNORE = -100
"""Label of a token that is not trained."""
TEMPLATES = ("plain", "v1")
CONTROL = ("<s>", "</s>", "<unk>")
"""What LLaVA's tokenizer turns into begin, end and padding tokens wherever a text has it."""


def encode(
    template: str, turns: Sequence[tuple[str, str]], tokenizer: Any, image_tokens: int = 0
) -> tuple[list[int], list[int]]:
    """Tokenises a conversation for training.

    Args:
        template: `plain` or `v1`.
        turns: What the human says and what the assistant answers; `<image>` may stand in what the human says.
        tokenizer: Llama tokenizer of transformers, with begin and end tokens.
        image_tokens: Tokens that each `<image>` becomes: the number of patches.

    Returns:
        Token ids, and as many labels: the token itself where it is trained, else `IGNORE`.

    Raises:
        DataFormatError: no turns, an empty question or answer, a control token in a text, another template, or `plain`
            without exactly one turn with an image.
    """
    if template not in TEMPLATES:
        raise DataFormatError(f"conversation template {template!r} is unknown; choose one of {', '.join(TEMPLATES)}")
    if not turns or not all(human and answer for human, answer in turns):
        raise DataFormatError("a conversation needs at least one turn, and text in every question and answer")
    if found := [token for token in CONTROL if any(token in text for turn in turns for text in turn)]:
        raise DataFormatError(f"a text has {found[0]}, which is a control token of Llama; write it otherwise")
    build = _plain if template == "plain" else _v1
    return build(turns, tokenizer, image_tokens)


def encode_question(prompt: str, tokenizer: Any, image_tokens: int = 0) -> list[int]:
    """Tokenises one question by template v1, up to the place where the answer begins.

    The ids are exactly those that precede the answer in training.

    Args:
        prompt: What the human says; `<image>` included.
        tokenizer: As in `encode`.
        image_tokens: As in `encode`.
    """
    return [tokenizer.bos_token_id, *_tokenize([_asked(0, prompt)], tokenizer, image_tokens)[0]]


def _after_end(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Returns what tokenises texts that follow an end token."""
    if hasattr(tokenizer, "after_end"):
        own: Callable[[list[str]], list[list[int]]] = tokenizer.after_end
        return own
    end = tokenizer.eos_token

    def after_end(texts: list[str]) -> list[list[int]]:
        return [ids[1:] for ids in tokenizer([end + text for text in texts], add_special_tokens=False)["input_ids"]]

    return after_end


def _asked(index: int, human: str) -> str:
    return f"{'' if index else SYSTEM + ' '}USER: {human} ASSISTANT:"


def _v1(turns: Sequence[tuple[str, str]], tokenizer: Any, image_tokens: int) -> tuple[list[int], list[int]]:
    asked = [_asked(index, human) for index, (human, _) in enumerate(turns)]
    whole = [f"{text} {answer}" for text, (_, answer) in zip(asked, turns, strict=True)]
    first = _tokenize([asked[0], whole[0]], tokenizer, image_tokens)
    later = _tokenize([*asked[1:], *whole[1:]], tokenizer, image_tokens, after_end=True)
    rest = len(turns) - 1
    pieces = [first[0], *later[:rest], first[1], *later[rest:]]
    ids, labels = [tokenizer.bos_token_id], [IGNORE]
    for before, turn in zip(pieces[: len(turns)], pieces[len(turns) :], strict=True):
        if turn[: len(before)] != before:
            raise DataFormatError(
                "this tokenizer joins the end of the prompt with the answer, so that no label mask exists; take a "
                "tokenizer that never merges across a space (every Llama tokenizer)"
            )
        answer = [*turn[len(before) :], tokenizer.eos_token_id]
        ids += before + answer
        labels += [IGNORE] * len(before) + answer
    return ids, labels


def _plain(turns: Sequence[tuple[str, str]], tokenizer: Any, image_tokens: int) -> tuple[list[int], list[int]]:
    if len(turns) != 1 or IMAGE not in turns[0][0]:
        raise DataFormatError(f"template plain takes one turn, with {IMAGE}; this row has {len(turns)}")
    caption = _tokenize([f"{turns[0][1]}\n"], tokenizer, 0)[0]
    before = [tokenizer.bos_token_id, *[IMAGE_TOKEN] * image_tokens]
    return before + caption, [IGNORE] * len(before) + caption


def _tokenize(texts: list[str], tokenizer: Any, image_tokens: int, after_end: bool = False) -> list[list[int]]:
    """Tokenises each text, without begin and end tokens; the parts around an image on their own, as LLaVA does."""
    parts = [text.split(IMAGE) for text in texts]
    flat = [part for row in parts for part in row[after_end:]]
    pieces = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else [])
    starts = iter(_after_end(tokenizer)([row[0] for row in parts]) if after_end and parts else [])
    rows = []
    for row in parts:
        ids = list(next(starts if after_end else pieces))
        for _ in row[1:]:
            ids += [IMAGE_TOKEN] * image_tokens + next(pieces)
        rows.append(ids)
    return rows
