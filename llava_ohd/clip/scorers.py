"""How a caption is compared with an image: as a whole, object by object, or in every order of its objects.

CLIP's text tower favours the object that is named first, and forgives a wrong one that is named late. Two ways around
it, both without training, at the price of more texts to encode:

| scorer | texts per caption | score |
|---|---|---|
| `whole` | 1 | cosine with the caption |
| `split-mean` | its n object phrases | mean of their cosines |
| `split-min` | n | the smallest cosine |
| `split-softmin` | n | -τ log mean exp(-cosine / τ), τ the encoder's own temperature |
| `split-sum` | n | cosine with the sum of the unit vectors (released code of ComCO) |
| `...+whole` | n + 1 | the same with the whole caption as one more text |
| `permuted` | n! | mean of the cosines with the caption in every order of its phrases |

A soft minimum as a weighted mean could fall when a phrase fits better; this one cannot. Phrases are found by name,
article and adjectives included ("a red ball"); a caption in which none is found is compared as a whole. Of more than
`most` orders `permuted` takes rotations of shuffles, drawn by the phrases alone. What it sees of a caption does not
depend on its order, so that captions which differ in the order of their phrases tie exactly.

Source: arXiv 2502.19842 (splitting); clip-oscope/clip-oscope@59f5a52 *_Sum.py; Oh and Hwang (the mean with
the whole caption).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import factorial, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.embedding import embed_captions
from llava_ohd.errors import OptionError
from llava_ohd.ohd_caps.lexicon import Lexicon

__all__ = ["SCORERS", "WHOLE", "ReadCaptions", "Scorer", "cost_settings", "make_scorer", "orders", "read_captions"]

_SPLITS = ("split-mean", "split-min", "split-softmin", "split-sum")
SCORERS = ("whole", *_SPLITS, *(f"{name}+whole" for name in _SPLITS), "permuted")
_MOST = 24  # orders of one caption: all of four phrases

Join = Callable[..., Tensor]


def _mean(cosines: Tensor, temperature: float) -> Tensor:
    return cosines.mean(-1)


def _least(cosines: Tensor, temperature: float) -> Tensor:
    return cosines.amin(-1)


def _soft_least(cosines: Tensor, temperature: float) -> Tensor:
    return -temperature * ((-cosines / temperature).logsumexp(-1) - log(cosines.shape[-1]))


_JOINS: dict[str, Join] = {"mean": _mean, "sum": _mean, "min": _least, "softmin": _soft_least}


@dataclass(frozen=True)
class Scorer:
    """One way of comparing.

    Attributes:
        name: One of `SCORERS`.
        texts: From a caption to the texts that are encoded for it, at least one.
        join: From cosines (..., T) with these, and the encoder's temperature, to scores (...).
        summed: Whether the texts' unit vectors are added up first.
    """

    name: str
    texts: Callable[[str], Sequence[str]]
    join: Join = _mean
    summed: bool = False


WHOLE = Scorer("whole", lambda caption: [caption])


def make_scorer(name: str = "whole", vocabulary: Sequence[str] = (), most: int = _MOST) -> Scorer:
    """Returns a scorer by its name.

    Args:
        name: One of `SCORERS`.
        vocabulary: Names of the objects that are looked for in captions; not needed for `whole`.
        most: Orders of one caption, at most (`permuted`).

    Raises:
        OptionError: another name.
    """
    if name not in SCORERS:
        raise OptionError(f"--scorer {name}: one of {', '.join(SCORERS)} is expected")
    if name == "whole":
        return WHOLE
    lexicon = Lexicon(vocabulary)
    if name == "permuted":
        return Scorer(name, partial(_permuted, lexicon=lexicon, most=most))
    way, _, whole = name.removeprefix("split-").partition("+")
    texts = partial(_split, lexicon=lexicon, whole=bool(whole))
    return Scorer(name, texts, _JOINS[way], way == "sum")


def _phrases(caption: str, lexicon: Lexicon) -> list[tuple[int, int]]:
    """Returns where the object phrases of a caption begin and end, from left to right."""
    return [(mention.start, mention.end) for mention in lexicon.mentions(caption)]


def _split(caption: str, lexicon: Lexicon, whole: bool) -> list[str]:
    phrases = sorted(caption[start:end].lower() for start, end in _phrases(caption, lexicon))
    if not phrases:
        return [caption]
    return [*phrases, caption] if whole else phrases


def _permuted(caption: str, lexicon: Lexicon, most: int) -> list[str]:
    """The caption with its phrases in other orders; lower case, as CLIP's tokenizer makes it anyway."""
    text = caption.lower()
    places = _phrases(text, lexicon)
    if len(places) < 2:
        return [caption]
    ends = [0, *(end for _, end in places)]
    between = [text[end:start] for end, (start, _) in zip(ends, places, strict=False)]
    tail = text[ends[-1] :]
    return [
        "".join(f"{gap}{phrase}" for gap, phrase in zip(between, row, strict=True)) + tail
        for row in orders([text[start:end] for start, end in places], most)
    ]


def orders(phrases: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Returns all orders of phrases, or some; the same ones in whatever order the phrases are given.

    Args:
        phrases: At least one.
        most: How many, about; fewer than all are rotations of shuffles, in which each phrase is once in every place.
    """
    row = tuple(sorted(phrases))
    if factorial(len(row)) <= most:
        return list(permutations(row))
    rng = random.Random("\n".join(row))
    found = []
    for _ in range(max(1, most // len(row))):
        shuffled = tuple(rng.sample(row, len(row)))
        found += [shuffled[i:] + shuffled[:i] for i in range(len(row))]
    return found


@dataclass(frozen=True)
class ReadCaptions:
    """Captions as an encoder reads them.

    Attributes:
        texts: Unit vectors (U, D) of all different texts.
        members: Which texts each caption consists of, in ascending order.
        join: From cosines (..., T) to scores (...).
        cost: Different captions, and texts that were encoded for them.
    """

    texts: Tensor
    members: Sequence[tuple[int, ...]]
    join: Callable[[Tensor], Tensor]
    cost: tuple[int, int]

    def cosines(self, captions: Sequence[int], images: Tensor) -> Tensor:
        """Compares captions with images; captions that consist of the same texts are compared once and tie exactly.

        Args:
            captions: Numbers of captions.
            images: Unit vector (D,) or vectors (I, D).

        Returns:
            (len(captions),) or (I, len(captions)).
        """
        wanted = [self.members[number] for number in captions]
        needed = sorted({text for row in wanted for text in row})
        column = {text: place for place, text in enumerate(needed)}
        vectors = self.texts[torch.tensor(needed)]  # once: a product of equal rows need not be equal to the last bit
        found = vectors @ images if images.ndim == 1 else images @ vectors.T
        if all(len(row) == 1 for row in wanted):
            return found[..., torch.tensor([column[row[0]] for row in wanted])]
        joined = {row: self.join(found[..., torch.tensor([column[text] for text in row])]) for row in set(wanted)}
        return torch.stack([joined[row] for row in wanted], -1)


def read_captions(model: Any, tokenizer: Any, captions: Sequence[str], scorer: Scorer) -> ReadCaptions:
    """Encodes what a scorer compares, each different text once.

    Args:
        model: CLIPModel in eval mode.
        tokenizer: Its tokenizer.
        captions: Any number.
        scorer: The way of comparing.
    """
    parts = {caption: scorer.texts(caption) for caption in dict.fromkeys(captions)}
    texts, which = embed_captions(model, tokenizer, [text for row in parts.values() for text in row])
    numbers = which.split([len(row) for row in parts.values()])
    members = {caption: tuple(sorted(row.tolist())) for caption, row in zip(parts, numbers, strict=True)}
    cost = (len(parts), len(texts))
    if scorer.summed:
        different = {row: place for place, row in enumerate(dict.fromkeys(members.values()))}
        texts = torch.stack([F.normalize(texts[torch.tensor(row)].sum(0), dim=-1) for row in different])
        members = {caption: (different[row],) for caption, row in members.items()}
    join = partial(scorer.join, temperature=1 / model.logit_scale.exp().item())
    return ReadCaptions(texts, [members[caption] for caption in captions], join, cost)


def cost_settings(scorer: Scorer, cost: tuple[int, int]) -> dict[str, Any]:
    """Returns what results say of a scorer; nothing of `whole`, so that these stay comparable with older ones.

    Args:
        scorer: The scorer.
        cost: Different captions, and texts that were encoded for them.
    """
    captions, texts = cost
    return {} if scorer.name == WHOLE.name else {"scorer": scorer.name, "captions": captions, "texts_encoded": texts}
