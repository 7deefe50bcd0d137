"""The fine-grained loss of OHD-Caps: as the paper prints it, as the released code computes it, and what lies between.

Letters: b images of this process, B of all processes, D embedding width, K negative captions an image, N negative
captions in a denominator. s(i, j) = scale · <I_i, T_j> compares image i with the caption of image j, n(i, k) = scale ·
<I_i, N_ik> with its own k-th negative; all in float32, because in bfloat16 a cosine of 0.3 is known to 0.002 only,
which a scale of 100 makes 0.2 of a margin of 2.

Source: arXiv 2410.03176, section 4, eq. 1-5; Yufang-Liu/clip_hallucination@8a748e6 finetune_clip/modeling_clip.py,
`CLIPModel.forward`. The two differ in more than constants, and `LossConfig` has a switch for each difference: in the
code L_2 has the opposite sign, both margins compare one caption with other images instead of one image with other
captions, L_2 looks at the best of them only, and a masked caption is a logit of 0 that counts in the means. What no
switch moves is the row that negatives stand in (eq. 2): the image's in the paper, the caption's in the code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_ohd.clip.gather import gather, gather_negatives, ranks

__all__ = ["LossConfig", "LossParts", "clip_loss"]

# paper section 5 "Training Details" and eq. 3-4; run.sh, argparse defaults and `forward` of the released code
_DEFAULTS: dict[str, dict[str, Any]] = {
    "paper": {"lambda1": 0.1, "lambda2": 0.1, "tau1": 2.0, "tau2": 2.0}
    | {"hardest": False, "l2_sign": "above", "axis": "texts", "mask": "inf"},
    "released": {"lambda1": 0.2, "lambda2": 0.2, "tau1": 5.0, "tau2": 5.0}
    | {"hardest": True, "l2_sign": "below", "axis": "images", "mask": "zero"},
}


@dataclass(frozen=True)
class LossConfig:
    """Which loss, with which weights; None stands for the value that belongs to the mode."""

    mode: Literal["paper", "released"] = "paper"
    lambda1: float | None = None  # weight of L_1, eq. 5; paper 0.1, released 0.2; 0 switches it off
    lambda2: float | None = None  # weight of L_2, eq. 5; paper 0.1, released 0.2; 0 switches it off
    tau1: float | None = None  # margin of L_1 in `margin_unit`, eq. 3; paper 2, released 5
    tau2: float | None = None  # margin of L_2 in `margin_unit`, eq. 4; paper 2, released 5
    margin_unit: Literal["logit", "cosine"] = "logit"  # of eq. 3 and 4: with or without the scale; the paper is silent
    hardest: bool | None = None  # L_2, eq. 4, against the best in-batch pair, not the mean; paper no, released yes
    neg_scope: Literal["own", "all"] = "own"  # eq. 2: whose negatives stand in a denominator; all: as in NegCLIP
    l2_sign: Literal["above", "below"] | None = None  # edited captions and in-batch pairs, eq. 4; released: below
    axis: Literal["texts", "images"] | None = None  # in-batch pairs of eq. 3 and 4: s(i, j), or s(j, i) as released
    mask: Literal["inf", "zero"] | None = None  # an empty slot is left out, or is a logit of 0 and counts in means

    @property
    def chosen(self) -> dict[str, Any]:
        """Returns all fields, with the mode's values filled in."""
        defaults = _DEFAULTS[self.mode]
        return {key: defaults[key] if value is None else value for key, value in vars(self).items()}

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """Returns lambda1, lambda2, tau1, tau2 with the mode's values filled in."""
        chosen = self.chosen
        return chosen["lambda1"], chosen["lambda2"], chosen["tau1"], chosen["tau2"]


@dataclass(frozen=True)
class LossParts:
    """The loss and what it is the sum of; scalars, float32.

    Attributes:
        total: contrastive + lambda1 · margin1 + lambda2 · margin2 (eq. 5).
        contrastive: Mean of the image-to-text and the text-to-image cross-entropy (eq. 1 and 2).
        margin1: L_1, unweighted (eq. 3).
        margin2: L_2, unweighted (eq. 4).
    """

    total: Tensor
    contrastive: Tensor
    margin1: Tensor
    margin2: Tensor


def clip_loss(
    images_bD: Tensor,
    captions_bD: Tensor,
    negatives_bKD: Tensor,
    valid_bK: Tensor,
    logit_scale: Tensor,
    config: LossConfig,
) -> LossParts:
    """Compares every image with its caption, the other captions of the batch and its own negative captions.

    Without valid negatives and with both weights 0 this is the plain loss of CLIP (eq. 1). Where several processes
    train together, the batch is that of all of them, and the loss the mean over this process's images.

    Args:
        images_bD: Image embeddings, any floating dtype, normalised here.
        captions_bD: Embeddings of the right captions.
        negatives_bKD: Embeddings of the negative captions; K may be 0.
        valid_bK: Bool, False where a slot is filler.
        logit_scale: Natural logarithm of the scale, as in CLIPModel; scalar.
        config: Mode, weights and switches.

    Returns:
        The loss and its parts. A slot that is not valid gets no gradient.

    Source: arXiv 2410.03176 eq. 1-5; modeling_clip.py@8a748e6.
    """
    with torch.autocast(images_bD.device.type, enabled=False):
        images_bD, captions_bD, negatives_bKD = (
            F.normalize(x.float(), dim=-1) for x in (images_bD, captions_bD, negatives_bKD)
        )
        scale, chosen = logit_scale.float().exp(), config.chosen
        everywhere = gather(images_bD, captions_bD)
        own_b = everywhere.first + torch.arange(len(images_bD), device=images_bD.device)
        s_bB = scale * images_bD @ everywhere.captions_BD.T

        def texts() -> Tensor:  # s(j, i), (b, B); for one process a view, made where it is used
            return s_bB.T if ranks() == 1 else scale * captions_bD @ everywhere.images_BD.T

        n_bK = scale * torch.einsum("bd,bkd->bk", images_bD, negatives_bKD)
        n_bN, valid_bN = n_bK, valid_bK
        if config.neg_scope == "all":
            negatives_ND, valid_N = gather_negatives(negatives_bKD, valid_bK)
            n_bN, valid_bN = scale * images_bD @ negatives_ND.T, valid_N.expand(len(images_bD), -1)
        contrastive = _contrastive(s_bB, texts, own_b, n_bN, valid_bN, chosen)
        unit = scale if config.margin_unit == "cosine" else 1.0
        in_batch_bB = s_bB if chosen["axis"] == "texts" else texts()
        margin1 = _margin1(in_batch_bB / unit, own_b, n_bK / unit, valid_bK, chosen)
        margin2 = _margin2(in_batch_bB / unit, own_b, n_bK / unit, valid_bK, chosen)
        total = contrastive + chosen["lambda1"] * margin1 + chosen["lambda2"] * margin2
        return LossParts(total, contrastive, margin1, margin2)


def _contrastive(
    s_bB: Tensor, texts: Callable[[], Tensor], own_b: Tensor, n_bN: Tensor, valid_bN: Tensor, chosen: dict[str, Any]
) -> Tensor:
    """Eq. 1 and 2: L_i2t has negatives in its denominator, L_t2i has none; `per_text_loss`: the other way round."""
    n_bN = n_bN.masked_fill(~valid_bN, -torch.inf) if chosen["mask"] == "inf" else n_bN * valid_bN
    paper = chosen["mode"] == "paper"
    with_negatives = F.cross_entropy(torch.cat([s_bB if paper else texts(), n_bN], 1), own_b)
    return (with_negatives + F.cross_entropy(texts() if paper else s_bB, own_b)) / 2


def _margin1(in_batch_bB: Tensor, own_b: Tensor, n_bK: Tensor, valid_bK: Tensor, chosen: dict[str, Any]) -> Tensor:
    """Eq. 3: max(0, tau1 - s(i, i) + t), t over the in-batch pairs and the own negatives; `margin_loss`."""
    right_b1 = in_batch_bB.gather(1, own_b[:, None])
    hinge = F.relu(chosen["tau1"] - right_b1 + torch.cat([in_batch_bB, n_bK], 1))
    others_bB = _others(in_batch_bB, own_b)
    counted = torch.cat([others_bB, _counted(valid_bK, chosen)], 1)
    return _mean_per_row(hinge, torch.cat([others_bB, valid_bK], 1), counted)


def _margin2(in_batch_bB: Tensor, own_b: Tensor, n_bK: Tensor, valid_bK: Tensor, chosen: dict[str, Any]) -> Tensor:
    """Eq. 4: max(0, tau2 - n(i, k) + t), t over the in-batch pairs: an edited caption is still partly right.

    With sign "below" max(0, tau2 + n(i, k) - t), as in `ne_margin_loss`.
    """
    if in_batch_bB.shape[1] == 1:
        return in_batch_bB.sum() * 0.0
    t_bT, kept_bT = in_batch_bB, _others(in_batch_bB, own_b)
    if chosen["hardest"]:
        t_bT = t_bT.masked_fill(~kept_bT, -torch.inf).amax(1, keepdim=True)
        kept_bT = torch.ones_like(t_bT, dtype=torch.bool)
    n_bK1, t_b1T, tau = n_bK[:, :, None], t_bT[:, None, :], chosen["tau2"]
    hinge_bKT = F.relu(tau - n_bK1 + t_b1T if chosen["l2_sign"] == "above" else tau + n_bK1 - t_b1T)
    hinge_bK = hinge_bKT.where(kept_bT[:, None], 0.0).sum(2) / kept_bT.sum(1, keepdim=True)
    return _mean_per_row(hinge_bK, valid_bK, _counted(valid_bK, chosen))


def _others(in_batch_bB: Tensor, own_b: Tensor) -> Tensor:
    """Returns a bool matrix (b, B), False where an image meets its own caption."""
    return own_b[:, None] != torch.arange(in_batch_bB.shape[1], device=own_b.device)


def _counted(valid_bK: Tensor, chosen: dict[str, Any]) -> Tensor:
    """Returns which slots a mean divides by: in the released code the empty ones too."""
    return valid_bK if chosen["mask"] == "inf" else torch.ones_like(valid_bK)


def _mean_per_row(values: Tensor, kept: Tensor, counted: Tensor) -> Tensor:
    """Sums the kept entries of each row over the number of counted ones, then averages: every image weighs the same."""
    return (values.where(kept, 0.0).sum(1) / counted.sum(1).clamp(min=1)).mean()
