"""The label mask of a training set, shown and checked before the first step.

What trains is found anew here, from the text: the tokens with labels are decoded and must read as the answers of the
row, each with the end that the template gives it. A mask that trains nothing, a question, an image or half an answer,
and a template that drops the questions, end the run before they cost GPU-hours.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llava_ohd.errors import StageFailed
from llava_ohd.llava15.conversation import IGNORE, IMAGE, IMAGE_TOKEN

if TYPE_CHECKING:
    from llava_ohd.llava15.dataset import TrainingRows

__all__ = ["audit"]

_SAMPLE = 64
_SHOWN = 300  # characters of a part


def audit(examples: "TrainingRows", rows: Any, stage: str, sample: int = _SAMPLE) -> list[str]:
    """Checks the masks of rows spread evenly over a training set, and describes them.

    Args:
        examples: Tokenises rows.
        rows: What `read_rows` returns.
        stage: `projector`, or one in which the language model trains.
        sample: Number of rows to look at.

    Returns:
        Lines to print: a row with what trains in double brackets, and the share that trains.

    Raises:
        StageFailed: a mask is wrong, or the template cannot belong to the stage; the message names the row.
    """
    count = min(sample, len(rows))
    chosen = rows.select([place * len(rows) // count for place in range(count)])
    trained = text = cut = 0
    lines: list[str] = []
    for row in chosen:
        if examples.template == "plain" and stage != "projector" and row["turns"][0][0].replace(IMAGE, "").strip():
            raise _wrong(row, f"template plain drops the question {row['turns'][0][0]!r}; give --version v1")
        ids, labels = examples.tokens(row["number"], row["turns"])
        spans = list(_spans(ids, labels, row))
        cut += _check(spans, row, examples, len(ids))
        trained += sum(len(span) for span, trains in spans if trains)
        text += len(ids) - ids.count(IMAGE_TOKEN)
        lines = lines or [
            f"label mask of row {row['number']}, template {examples.template}; what trains is in [[ ]]:",
            "  " + "".join(_shown(span, trains, examples.tokenizer) for span, trains in spans),
        ]
    said = f"trains: {trained / text:.1%} of the text tokens of {count} rows"
    return [*lines, said + (f"; {cut} of them are cut at {examples.longest} tokens" if cut else "")]


def _wrong(row: dict[str, Any], what: str) -> StageFailed:
    return StageFailed(f"label mask of row {row['number']}: {what}")


def _spans(ids: Sequence[int], labels: Sequence[int], row: dict[str, Any]) -> Iterator[tuple[list[int], bool]]:
    """Yields the runs of tokens that train, and that do not."""
    if len(ids) != len(labels) or any(label not in (IGNORE, token) for token, label in zip(ids, labels, strict=False)):
        raise _wrong(row, "the labels are neither the tokens themselves nor masked; this is a bug, please report it")
    span: list[int] = []
    for place, token in enumerate(ids):
        span.append(token)
        if place + 1 == len(ids) or (labels[place] == IGNORE) != (labels[place + 1] == IGNORE):
            yield span, labels[place] != IGNORE
            span = []


def _check(spans: Sequence[tuple[list[int], bool]], row: dict[str, Any], examples: "TrainingRows", length: int) -> bool:
    """Compares what trains with the answers of the row; returns whether the row is cut.

    Raises:
        StageFailed: they differ.
    """
    trained = [span for span, trains in spans if trains]
    answers = [answer for _, answer in row["turns"]]
    cut = length == examples.longest
    if not trained:
        cure = "raise --model_max_length, or give --data_policy skip" if cut else "is --version the model's template?"
        raise _wrong(row, f"nothing trains; {cure}")
    if len(trained) > len(answers) or (len(trained) < len(answers) and not cut):
        raise _wrong(row, f"{len(trained)} parts train, and there are {len(answers)} answers; is --version right?")
    end = examples.tokenizer.eos_token_id
    for place, (span, answer) in enumerate(zip(trained, answers, strict=False)):
        last = cut and place == len(trained) - 1
        if any(token < 0 for token in span):
            raise _wrong(row, "image tokens train; this is a bug, please report it")
        said, expected = _read(span, examples.tokenizer), _words(answer)
        if said != expected:  # a tokenizer may write letters otherwise
            expected = _read(examples.tokenizer([answer], add_special_tokens=False)["input_ids"][0], examples.tokenizer)
        if not (said == expected or (last and expected.startswith(said.rstrip("\ufffd")))):
            raise _wrong(row, f"{said[:80]!r} trains, but the answer is {expected[:80]!r}; is --version right?")
        if examples.template == "v1" and not last and span[-1] != end:
            raise _wrong(row, "no end token trains behind the answer: the model would never stop")
    return cut


def _read(span: Sequence[int], tokenizer: Any) -> str:
    return _words(tokenizer.decode(span, skip_special_tokens=True))


def _words(text: str) -> str:
    """Returns a text without what a tokenizer may add or drop at its ends and between words."""
    return " ".join(text.replace("</s>", "").replace("\u2581", " ").split())


def _shown(span: Sequence[int], trains: bool, tokenizer: Any) -> str:
    parts: list[str] = []
    run: list[int] = []
    images = 0
    for token in [*span, None]:
        if token == IMAGE_TOKEN:
            images += 1
        if images and token != IMAGE_TOKEN:
            parts.append(f"<image: {images} tokens>")
            images = 0
        if token is not None and token != IMAGE_TOKEN:
            run.append(token)
        elif run:
            parts.append(tokenizer.decode(run, skip_special_tokens=True))
            run = []
    if trains and span[-1] == tokenizer.eos_token_id and not parts[-1].endswith("</s>"):
        parts.append("</s>")
    text = "".join(parts).replace("\n", "\\n")
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"
    return f"[[{text}]]" if trains else text
