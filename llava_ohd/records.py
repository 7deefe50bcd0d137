"""The few types that stages exchange. Everything else that crosses a stage is a documented file."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["Answer", "Answerer", "Metric", "Question"]


@dataclass(frozen=True)
class Question:
    """One prompt about one image.

    Attributes:
        id: Unique inside its set; kept as text (benchmarks use both integers and strings).
        image: File name relative to the image folder of the set.
        prompt: What the user turn says, without image token or conversation template.
    """

    id: str
    image: str
    prompt: str


@dataclass(frozen=True)
class Answer:
    """The text that a model gave to the question with id `question_id`.

    Attributes:
        question_id: Of the question.
        text: As the model said it, without white space around.
        metadata: What else is known of the answer, such as probabilities; kept in the answers file.
    """

    question_id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)


@dataclass(frozen=True)
class Metric:
    """A number with its meaning.

    Attributes:
        name: Field name of the metric, e.g. `adversarial/accuracy`.
        value: Fraction in [0, 1] unless the name says otherwise (`length` is in words).
        n: Number of items that the value rests on.
        better: Which direction is better; "none" for a descriptive number such as a yes ratio.
    """

    name: str
    value: float
    n: int
    better: Literal["higher", "lower", "none"]


class Answerer(Protocol):
    """Anything that answers questions about images, in any order, each exactly once."""

    def answer(self, questions: Iterable[Question], max_new_tokens: int) -> Iterator[Answer]:
        """Yields one `Answer` per question; greedy decoding, at most `max_new_tokens` tokens each."""
        ...
