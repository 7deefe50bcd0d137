"""The flags of every eval that asks a model, and what they mean. No torch: scoring alone uses them, too."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ohd.records import Question

__all__ = ["add_flags", "ask_with", "settle_encoder"]


def add_flags(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds who answers, about which images, and how; `max_new_tokens` is the default of the evaluation."""
    add = parser.add_argument
    add("--encoder", help="name or folder of the encoder (default: that of --model, or ours); a folder needs --out")
    add("--model", type=Path, help="LLaVA model folder (default: the one registered for the encoder)")
    add("--images", type=Path, help="folder of the images (default: images/ of the set)")
    add("--max_new_tokens", type=int, default=max_new_tokens, help="tokens at which a model's answer is cut")
    add("--bits", type=int, choices=(16, 8, 4), default=16, help="of the language model (16: none is quantised)")
    add("--batch_size", type=int, help="questions per forward pass, at most")
    add("--verify", type=int, default=0, metavar="N", help="also answer N one by one with transformers, and compare")


def settle_encoder(given: argparse.Namespace) -> None:
    """Fills in `--encoder` where it was left out, and makes sure that there is such an encoder.

    Args:
        given: Parsed flags, of which `encoder` is set: that which `--model` was trained on, by its name where it is
            registered; without `--model` it is `ours`.

    Raises:
        EncoderNotFound: no such encoder; the message lists all.
        ModelNotFound, ModelFormatError: `--model` is none.
    """
    from llava_ohd.tower.names import expect
    from llava_ohd.tower.registry import registered

    if given.encoder is None and given.model is not None:
        from llava_ohd.llava15.model_dir import encoder_of, read

        encoder = encoder_of(read(given.model))
        names = [name for name, row in registered().items() if row["digest"] == encoder.digest]
        given.encoder = names[0] if names else str(encoder.path)
    given.encoder = given.encoder or "ours"
    expect(given.encoder)


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
