"""The same questions asked of a server that speaks OpenAI's protocol and sees images, such as vLLM or sglang.

Images travel as data URLs, byte for byte the files: padding, template and system text are the server's own affair, so
answers are another model's even where the weights are the same (docs/serving.md). Greedy: temperature 0.
A server that keeps the keys and values of what it has read profits from questions that come image by image, as here.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.answering.recorded import row_of_run
from llava_ohd.errors import ImageError, OptionError
from llava_ohd.files import sha256_json
from llava_ohd.ohd_caps.endpoint import Endpoint, EndpointConfig
from llava_ohd.ohd_caps.replies import Replies
from llava_ohd.records import Answer, Question

__all__ = ["ServerAnswerer", "data_url", "refuse_others"]


@dataclass(frozen=True)
class ServerAnswerer:
    """Asks each distinct question once, several at a time.

    Attributes:
        config: Which server, how many requests at a time, how often again.
        images: Folder that image names are relative to.
        replies: File of the replies so far: what this server was asked before is not sent again.
    """

    config: EndpointConfig
    images: Path
    replies: Path

    def answer(self, questions: Iterable[Question], max_new_tokens: int) -> Iterator[Answer]:
        """Yields one answer per question, as they come.

        Raises:
            ImageError: an image is missing or damaged.
            StageFailed: the server refuses, fails again and again, or gives an answer without text, which would be
                scored as a yes; what it has answered is kept.
        """
        distinct: dict[tuple[str, str], list[str]] = {}
        for question in sorted(questions, key=lambda question: question.image):
            distinct.setdefault((question.image, question.prompt), []).append(question.id)
        sampling = {"temperature": 0, "max_tokens": max_new_tokens} | self.config.sampling
        endpoint = Endpoint(replace(self.config, sampling=sampling), Replies(self.replies), allow_empty=False)
        loop = asyncio.new_event_loop()
        texts = self._texts(endpoint, list(distinct))
        try:
            with suppress(StopAsyncIteration):
                while True:
                    asked, text = loop.run_until_complete(anext(texts))
                    yield from (Answer(question_id, text.strip()) for question_id in distinct[asked])
        finally:
            loop.run_until_complete(texts.aclose())
            loop.close()

    async def _texts(
        self, endpoint: Endpoint, asked: Sequence[tuple[str, str]]
    ) -> AsyncGenerator[tuple[tuple[str, str], str], None]:
        """Keeps `concurrency` requests on their way; one that fails lets the others come to their end first."""
        waiting, running, done = iter(asked), set[asyncio.Task[Any]](), set[asyncio.Task[Any]]()
        async with endpoint.client() as client:

            async def ask(one: tuple[str, str]) -> tuple[tuple[str, str], str]:
                messages = _messages(self.images / one[0], one[1])
                name = f"{one[1]!r} about {one[0]}"
                return one, await endpoint.ask(client, messages, _key(endpoint, messages), name)

            try:
                while True:
                    for one in waiting:
                        running.add(asyncio.create_task(ask(one)))
                        if len(running) >= self.config.concurrency:
                            break
                    if not running:
                        return
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
            finally:
                await asyncio.gather(*running, *done, return_exceptions=True)


def refuse_others(path: Path, asked: Sequence[Question], run: str) -> None:
    """Refuses to let answers take the place of what another run wrote.

    Args:
        path: Where the answers are to go.
        asked: All questions.
        run: Digest of everything that decides the answers.

    Raises:
        OptionError: at `path`, or half-written beside it, is a row that does not answer one of these questions in
            this run; or `path` is a folder.
    """
    if path.is_dir():
        raise OptionError(f"{path} is a folder; give a file as --out, such as {path / 'answers.jsonl'}")
    questions = {question.id: question for question in asked}
    for file in (path, *path.parent.glob(f"{escape(path.stem)}.partial*{path.suffix}")):
        lines = [line for line in file.read_bytes().split(b"\n") if line.strip()] if file.exists() else []
        if file != path:
            lines = [line for line in lines if _is_whole(line)]  # a kill may have torn the last one
        if others := sum(row_of_run(line, questions, run) is None for line in lines):
            raise OptionError(
                f"{file} has {others} rows that are no answers of this server, model and settings to these questions; "
                "give another --out, or remove the file"
            )


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _key(endpoint: Endpoint, messages: list[dict[str, Any]]) -> str:
    """Returns the digest of all that decides a reply: two servers may call different models by one name."""
    config = endpoint.config
    who = {"server": endpoint.url, "model": config.model, "sampling": config.sampling}
    return sha256_json(who | {"messages": messages})


def _messages(image: Path, prompt: str) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": prompt}]}]


def data_url(image: Path) -> str:
    """Returns an image file as a URL that holds it.

    Raises:
        ImageError: missing, or no image.
    """
    if not image.is_file():
        raise ImageError(f"image {image} does not exist; check the image folder that was given")
    data = image.read_bytes()
    tower.open_image(image, BytesIO(data))  # damaged ones are refused here, with a name
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(image.suffix.lower(), image.suffix.lower().lstrip("."))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
