"""Which answer belongs to which of POPE's questions, in every form that answer files have.

1. Ids of this package (`random/7`), or LLaVA's (10000007) where the prompt is there to check: by id.
2. Image and question, no usable id (OHD-Caps' files): by these. A question that several splits share has as many
   answers, or every question has one.
3. Questions alone (POPE's files): by order, if every question from the first to the last is that of the set.

A split without any answer is not scored; one with a part of its answers is refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from llava_ohd.errors import AnswersMismatch
from llava_ohd.evals.answers import RecordedAnswer, join, mismatch
from llava_ohd.evals.pope_sets import PopeQuestion
from llava_ohd.records import Answer

__all__ = ["SUFFIX", "answers_for", "bare", "match"]

SUFFIX = "\nAnswer the question using a single word or phrase."
_LLAVA_FIRST_ID = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}

_ALLOWED = f"After a question only {SUFFIX!r} may follow: the answer to another prompt is another answer"

Key = tuple[str, str]


def bare(prompt: str) -> str:
    """Takes away what does not make another question: LLaVA's suffix, and the old files' typo "imange"."""
    plain = prompt.replace("<image>", "").replace(SUFFIX, "").replace("imange", "image")
    return re.sub(r"\s+", " ", plain).strip()


def answers_for(questions: Sequence[PopeQuestion], answers: Iterable[Answer]) -> list[str]:
    """Finds the answer to each question.

    Raises:
        AnswersMismatch: the answers are not exactly those to the questions.
    """
    found = match(questions, answers)
    missing = [f"{q.id!r} ({q.image}: {q.prompt!r})" for q in questions if q.id not in found]
    if missing:
        raise mismatch(len(questions), missing)
    return [found[question.id] for question in questions]


def match(questions: Sequence[PopeQuestion], answers: Iterable[Answer]) -> dict[str, str]:
    """Finds the answer to each question of the splits that were answered.

    Args:
        questions: Of all splits, ids distinct.
        answers: In any order, in one of the three forms.

    Returns:
        Text by question id, in the order of `questions`; every question of a split or none.

    Raises:
        AnswersMismatch: the answers are not exactly those to the questions of some splits.
    """
    given = list(answers)
    rows = [answer for answer in given if isinstance(answer, RecordedAnswer)]
    if len(rows) == len(given) and rows and not any("/" in row.question_id for row in rows):
        placed = all(row.image is not None and row.prompt is not None for row in rows)
        if all(row.question_id.isdecimal() and row.prompt is not None for row in rows):
            try:
                return _by_id(questions, rows)
            except AnswersMismatch:
                if not placed:
                    raise
        if placed:
            return _by_image(questions, rows)
        if all(row.question_id == "" and row.prompt is not None for row in rows):
            return _by_order(questions, rows)
    return _by_id(questions, given)


def _by_id(questions: Sequence[PopeQuestion], answers: Sequence[Answer]) -> dict[str, str]:
    own = [_with_own_id(answer) for answer in answers]
    splits = {answer.question_id.partition("/")[0] for answer in own}
    asked = [question for question in questions if question.split in splits] or questions
    texts = join(asked, own, same_prompt=bare, allowed=_ALLOWED)
    return {question.id: text for question, text in zip(asked, texts, strict=True)}


def _with_own_id(answer: Answer) -> Answer:
    # A bare number says too little: another version of the files has other questions under it. So the prompt must
    # be there to check.
    prompt = getattr(answer, "prompt", None)
    if not answer.question_id.isdecimal() or prompt is None or len(answer.question_id) > 9:
        return answer
    number = int(answer.question_id)
    split, first = max(
        ((split, first) for split, first in _LLAVA_FIRST_ID.items() if first < number or first == 0),
        key=lambda row: row[1],
    )
    return RecordedAnswer(f"{split}/{number - first}", answer.text, getattr(answer, "image", None), prompt)


def _by_image(questions: Sequence[PopeQuestion], rows: Sequence[RecordedAnswer]) -> dict[str, str]:
    images = {question.image for question in questions}
    texts: dict[Key, list[str]] = {}
    for row in rows:
        texts.setdefault((_known_image(row.image or "", images), bare(row.prompt or "")), []).append(row.text)
    keys = {question.id: (question.image, bare(question.prompt)) for question in questions}
    asked = [question for part in _answered_parts(questions, keys, texts) for question in part]
    wanted = Counter(keys[question.id] for question in asked)
    once = all(len(said) == 1 for said in texts.values())  # each distinct question was asked once, for all splits
    missing = [f"{q.id!r} {keys[q.id]}" for q in asked if keys[q.id] not in texts]
    extra = [str(key) for key in texts if key not in wanted]
    counts = {key: (len(said), 1 if once else wanted[key]) for key, said in texts.items() if key in wanted}
    shown = {key: f"{key} has {given} answers for {needed} questions" for key, (given, needed) in counts.items()}
    missing += [shown[key] for key, (given, needed) in counts.items() if given < needed]
    twice = [shown[key] for key, (given, needed) in counts.items() if given > needed]
    if missing or extra or twice:
        raise mismatch(len(asked), missing, extra, twice, allowed=_ALLOWED if _has_longer(questions, texts) else "")
    _check_order_does_not_matter(asked, keys, texts)
    left = {key: iter(said if len(said) > 1 else said * wanted[key]) for key, said in texts.items()}
    return {question.id: next(left[keys[question.id]]) for question in asked}


def _has_longer(questions: Iterable[PopeQuestion], texts: Iterable[Key]) -> bool:
    """Says whether a prompt is a question of the set and more."""
    asked = {(question.image, bare(question.prompt)) for question in questions}
    return any(key not in asked and (key[0], f"{key[1].partition('?')[0]}?") in asked for key in texts)


def _known_image(given: str, images: set[str]) -> str:
    """Returns the image of the set that a path names, whatever folder it was in; else the path."""
    parts = given.replace("\\", "/").lstrip("/").split("/")
    suffixes = ("/".join(parts[first:]) for first in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in images), given)


def _answered_parts(
    questions: Sequence[PopeQuestion], keys: dict[str, Key], texts: dict[Key, list[str]]
) -> list[list[PopeQuestion]]:
    """Returns the splits that the answers are to; those with a part of them only if there is no other reading."""
    parts: dict[str, list[PopeQuestion]] = {}
    for question in questions:
        parts.setdefault(question.split, []).append(question)
    whole = [part for part in parts.values() if all(keys[question.id] in texts for question in part)]
    rest = texts.keys() - {keys[question.id] for part in whole for question in part}
    # What is left over beside whole splits is of a split that lacks some: it is shown as such.
    torn = [part for part in parts.values() if part not in whole and any(keys[q.id] in rest for q in part)]
    return [*whole, *torn] or list(parts.values())


def _check_order_does_not_matter(
    asked: Sequence[PopeQuestion], keys: dict[str, Key], texts: dict[Key, list[str]]
) -> None:
    splits: dict[Key, set[str]] = {}
    for question in asked:
        splits.setdefault(keys[question.id], set()).add(question.split)
    unclear = [key for key, said in texts.items() if len(set(said)) > 1 and len(splits[key]) > 1]
    if unclear:
        raise AnswersMismatch(
            f"{len(unclear)} questions stand in several splits and have different answers, first: {unclear[0]}. "
            "Which is of which split is not said; score the file of each split alone, or give ids such as random/7"
        )


def _by_order(questions: Sequence[PopeQuestion], rows: Sequence[RecordedAnswer]) -> dict[str, str]:
    parts: dict[str, list[PopeQuestion]] = {}
    for question in questions:
        parts.setdefault(question.split, []).append(question)
    asked = [bare(row.prompt or "") for row in rows]
    expected = {split: [bare(question.prompt) for question in part] for split, part in parts.items()}
    found: dict[str, str] = {}
    start = 0
    while start < len(rows):
        here = [split for split, texts in expected.items() if asked[start : start + len(texts)] == texts]
        if not here:
            raise _out_of_order(parts, expected, asked[start:])
        texts = [row.text for row in rows[start : start + len(expected[here[0]])]]
        found |= {question.id: text for question, text in zip(parts[here[0]], texts, strict=True)}
        start += len(expected.pop(here[0]))
    return {question.id: found[question.id] for question in questions if question.id in found}


def _out_of_order(
    parts: dict[str, list[PopeQuestion]], expected: dict[str, list[str]], asked: Sequence[str]
) -> AnswersMismatch:
    if not expected:
        return mismatch(0, extra=[repr(prompt) for prompt in asked])
    nearest = max(expected, key=lambda split: sum(a == b for a, b in zip(asked, expected[split], strict=False)))
    part = [f"{q.id!r} ({q.image}: {q.prompt!r})" for q in parts[nearest]]
    other = [
        f"{shown} was asked as {prompt!r}"
        for shown, prompt, wanted in zip(part, asked, expected[nearest], strict=False)
        if prompt != wanted
    ]
    extra = [repr(prompt) for prompt in asked[len(part) :]]
    missing = part[len(asked) :]
    return mismatch(
        len(part), missing, () if other else extra, other=other, allowed=_ALLOWED if other else "", cut_off=not other
    )
