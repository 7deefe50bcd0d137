"""One number for a caption and its image, from cosines and from words.

Two metrics are published as F-CLIPScore: that of Nam et al. (arXiv 2412.18404), made of the words that do not fit, is
`f_clip_score` here; that of Oh and Hwang (arXiv 2502.20034), a mean over the nouns, is `noun_clip_score`.
"""

from collections.abc import Sequence

from llava_ohd.errors import OptionError
from llava_ohd.evals.dense import f_clip_score

__all__ = ["clip_score", "f_clip_score", "noun_clip_score", "ref_clip_score"]

_LEAST = 1e-7


def clip_score(cosine: float) -> float:
    """Returns 2.5 max(cosine, 0). Source: Hessel et al. 2021, arXiv 2104.08718, section 3."""
    return 2.5 * max(cosine, 0.0)


def ref_clip_score(cosine: float, references: Sequence[float]) -> float:
    """Returns the harmonic mean of `clip_score` and the caption's largest cosine with a reference, at least 0.

    Raises:
        OptionError: there is no reference.

    Source: Hessel et al. 2021, arXiv 2104.08718, section 3.
    """
    if not references:
        raise OptionError("RefCLIPScore of 0 references: give at least one, or take CLIPScore")
    one, other = clip_score(cosine), max(0.0, *references)
    return 2 * one * other / (one + other) if one and other else 0.0


def noun_clip_score(caption: float, nouns: Sequence[float], scale: float = 100.0) -> float:
    """Returns the mean logit of a caption and its nouns, each noun alone; logits that are not positive count as 1e-7.

    Args:
        caption: Cosine of image and caption.
        nouns: Cosines of the image and each noun.
        scale: exp(logit_scale) of the encoder.

    Source: Oh and Hwang, arXiv 2502.20034; abzb1/f-clip, `fclipam`.
    """
    logits = [max(scale * cosine, _LEAST) for cosine in (caption, *nouns)]
    return sum(logits) / len(logits)
