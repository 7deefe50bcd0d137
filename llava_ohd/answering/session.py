"""From the name of an encoder to a complete answers file: what every eval that asks a LLaVA model begins with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ohd import tower
from llava_ohd.answering.recorded import answer_to_file, make_way, recorded
from llava_ohd.errors import DataFormatError, ImageError, LlavaOhdError, ModelFormatError
from llava_ohd.files import sha256_file, sha256_json
from llava_ohd.home import from_home
from llava_ohd.records import Question
from llava_ohd.training.launch import is_first, said_once

__all__ = ["Session", "ask", "ask_server"]

if TYPE_CHECKING:
    from llava_ohd.answering.engine import LlavaAnswerer
    from llava_ohd.llava15.model_dir import ModelDir
    from llava_ohd.ohd_caps.endpoint import EndpointConfig

_ENGINE = 1  # goes up when the same model would answer otherwise


@dataclass(frozen=True)
class Session:
    """Who answers, about which images.

    Attributes:
        encoder: Name or folder.
        model: Model folder; None takes the one registered for the encoder.
        images: Folder that image names are relative to.
        max_new_tokens: Tokens at which an answer is cut.
        verify: So many questions are also answered one by one with transformers' `generate`.
        probabilities: Keep with each answer the probabilities of yes and no at its first token.
        bits: Of the language model's layers: 16 (as they are), 8 or 4. An adapter is merged before.
        batch_size: Questions per forward pass, at most; None: 64.

    Raises:
        LlavaOhdError: a number below 1 (`verify`: below 0).
    """

    encoder: str
    model: Path | None
    images: Path
    max_new_tokens: int
    verify: int = 0
    probabilities: bool = False
    bits: int = 16
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("verify", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LlavaOhdError(f"--{name} {value}: give a number of at least {least}")


def ask(session: Session, questions: Sequence[Question], path: Path, suffix: str = "") -> dict[str, dict[str, Any]]:
    """Answers all questions into a file; those that the same model has answered there already are not asked again.

    Args:
        session: Who answers.
        questions: With distinct ids.
        path: `answers.jsonl`. Answers of the same model with other settings, and their results.json, are kept beside
            it, under replaced/.
        suffix: Appended to every prompt.

    Several ranks that a launcher has started share the images out; those above 0 end here.

    Returns:
        `encoder` and `model` for `write_results`; `model` says how it answered (`image_aspect_ratio`, `image_backend`,
        `template`, `dtype`), and has `bits` where it is quantised, `swapped` where its encoder was exchanged after
        training, and `verified` where questions were: `questions`, `differing`, `dtype`.

    Raises:
        EncoderNotFound, ModelNotFound: no such encoder, or no model for it.
        ModelFormatError: `model` was trained on another encoder.
        DataFormatError: there is no folder of images; or `path` holds the answers of others.
        ImageError: an image is missing or truncated.
        StorageError: no room, not writable.
    """
    if not session.images.is_dir():
        raise DataFormatError(f"{session.images} is not a folder; give the folder of the images as --images")
    folder, encoder = _model(session)
    asked = [replace(question, prompt=question.prompt + suffix) for question in questions]
    pictures = {name: _picture_sha256(session.images / name) for name in sorted({q.image for q in asked})}
    record = _record(session, folder)
    run = sha256_json({"model": folder.digest, "images": pictures} | _decoding(session, record["dtype"]))

    @cache
    def answerer() -> "LlavaAnswerer":
        from llava_ohd.answering.engine import load

        how: dict[str, Any] = {"batch_size": session.batch_size, "probabilities": session.probabilities}
        return load(folder, session.images, bits=session.bits, **how)[0]

    rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if len(recorded(path, {question.id: question for question in asked}, run)) < len(asked):
        if rank == 0:
            make_way(path, run, record["path"])
        how: dict[str, Any] = {"run": run, "model_id": folder.path.name, "max_new_tokens": session.max_new_tokens}
        label = f"answering {len(asked)} questions"
        with said_once():
            answer_to_file(answerer, asked, path, **how, label=label, rank=rank, ranks=ranks)
    if rank:
        raise SystemExit(0)  # rank 0 scores
    if session.verify:
        from llava_ohd.answering.verifying import verify

        record["verified"] = verify(answerer(), asked, path, session.verify, session.max_new_tokens)
    return {"encoder": {"name": session.encoder, "digest": encoder.digest}, "model": record}


def _model(session: Session) -> tuple["ModelDir", tower.Encoder]:
    """Returns the model that answers and its encoder, and says which it is."""
    from llava_ohd.llava15 import model_dir

    place = tower.resolve(session.encoder)
    folder = model_dir.read(session.model or tower.model_for(session.encoder))
    encoder = tower.check(place)
    if encoder.digest != folder.encoder["digest"]:
        raise ModelFormatError(
            f"{folder.path} was trained on the encoder with digest {folder.encoder['digest'][:12]}, "
            f"not on {session.encoder!r} ({encoder.digest[:12]}); give the encoder that belongs to it, or its own model"
        )
    if is_first():
        print(f"model: {from_home(folder.path)}")
    if folder.swapped:
        before = folder.swapped["trained_on"]
        print(
            f"swapped: {folder.path.name} was trained on {before.get('name', 'another encoder')} "
            f"({before['digest'][:12]}) and answers with {session.encoder} ({encoder.digest[:12]}), projector "
            f"{folder.swapped['projector']}"
        )
    return folder, encoder


def _record(session: Session, folder: "ModelDir") -> dict[str, Any]:
    """Returns what results say of the model and of how it answered; runs are compared on the same terms."""
    from llava_ohd.answering.engine import precision

    record: dict[str, Any] = {"path": from_home(folder.path), "digest": folder.digest}
    record |= {"image_aspect_ratio": folder.config["image_aspect_ratio"], "image_backend": "pillow"}
    record["template"] = "llava_v1"
    record["dtype"] = str(precision()).removeprefix("torch.")
    if session.bits != 16:
        record["bits"] = session.bits
    if folder.swapped:
        record["swapped"] = {key: folder.swapped[key] for key in ("trained_on", "projector")}
    return record


def _decoding(session: Session, dtype: str) -> dict[str, Any]:
    """Returns what decides the answers beside model and images."""
    decoding: dict[str, Any] = {"max_new_tokens": session.max_new_tokens, "engine": _ENGINE}
    if session.probabilities:
        decoding["probabilities"] = True
    if session.bits != 16:
        decoding["bits"] = session.bits
    return decoding | ({"dtype": dtype} if dtype != "float32" else {})


def ask_server(
    server: "EndpointConfig",
    images: Path,
    max_new_tokens: int,
    questions: Sequence[Question],
    path: Path,
    suffix: str = "",
) -> dict[str, Any]:
    """Has a server answer all questions into a file; the answers that are there already are not asked for again.

    Args:
        server: Which one.
        images: Folder that image names are relative to.
        max_new_tokens: Tokens at which an answer is cut.
        questions: With distinct ids.
        path: `answers.jsonl`; the server's replies are kept beside it, as `answers.replies.jsonl`.
        suffix: Appended to every prompt.

    Returns:
        `server` and `model` by their names, for the settings in results.json.

    Raises:
        DataFormatError: there is no folder of images.
        ImageError: an image is missing or damaged.
        OptionError: `path` has answers of another server, model, or run.
        StageFailed: the server refuses, fails again and again, or says nothing; the same command goes on from there.
        StorageError: no room, not writable.
    """
    if not images.is_dir():
        raise DataFormatError(f"{images} is not a folder; give the folder of the images as --images")
    from llava_ohd.answering.server import ServerAnswerer, refuse_others

    asked = [replace(question, prompt=question.prompt + suffix) for question in questions]
    pictures = {name: _picture_sha256(images / name) for name in sorted({q.image for q in asked})}
    who = {"server": server.url, "model": server.model}
    run = sha256_json({"images": pictures, "max_new_tokens": max_new_tokens, "sampling": server.sampling} | who)
    refuse_others(path, asked, run)
    answer_to_file(
        lambda: ServerAnswerer(server, images, path.with_name(f"{path.stem}.replies.jsonl")),
        asked,
        path,
        run=run,
        model_id=server.model,
        max_new_tokens=max_new_tokens,
        label=f"asking {server.model} {len(asked)} questions",
    )
    return who


def _picture_sha256(file: Path) -> str:
    if not file.is_file():
        raise ImageError(f"image {file} does not exist; check the image folder that was given")
    return sha256_file(file)
