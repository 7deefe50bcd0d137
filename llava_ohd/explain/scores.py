"""One number for a caption and its image, from cosines and from words.

Two metrics are published as F-CLIPScore: that of Nam et al. (arXiv 2412.18404), made of the words that do not fit, is
`f_clip_score` here; that of Oh and Hwang (arXiv 2502.20034), a mean over the nouns, is `noun_clip_score`.
"""

from collections.abc import Sequence

from llava_ohd.evals.dense_numbers import clip_score, f_clip_score, ref_clip_score

__all__ = ["clip_score", "f_clip_score", "noun_clip_score", "ref_clip_score"]

_LEAST = 1e-7


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
