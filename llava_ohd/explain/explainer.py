"""Captions of images, word by word: which words an encoder finds in the image, and which it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llava_ohd.errors import OptionError
from llava_ohd.evals.dense import is_word
from llava_ohd.explain.attribution import VARIANTS, Attribution, attribute
from llava_ohd.explain.scores import clip_score, f_clip_score
from llava_ohd.explain.words import TEMPLATE, Text, prepare
from llava_ohd.progress import track

__all__ = [
    "THRESHOLD",
    "ExplainConfig",
    "Explanation",
    "ScoredWord",
    "explain",
    "is_published_scale",
    "threshold_at",
]

THRESHOLD = -5e-5
_PUBLISHED = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}


def is_published_scale(config: Mapping[str, Any]) -> bool:
    """Says whether a text tower is of the geometry that `THRESHOLD` was found for, ViT-H/14's.

    Args:
        config: Of a CLIPModel, its config.json.
    """
    text = config.get("text_config") or {}
    return all(text.get(key) == value for key, value in _PUBLISHED.items())


@dataclass(frozen=True)
class ExplainConfig:
    """How words are scored.

    Attributes:
        layers: Last layers of the text tower that are looked at (3, the paper's).
        variant: Of `attribution.VARIANTS`.
        template: Stands before each caption, and is not scored ("A photo depicts ", the paper's).
        threshold: Words below it do not fit (-5e-5, the paper's, for ViT-H/14). It is tied to the encoder: to its
            heads, its layers, the spread of its cosines. `threshold_at` finds one for another encoder.
        cut: Leave words beyond the encoder's length without score instead of refusing the caption.
        batch: Captions at a time.
    """

    layers: int = 3
    variant: str = "clip4dm"
    template: str = TEMPLATE
    threshold: float = THRESHOLD
    cut: bool = False
    batch: int = 64

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise OptionError(f"variant {self.variant!r}: give one of {', '.join(VARIANTS)}")
        if self.template and not self.template.endswith(" "):
            raise OptionError(f"template {self.template!r}: its last character must be a blank, or it must be empty")
        for name in ("layers", "batch"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} {getattr(self, name)}: give a number of at least 1")


@dataclass(frozen=True)
class ScoredWord:
    """A word of a caption.

    Attributes:
        text: The word.
        start: Its first character in the caption.
        end: The one after its last.
        score: Attribution, the mean of its tokens'; None where the encoder does not read that far.
    """

    text: str
    start: int
    end: int
    score: float | None


@dataclass(frozen=True)
class Explanation:
    """A caption, its words, and how well it fits.

    Attributes:
        caption: The caption.
        words: In its order.
        cosine: Of image and caption, template included.
        threshold: Words below it do not fit.
    """

    caption: str
    words: tuple[ScoredWord, ...]
    cosine: float
    threshold: float

    @property
    def scores(self) -> list[float]:
        """The scores there are, in the order of the words, those of punctuation left out."""
        return [word.score for word in self.words if word.score is not None and is_word(word.text)]

    @property
    def wrong(self) -> tuple[ScoredWord, ...]:
        """The words that do not fit; punctuation alone is no word."""
        read = (word for word in self.words if word.score is not None and is_word(word.text))
        return tuple(word for word in read if word.score is not None and word.score < self.threshold)

    @property
    def clip_score(self) -> float:
        """2.5 times the cosine, at least 0."""
        return clip_score(self.cosine)

    @property
    def f_clip_score(self) -> float:
        """F-CLIPScore of Nam et al., at most 0; 0 where every word fits."""
        return f_clip_score(self.cosine, self.scores, self.threshold)


def explain(
    model: Any, tokenizer: Any, images_UD: Tensor, pairs: Sequence[tuple[int, str]], config: ExplainConfig | None = None
) -> list[Explanation]:
    """Scores the words of captions, captions of like length together.

    Args:
        model: CLIPModel in eval mode, float32 (`tower.load`).
        tokenizer: Its tokenizer.
        images_UD: Features of the images, each computed once (`clip.embedding.embed_images`).
        pairs: Number of an image, and a caption.
        config: How.

    Raises:
        DataFormatError: a caption has no word, or is longer than the encoder reads.
        OptionError: more layers than the text tower has.
    """
    config = config or ExplainConfig()
    length = model.config.text_config.max_position_embeddings
    texts = [prepare(tokenizer, caption, length, config.template, config.cut) for _, caption in pairs]
    order = sorted(range(len(pairs)), key=lambda number: len(texts[number].tokens))
    found: dict[int, Explanation] = {}
    for start in track(range(0, len(order), config.batch), "scoring words"):
        group = order[start : start + config.batch]
        seen = images_UD[[pairs[number][0] for number in group]]
        tokens = [texts[number].tokens for number in group]
        for number, one in zip(group, attribute(model, tokens, seen, config.layers, config.variant), strict=True):
            found[number] = _explanation(pairs[number][1], texts[number], one, config.threshold)
    return [found[number] for number in range(len(pairs))]


def _explanation(caption: str, text: Text, found: Attribution, threshold: float) -> Explanation:
    words = []
    for word, pieces in zip(text.words, text.pieces, strict=True):
        score = float(found.tokens[list(pieces)].mean()) if pieces else None
        words.append(ScoredWord(word.text, word.start, word.end, score))
    return Explanation(caption, tuple(words), found.cosine, threshold)


def threshold_at(right: Sequence[Explanation], share: float) -> float:
    """Returns the threshold under which a share of the words of right captions lies.

    Args:
        right: Captions that fit, other ones than those to be judged.
        share: Words that may be flagged wrongly, a fraction in (0, 1).

    Raises:
        OptionError: no share, or no words.
    """
    scores = sorted(score for one in right for score in one.scores)
    if not 0 < share < 1 or not scores:
        raise OptionError(f"share {share}, {len(scores)} words: give a share between 0 and 1, and captions with words")
    return scores[int(share * len(scores))]
