"""One row of a training file, in either format, as what the human says and what the assistant answers.

LLaVA      {"id": 1, "image": "a.jpg" or ["a.jpg", "b.jpg"] or absent,
            "conversations": [{"from": "human", "value": "<image>\\nA ball?"}, {"from": "gpt", "value": "Yes"}, ...]}
messages   {"messages": [{"role": "user", "content": "<image>\\nA ball?"}, {"role": "assistant", "content": "Yes"}],
            "images": ["a.jpg"]}
           or with "content" as parts: [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "A ball?"}]

Whatever is wrong with a row gets a name. A *fault* keeps it from being trained as it is written; a *remark* does not.

Source: haotian-liu/LLaVA train/train.py `preprocess_multimodal` @ c121f04.
"""

from dataclasses import dataclass
from typing import Any

from llava_ohd.llava15.conversation import CONTROL, IMAGE

__all__ = ["FAULTS", "REMARKS", "Finding", "examine"]

FAULTS = {
    "format": "the row is in neither of the two formats",
    "speakers": "human and gpt (user and assistant) do not speak in turn",
    "empty_question": "a question without text, of which LLaVA trains nothing",
    "empty_answer": "an answer without text",
    "unmatched_image": "as many <image> as images are expected, and none in answers",
    "control_token": "a text has <s>, </s> or <unk>, which Llama reads as begin, end and padding",
    "template": "template plain takes an image and one caption",
    "missing_image": "there is no such image file",
    "corrupt_image": "Pillow cannot read the image",
    "truncated_image": "the image file ends too early",
    "nothing_trained": "the row is cut before its first answer",
}
REMARKS = {
    "over_long": "the row is cut at --model_max_length, as LLaVA cuts it",
    "mislabelled_image": "the image is of another kind than its name says; it is read nevertheless",
    "duplicate_id": "another row has the same id",
    "duplicate_row": "another row has the same images and texts",
    "template_words": "a text has ' ASSISTANT: ', for which LLaVA drops the row; here it trains",
}
_ROLES = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Finding:
    """What is to be said of a row: `kind`, a key of `FAULTS` or `REMARKS`, and the words for this row."""

    kind: str
    text: str

    @property
    def is_fault(self) -> bool:
        """Whether the row cannot be trained as it is written."""
        return self.kind in FAULTS


class _Fault(Exception):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.finding = Finding(kind, text)


def examine(record: Any, template: str) -> tuple[dict[str, Any] | None, list[Finding]]:
    """Reads one row.

    Args:
        record: The row as it stands in the file.
        template: `plain` or `v1`.

    Returns:
        `id` (text), `images` (names), `turns` (pairs of what the human says and the assistant answers; `<image>` is at
        the beginning of a turn with one image, as LLaVA moves it) and `words`, the length by which LLaVA groups rows;
        None with the fault where the row has one. And what else is to be said of it.
    """
    try:
        row = _row(record, template)
    except _Fault as fault:
        return None, [fault.finding]
    quoted = [text for turn in row["turns"] for text in turn if " ASSISTANT: " in f" {text} "]
    remark = Finding("template_words", f"the text {quoted[0][:60]!r} has the template's own words") if quoted else None
    return row, [remark] if remark else []


def _row(record: Any, template: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise _Fault("format", f"it is {type(record).__name__}; an object is expected")
    said, images = _messages(record) if "messages" in record else _conversations(record)
    if said and said[0][0] == "gpt":  # LLaVA skips an opening that is not from the human
        said, opening = said[1:], said[0][1]
    else:
        opening = ""
    speakers = [speaker for speaker, _ in said]
    if not said or speakers != ["human", "gpt"] * (len(said) // 2):
        raise _Fault("speakers", f"the speakers are {speakers}; human and gpt in turn are expected")
    texts = [text for _, text in said]
    _check_texts(texts, images)
    if template == "plain" and (len(images) != 1 or len(texts) != 2):
        raise _Fault("template", "template plain takes an image and one caption; else use --version v1")
    words = sum(len(text.split()) for text in [opening, *texts])
    turns = [[_image_first(human), answer] for human, answer in zip(texts[::2], texts[1::2], strict=True)]
    return {"id": str(record.get("id", "")), "images": images, "turns": turns, "words": words if images else -words}


def _check_texts(texts: list[str], images: list[str]) -> None:
    if not all(texts[1::2]):
        raise _Fault("empty_answer", "an answer must not be empty")
    if not all(texts[::2]):
        raise _Fault("empty_question", "a question must not be empty; LLaVA trains nothing of such a row")
    marks = sum(text.count(IMAGE) for text in texts[::2])
    if any(IMAGE in text for text in texts[1::2]) or marks != len(images):
        raise _Fault(
            "unmatched_image",
            f"{marks} {IMAGE} in what the human says and {len(images) or 'no'} image{'s' * (len(images) > 1)}; as many "
            "are expected, and none in answers",
        )
    for token in CONTROL:
        if any(token in text for text in texts):
            raise _Fault("control_token", f"a text has {token}, which is a control token of Llama; write it otherwise")


def _conversations(record: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Reads LLaVA's format: speakers with texts, and images."""
    said = record.get("conversations")
    if not isinstance(said, list) or not all(isinstance(part, dict) for part in said):
        raise _Fault("format", f"no list 'conversations' of {{from, value}}; its keys are {sorted(record)}")
    if not all(isinstance(part.get("value"), str) for part in said):
        raise _Fault("format", "every 'value' must be text")
    return [(str(part.get("from")), part["value"]) for part in said], _names(record.get("image"))


def _messages(record: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """Reads the format of chat datasets: speakers with texts, and images."""
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _Fault("format", "'messages' must be a list of {role, content}")
    beside = _names(record.get("images", record.get("image")))
    said, inside = [], []
    for message in messages:
        role = message.get("role")
        if role not in _ROLES:
            raise _Fault(
                "speakers", f"role {role!r}; user and assistant are expected (templates bring their own system)"
            )
        text, names = _content(message.get("content"))
        said.append((_ROLES[role], text))
        inside += names
    if inside and beside:
        raise _Fault("format", "images are named both in 'messages' and beside them; once is expected")
    return said, inside or beside


def _content(content: Any) -> tuple[str, list[str]]:
    """Returns the text of a message, with `<image>` for every image, and the images that it names."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise _Fault("format", f"'content' is {type(content).__name__}; text or a list of parts is expected")
    texts, names = [], []
    for part in content:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(IMAGE)
            named = [part[key] for key in ("path", "image", "url", "image_url") if part.get(key) is not None]
            names += _names(named[0].get("url") if named and isinstance(named[0], dict) else named[:1])
        else:
            raise _Fault("format", f"a part of type {kind!r} in 'content'; text and image are expected")
    return "\n".join(texts), names


def _names(image: Any) -> list[str]:
    names = [] if image is None else image if isinstance(image, list) else [image]
    if not all(isinstance(name, str) and name for name in names):
        raise _Fault("format", f"image is {image!r}; a file name, a list of names, or none at all is expected")
    if remote := [name for name in names if name.startswith(("http://", "https://", "data:"))]:
        raise _Fault("format", f"image {remote[0][:60]} is no file; download it and give its name")
    return list(names)


def _image_first(human: str) -> str:
    if human.count(IMAGE) != 1:
        return human
    return f"{IMAGE}\n{human.replace(IMAGE, '').strip()}".strip()
