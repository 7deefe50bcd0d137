"""HallusionBench, yes-no answers: by question, by figure (all its questions right), by question over all its figures.

Paper: arXiv 2310.14566. Higher is better. Two ways of counting are in use, over different questions:

- `vlmevalkit`: the 951 questions that have an image; an answer without a verdict is wrong.
- `official`: all 1129, as tianyi-lab's utils.py counts what its GPT judge says, with the answer's first word in place
  of the judge: where a visual supplement is not shown (VS, figure 0) no verdict is right, and such rows are no figure.

aAcc: share of questions. fAcc: share of figures all of whose questions are right. qAcc: share of questions that are
right in all their figures. A figure or question is that of one set of one subcategory of VD or VS.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.answers import RecordedAnswer, join, short, whole_characters
from llava_ohd.evals.yes_no import one_word_of_two, strict, unread_line
from llava_ohd.files import read_jsonl
from llava_ohd.records import Metric, Question

__all__ = ["RULES", "HallusionQuestion", "notes", "read_answers", "read_questions", "score"]

RULES = {
    "vlmevalkit": "vlmevalkit (open-compass/VLMEvalKit@e8e78f0 vlmeval/dataset/utils/yorn.py, no judge)",
    "official": "official (tianyi-lab/HallusionBench@744007c utils.py, the answer's first word in place of the judge)",
}
_ID = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
_DIGITS = {"0": "No", "1": "Yes", "2": ""}  # what the official script asks a model for


@dataclass(frozen=True)
class HallusionQuestion(Question):
    """A question; the id is `<category>_<subcategory>_<visual_input>_<set>_<figure>_<question>`, as VLMEvalKit's index.

    Attributes:
        category: `VD` (visual dependent) or `VS` (visual supplement).
        figure: Names the figure.
        asked: Names the question whatever the figure.
        shown: Whether there is an image.
        original: Whether this is figure 0.
        label: Whether yes is right.
    """

    category: str
    figure: str
    asked: str
    shown: bool
    original: bool
    label: bool


def read_questions(path: Path) -> list[HallusionQuestion]:
    """Reads HallusionBench.json.

    Raises:
        DataFormatError: missing or damaged, an answer other than 0 and 1, or an id that occurs twice.
    """
    questions = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            category, subcategory, visual, group, figure, asked = (str(row[key]) for key in _ID)
            label, text = {"0": False, "1": True}[str(row["gt_answer"])], str(row["question"])
        except KeyError as error:
            raise DataFormatError(
                f"{path} row {number} is not a question of HallusionBench: {error}; {', '.join(_ID)}, question and "
                "gt_answer (0 or 1) are expected"
            ) from None
        kind = f"{category}_{subcategory}_{group}"
        questions.append(
            HallusionQuestion(
                _name(row),
                str(row.get("filename") or ""),
                text,
                category,
                f"{kind}_{figure}",
                f"{kind}_{asked}",
                visual != "0",
                figure == "0",
                label,
            )
        )
    if len({question.id for question in questions}) < len(questions):
        raise DataFormatError(f"{path}: a question occurs twice; answers could not be told apart")
    return questions


def _name(row: Mapping[str, Any]) -> str:
    return "_".join(str(row[key]) for key in _ID)


def read_answers(path: Path) -> list[RecordedAnswer]:
    """Reads rows of HallusionBench.json with `model_prediction`, or rows of `question_id` or `index` and `text`.

    A prediction is a text, or 0 (no), 1 (yes), 2 (uncertain), which the official script asks for.

    Raises:
        DataFormatError: missing, damaged, a row that is neither, with a key twice, or with half a character.
    """
    answers = []
    for number, row in enumerate(read_jsonl(path, unique_keys=True), 1):
        official = set(_ID) <= set(row)
        name = _name(row) if official else row.get("question_id", row.get("index"))
        text = row.get("model_prediction") if official else row.get("text", row.get("prediction"))
        text = str(text) if isinstance(text, int) and not isinstance(text, bool) else text
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataFormatError(
                f"{path} row {number} has the keys {short(sorted(row)[:12], 300)}; a row of HallusionBench.json with "
                "model_prediction, or question_id and text, is expected"
            )
        prompt = row.get("question") if official else row.get("prompt")
        if not isinstance(prompt, str | None):
            raise DataFormatError(f"{path} row {number}: what was asked is {short(prompt)}; a text is expected")
        whole_characters(path, number, name, text, prompt)
        answers.append(RecordedAnswer(name, text, None, prompt))
    return answers


def score(
    questions: Sequence[HallusionQuestion], answers: Sequence[RecordedAnswer], rule: str = "vlmevalkit"
) -> list[Metric]:
    """Scores answers; by `vlmevalkit` those to questions without an image may be missing, and do not count.

    Returns:
        `a_acc`, `f_acc`, `q_acc`, the same as `VD/...` and `VS/...`; `yes_ratio`, `unparsed` and what constant
        answers get (`always_yes/...`, `always_no/...`) describe.

    Raises:
        AnswersMismatch: the answers are not those to the questions.
    """
    if rule == "vlmevalkit":
        unseen = {question.id: question for question in questions if not question.shown}
        spare = [answer for answer in answers if answer.question_id in unseen]
        join([unseen[name] for name in {answer.question_id for answer in spare}], spare)  # not counted, yet no others
        answers = [answer for answer in answers if answer.question_id not in unseen]
        questions = [question for question in questions if question.shown]
    said = [_reader(rule)(text) for text in join(questions, answers)]
    constant = [
        replace(metric, name=f"{name}/{metric.name}", better="none")
        for name, word in (("always_yes", True), ("always_no", False))
        for metric in _scores("", questions, [word] * len(said), rule)
    ]
    parts = []
    for category in dict.fromkeys(question.category for question in questions):
        rows = [(q, s) for q, s in zip(questions, said, strict=True) if q.category == category]
        parts += _scores(f"{category}/", [q for q, _ in rows], [s for _, s in rows], rule)
    return [
        *_scores("", questions, said, rule),
        *parts,
        Metric("yes_ratio", said.count(True) / len(said), len(said), "none"),
        Metric("unparsed", said.count(None) / len(said), len(said), "none"),
        *constant,
    ]


def _reader(rule: str) -> Callable[[str], bool | None]:
    read = one_word_of_two if rule == "vlmevalkit" else strict
    return lambda text: read(_DIGITS.get(text.strip(), text))


def notes(answers: Iterable[RecordedAnswer], rule: str = "vlmevalkit") -> list[str]:
    """Says aloud when answers could not be read."""
    unread = unread_line({answer.question_id: answer.text for answer in answers}, _reader(rule))
    meaning = "they count as wrong" + (", and as right where no figure is shown" if rule == "official" else "")
    return [f"{unread}; {meaning}"] if unread else []


def _scores(
    prefix: str, questions: Sequence[HallusionQuestion], said: Sequence[bool | None], rule: str
) -> list[Metric]:
    rows = []
    for question, answer in zip(questions, said, strict=True):
        unsure_is_right = rule == "official" and question.category == "VS" and question.original
        rows.append((question, answer == question.label or (answer is None and unsure_is_right)))
    figures = [row for row in rows if rule == "vlmevalkit" or row[0].category != "VS" or not row[0].original]
    return [
        _all_right(f"{prefix}a_acc", rows, lambda question: question.id),
        _all_right(f"{prefix}f_acc", figures, lambda question: question.figure),
        _all_right(f"{prefix}q_acc", rows, lambda question: question.asked),
    ]


def _all_right(
    name: str, rows: Iterable[tuple[HallusionQuestion, bool]], group: Callable[[HallusionQuestion], str]
) -> Metric:
    found: dict[str, bool] = {}
    for question, right in rows:
        found[group(question)] = found.get(group(question), True) and right
    return Metric(name, sum(found.values()) / len(found) if found else 0.0, len(found), "higher")
