"""A chat endpoint that speaks OpenAI's protocol (`POST .../chat/completions`): vLLM, llama.cpp, Ollama, OpenAI itself.

Each answered request is kept on disk at once, under the digest of its body: the same request is never sent twice, in
this run or a later one. What the server cannot do just now is tried again later and later; what it will never do (a
wrong key, an unknown model) stops the run, as does a budget that is used up.

The key is read from `$LLAVA_OHD_API_KEY` or `$OPENAI_API_KEY` and written nowhere.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2

from llava_ohd.errors import OptionError, StageFailed
from llava_ohd.files import sha256_json
from llava_ohd.ohd_caps.replies import Replies

__all__ = ["KEYS", "Endpoint", "EndpointConfig"]

KEYS = ("LLAVA_OHD_API_KEY", "OPENAI_API_KEY")
_PASSING = {408, 409, 425, 429}  # and 5xx
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds
_LONGEST_ASKED = 600.0  # seconds that a server may ask to wait
_SHOWN = 200  # characters of a server's message


@dataclass(frozen=True)
class EndpointConfig:
    """Which endpoint, and how much of it.

    Attributes:
        url: Up to and with `/v1`, beginning with http:// or https://.
        model: As the server names it.
        sampling: Further fields of every request, such as temperature and max_tokens.
        concurrency: Requests at a time.
        timeout: Seconds until a request counts as failed.
        retries: How often a request is sent again when the server fails.
        max_requests: Requests sent in this run at most, repeated ones included; None for any number.
        max_tokens: Tokens (prompt and reply) of this run after which no request is sent; None for any number. Up to
            `concurrency` requests are on their way when it is reached.

    Raises:
        OptionError: no address, or a number that no run can have.
    """

    url: str
    model: str
    sampling: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    max_requests: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_address(self.url)
        for name, least in (("concurrency", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} {getattr(self, name)}: at least {least} is expected (--{name})")
        if not self.timeout > 0:
            raise OptionError(f"timeout {self.timeout}: more than 0 seconds are expected (--timeout)")


class Endpoint:
    """Asks, as often as the budget allows.

    Args:
        config: Which endpoint.
        replies: What was answered before.
        allow_empty: Whether a reply may be without text; else the first one stops the run, and is not kept.

    Attributes:
        url: Where requests go.
        requests: Requests sent in this run.
        tokens: Tokens that the server counted in this run; where it counts none, a quarter of the characters.
    """

    def __init__(self, config: EndpointConfig, replies: Replies, allow_empty: bool = True) -> None:
        self.config, self.replies, self._allow_empty = config, replies, allow_empty
        self.requests = self.tokens = 0
        self._stopped: StageFailed | None = None
        self.url = f"{config.url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def client(self) -> httpx2.AsyncClient:
        """Returns a client for one event loop, to be used with `async with` and handed to `ask`."""
        limits = httpx2.Limits(max_connections=self.config.concurrency)
        return httpx2.AsyncClient(headers=self._headers, timeout=self.config.timeout, limits=limits)

    async def ask(
        self, client: httpx2.AsyncClient, messages: list[dict[str, Any]], key: str | None = None, name: str = ""
    ) -> str:
        """Returns the text of the reply, from disk where the same was asked before.

        Args:
            client: Of `client()`.
            messages: What is asked.
            key: Digest under which the reply is kept; None: that of the request, whichever server is asked.
            name: What this is about, for the message where the reply is without text.

        Raises:
            StageFailed: the budget is used up, the server refuses, or it failed `retries` times more than once.
        """
        body = {**self.config.sampling, "model": self.config.model, "messages": messages}
        digest = key or sha256_json(body)
        text = self.replies.get(digest)
        if text is None:
            text = await self._send(client, body, name)
            self.replies.put(digest, text)
        return text

    async def _send(self, client: httpx2.AsyncClient, body: dict[str, Any], name: str) -> str:
        reason = ""
        for attempt in range(self.config.retries + 1):
            self._check_budget()
            self.requests += 1
            wait = random.uniform(0.5, 1) * min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt)
            try:
                reply = await client.post(self.url, json=body)
                if reply.is_success:
                    return self._text(reply, body, name)
                reason = f"answered {reply.status_code}: {reply.text[:_SHOWN]}"
                if reply.status_code not in _PASSING and reply.status_code < 500:
                    raise self._stop(f"{reason}\n{_remedy(reply.status_code)}")
                asked = _asked_wait(reply.headers.get("Retry-After"))
                wait = wait if asked is None else asked
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise self._stop(f"is no address: {error}; give one like http://localhost:8000/v1") from None
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                reason = f"did not answer ({type(error).__name__} {error})"
            except (KeyError, IndexError, TypeError, ValueError) as error:
                reason = f"answered with something else than a chat completion ({type(error).__name__}: {error})"
            if attempt < self.config.retries:
                await asyncio.sleep(wait)
        raise self._stop(f"{reason}, {self.config.retries + 1} times in a row; see whether the server is well")

    def _text(self, reply: httpx2.Response, body: dict[str, Any], name: str) -> str:
        record = reply.json()
        choice = record["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError(f"content is {type(text).__name__}")
        if not (text.strip() or self._allow_empty):
            why = choice.get("finish_reason")
            raise self._stop(f"answered {name} without text (finish_reason {why!r}); see what the server makes of it")
        usage = record.get("usage") or {}
        letters = len(text) + sum(len(message["content"]) for message in body["messages"])
        self.tokens += int(usage.get("total_tokens") or letters // 4)
        return text

    def _check_budget(self) -> None:
        if self._stopped:
            raise self._stopped
        limits = {"requests": self.config.max_requests, "tokens": self.config.max_tokens}
        for name, limit in limits.items():
            if limit is not None and getattr(self, name) >= limit:
                raise self._stop(f"has had its budget of {limit} {name} (--max_{name})")

    def _stop(self, reason: str) -> StageFailed:
        """Stops all further requests; those on their way are awaited and kept by whoever sent them."""
        if self._stopped is None:
            self._stopped = StageFailed(
                f"{self.url} {reason}. Sent in this run: {self.requests} requests, {self.tokens} tokens. All replies "
                "are kept: the same command goes on from there."
            )
        return self._stopped


def _check_address(url: str) -> None:
    """Refuses what is no address here, where httpx2 would say it in a way of its own for each mistake."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise OptionError(
            f"{url!r} is no address of a server: it begins with http:// or https://, as http://localhost:8000/v1"
        )


def _asked_wait(value: str | None) -> float | None:
    """Returns how many seconds `Retry-After` asks to wait (a number, or a date); None where it says nothing."""
    try:
        seconds = float(value) if value else None
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(value)).timestamp() - time.time()
        except ValueError:
            return None
    return None if seconds is None else min(max(seconds, 0.0), _LONGEST_ASKED)


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f"Put the key into ${KEYS[0]}"
    if status == 404:
        return "Give the address up to and with /v1, and the model as the server names it (--model)"
    return "Give the model as the server names it (--model), and fields of a request that it knows (--sampling)"
