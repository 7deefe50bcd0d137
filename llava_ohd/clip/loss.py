"""The fine-grained loss of OHD-Caps: as the paper prints it, and as the released code computes it.

Letters: B images, D embedding width, K negative captions an image. s(i, j) = scale · <I_i, T_j> compares image i with
the caption of image j, n(i, k) = scale · <I_i, N_ik> with its own k-th negative caption; all in float32, because in
bfloat16 a cosine of 0.3 is known to 0.002 only, which a scale of 100 makes 0.2 of a margin of 2.

Source: arXiv 2410.03176, section 4, eq. 1-5; Yufang-Liu/clip_hallucination@8a748e6 finetune_clip/modeling_clip.py,
`CLIPModel.forward`. The two differ in more than constants: in the code L_2 has the opposite sign (it pushes edited
captions below the in-batch pairs instead of keeping them above), both margins compare one caption with other images
instead of one image with other captions, a masked caption is a logit of 0 instead of none, and masked entries count
in the means.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LossConfig", "LossParts", "clip_loss"]

# lambda1, lambda2, tau1, tau2: paper section 5 "Training Details"; run.sh and argparse defaults of the released code
_DEFAULTS = {"paper": (0.1, 0.1, 2.0, 2.0), "released": (0.2, 0.2, 5.0, 5.0)}


@dataclass(frozen=True)
class LossConfig:
    """Which loss, with which weights; None stands for the value that belongs to the mode."""

    mode: Literal["paper", "released"] = "paper"
    lambda1: float | None = None  # weight of L_1, eq. 5; paper 0.1, released 0.2; 0 switches it off
    lambda2: float | None = None  # weight of L_2, eq. 5; paper 0.1, released 0.2; 0 switches it off
    tau1: float | None = None  # margin of L_1 in `margin_unit`, eq. 3; paper 2, released 5
    tau2: float | None = None  # margin of L_2 in `margin_unit`, eq. 4; paper 2, released 5
    margin_unit: Literal["logit", "cosine"] = "logit"  # of eq. 3 and 4: with or without the scale; the paper is silent
    hardest: bool = False  # mode paper: L_2 against the best in-batch caption instead of the mean over all of them

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """Returns lambda1, lambda2, tau1, tau2 with the mode's values filled in."""
        chosen = (self.lambda1, self.lambda2, self.tau1, self.tau2)
        l1, l2, t1, t2 = (d if c is None else c for c, d in zip(chosen, _DEFAULTS[self.mode], strict=True))
        return l1, l2, t1, t2


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
    images_BD: Tensor,
    captions_BD: Tensor,
    negatives_BKD: Tensor,
    valid_BK: Tensor,
    logit_scale: Tensor,
    config: LossConfig,
) -> LossParts:
    """Compares every image with its caption, the other captions of the batch and its own negative captions.

    Without valid negatives and with both weights 0 this is the plain loss of CLIP (eq. 1).

    Args:
        images_BD: Image embeddings, any floating dtype, normalised here.
        captions_BD: Embeddings of the right captions.
        negatives_BKD: Embeddings of the negative captions; K may be 0.
        valid_BK: Bool, False where a slot is filler.
        logit_scale: Natural logarithm of the scale, as in CLIPModel; scalar.
        config: Mode and weights.

    Returns:
        The loss and its parts. A slot that is not valid gets no gradient.

    Source: arXiv 2410.03176 eq. 1-5; modeling_clip.py@8a748e6.
    """
    with torch.autocast(images_BD.device.type, enabled=False):
        images_BD, captions_BD, negatives_BKD = (
            F.normalize(x.float(), dim=-1) for x in (images_BD, captions_BD, negatives_BKD)
        )
        scale = logit_scale.float().exp()
        s_BB = scale * images_BD @ captions_BD.T
        n_BK = scale * torch.einsum("bd,bkd->bk", images_BD, negatives_BKD)
        unit = scale if config.margin_unit == "cosine" else 1.0
        lambda1, lambda2, tau1, tau2 = config.weights
        if config.mode == "paper":
            contrastive = _paper_contrastive(s_BB, n_BK, valid_BK)
            margin1 = _paper_margin1(s_BB / unit, n_BK / unit, valid_BK, tau1)
            margin2 = _paper_margin2(s_BB / unit, n_BK / unit, valid_BK, tau2, config.hardest)
        else:
            contrastive = _released_contrastive(s_BB, n_BK, valid_BK)
            margin1 = _released_margin1(s_BB / unit, n_BK / unit, valid_BK, tau1)
            margin2 = _released_margin2(s_BB / unit, n_BK / unit, valid_BK, tau2)
        return LossParts(contrastive + lambda1 * margin1 + lambda2 * margin2, contrastive, margin1, margin2)


def _others(s_BB: Tensor) -> Tensor:
    """Returns a bool matrix (B, B), True off the diagonal."""
    return ~torch.eye(len(s_BB), dtype=torch.bool, device=s_BB.device)


def _mean_per_row(values: Tensor, counted: Tensor) -> Tensor:
    """Averages the counted entries of each row, then the rows: every image weighs the same; an empty row gives 0."""
    return (values.where(counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)).mean()


def _paper_contrastive(s_BB: Tensor, n_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """Eq. 2 and eq. 1: L_i2t has the image's own negatives in its denominator, L_t2i has none."""
    own = torch.arange(len(s_BB), device=s_BB.device)
    image_to_text = F.cross_entropy(torch.cat([s_BB, n_BK.masked_fill(~valid_BK, -torch.inf)], 1), own)
    return (image_to_text + F.cross_entropy(s_BB.T, own)) / 2


def _paper_margin1(s_BB: Tensor, n_BK: Tensor, valid_BK: Tensor, tau: float) -> Tensor:
    """Eq. 3: max(0, tau1 - s(i,i) + t), t over the other captions of the batch and the own negatives."""
    hinge = F.relu(tau - s_BB.diagonal()[:, None] + torch.cat([s_BB, n_BK], 1))
    return _mean_per_row(hinge, torch.cat([_others(s_BB), valid_BK], 1))


def _paper_margin2(s_BB: Tensor, n_BK: Tensor, valid_BK: Tensor, tau: float, hardest: bool) -> Tensor:
    """Eq. 4: max(0, tau2 - n(i,k) + s(i,j)), j other than i: an edited caption is still partly right."""
    if len(s_BB) == 1:
        return s_BB.sum() * 0.0
    others_BB = _others(s_BB)
    if hardest:
        hinge_BK = F.relu(tau - n_BK + s_BB.masked_fill(~others_BB, -torch.inf).amax(1, keepdim=True))
    else:
        hinge_BKB = F.relu(tau - n_BK[:, :, None] + s_BB[:, None, :])
        hinge_BK = hinge_BKB.where(others_BB[:, None, :], 0.0).sum(2) / (len(s_BB) - 1)
    return _mean_per_row(hinge_BK, valid_BK)


def _released_contrastive(s_BB: Tensor, n_BK: Tensor, valid_BK: Tensor) -> Tensor:
    """`(per_text_loss + per_image_loss) / 2`: negatives stand in the text row, a masked one as a logit of 0."""
    own = torch.arange(len(s_BB), device=s_BB.device)
    per_text = F.cross_entropy(torch.cat([s_BB.T, n_BK * valid_BK], 1), own)
    return (per_text + F.cross_entropy(s_BB, own)) / 2


def _other_images(s_BB: Tensor) -> Tensor:
    """`batch_ne_logits_per_text`: row i holds s(j,i), j other than i; (B, B-1)."""
    return s_BB.T[_others(s_BB)].reshape(len(s_BB), len(s_BB) - 1)


def _released_margin1(s_BB: Tensor, n_BK: Tensor, valid_BK: Tensor, tau: float) -> Tensor:
    """`margin_loss`: the caption must fit its image better than other images; masked zeros count in the mean."""
    negatives = torch.cat([_other_images(s_BB), n_BK], 1)
    counted = torch.cat([torch.ones_like(negatives[:, : len(s_BB) - 1]), valid_BK], 1)
    hinge = F.relu(tau + negatives - s_BB.diagonal()[:, None]) * counted
    return hinge.mean() if hinge.numel() else s_BB.sum() * 0.0


def _released_margin2(s_BB: Tensor, n_BK: Tensor, valid_BK: Tensor, tau: float) -> Tensor:
    """`ne_margin_loss`: edited captions at least tau2 below the best other image; the sign is not that of eq. 4."""
    if len(s_BB) == 1 or not n_BK.numel():
        return s_BB.sum() * 0.0
    hinge = F.relu(tau + n_BK - _other_images(s_BB).amax(1, keepdim=True))
    return (hinge * valid_BK).mean()
