"""The flags of every eval that asks a model, and what they mean. No torch: scoring alone uses them, too."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ohd.records import Question

__all__ = ["add_flags", "ask_with"]


def add_flags(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds who answers, about which images, and how; `max_new_tokens` is the default of the evaluation."""
    add = parser.add_argument
    add("--encoder", default="ours", help="name or folder of the encoder (default: ours); a folder needs --out")
    add("--model", type=Path, help="LLaVA model folder (default: the one registered for the encoder)")
    add("--images", type=Path, help="folder of the images (default: images/ of the set)")
    add("--max_new_tokens", type=int, default=max_new_tokens, help="tokens at which a model's answer is cut")
    add("--bits", type=int, choices=(16, 8, 4), default=16, help="of the language model (16: none is quantised)")
    add("--batch_size", type=int, help="questions per forward pass, at most")
    add("--verify", type=int, default=0, metavar="N", help="also answer N one by one with transformers, and compare")


def ask_with(
    given: argparse.Namespace, images: Path, questions: Sequence[Question], out: Path, suffix: str = ""
) -> dict[str, Any]:
    """Answers questions into OUT/answers.jsonl as the flags say; returns and raises as `session.ask`.

    Args:
        given: Parsed flags; of those of `add_flags`, and `probabilities` where the evaluation has it.
        images: Folder of the images unless --images was given.
        questions: With distinct ids.
        out: Folder of the results.
        suffix: Appended to every prompt.
    """
    from llava_ohd.answering.session import Session, ask

    session = Session(
        given.encoder,
        given.model,
        given.images or images,
        given.max_new_tokens,
        given.verify,
        getattr(given, "probabilities", False),
        given.bits,
        given.batch_size,
    )
    return ask(session, questions, out / "answers.jsonl", suffix)
