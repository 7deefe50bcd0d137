"""The flags of every eval that asks a model, and what they mean. No torch: scoring alone uses them, too."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_ohd.errors import OptionError
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
    add("--server", metavar="URL", help="ask a server of OpenAI's protocol instead, up to /v1 (docs/serving.md)")
    add("--server_model", help="with --server: the model as it is named there")
    add(
        "--server_sampling", type=json.loads, default={}, metavar="JSON", help="with --server: more fields of a request"
    )
    add("--verify", type=int, default=0, metavar="N", help="also answer N one by one with transformers, and compare")


def settle_encoder(given: argparse.Namespace) -> None:
    """Fills in `--encoder` where it was left out, and makes sure that there is such an encoder.

    Args:
        given: Parsed flags, of which `encoder` is set: that which `--model` was trained on, by its name where it is
            registered; without `--model` it is `ours`; with `--server` it says who is asked.

    Raises:
        OptionError: `--server` without `--server_model` and `--out`, or with what only a local model heeds.
        EncoderNotFound: no such encoder; the message lists all.
        ModelNotFound, ModelFormatError: `--model` is none.
    """
    from llava_ohd.tower.names import expect
    from llava_ohd.tower.registry import registered

    if given.server is not None:
        _check_server(given)
        given.encoder = f"{given.server_model} at {given.server}"
        return
    if given.encoder is None and given.model is not None:
        from llava_ohd.llava15.model_dir import encoder_of, read

        encoder = encoder_of(read(given.model))
        names = [name for name, row in registered().items() if row["digest"] == encoder.digest]
        given.encoder = names[0] if names else str(encoder.path)
    given.encoder = given.encoder or "ours"
    expect(given.encoder)


def _check_server(given: argparse.Namespace) -> None:
    if given.server_model is None or given.out is None or not isinstance(given.server_sampling, dict):
        raise OptionError("--server needs --server_model NAME, as the server names it, and a folder as --out")
    local = {"encoder": None, "model": None, "bits": 16, "batch_size": None, "verify": 0, "probabilities": False}
    idle = [f"--{name}" for name, default in local.items() if getattr(given, name, default) != default]
    if idle:
        raise OptionError(f"--server does not heed {', '.join(idle)}; leave that out, it is the server's own affair")


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
    from llava_ohd.answering.session import Session, ask, ask_server

    if given.server is not None:
        from llava_ohd.ohd_caps.endpoint import EndpointConfig

        server = EndpointConfig(given.server.rstrip("/"), given.server_model, given.server_sampling)
        place, answers = given.images or images, out / "answers.jsonl"
        who = ask_server(server, place, given.max_new_tokens, questions, answers, suffix)
        return {"model": {"path": who["model"], "server": who["server"], "sampling": given.server_sampling}}
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
