"""The loss against the formulas written out with loops, and against transformers' own CLIP loss."""

import math

import pytest
import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from llava_ohd.clip.loss import LossConfig, clip_loss

SCALE = torch.tensor(math.log(20.0), dtype=torch.float64)


def inputs(batch: int, negatives: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    images, captions = torch.randn(2, batch, 6, generator=generator)
    edited = torch.randn(batch, negatives, 6, generator=generator) + captions[:, None]
    valid = torch.rand(batch, negatives, generator=generator) > 0.3
    return images, captions, edited, valid


def similarities(images, captions, edited) -> tuple[list[list[float]], list[list[float]]]:
    """Returns s[i][j] and n[i][k] as Python floats (double precision)."""
    unit = [torch.nn.functional.normalize(x.double(), dim=-1) for x in (images, captions, edited)]
    scale = math.exp(SCALE.item())
    s = [[scale * float(a @ b) for b in unit[1]] for a in unit[0]]
    n = [[scale * float(a @ b) for b in row] for a, row in zip(unit[0], unit[2], strict=True)]
    return s, n


def cross_entropy(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[target]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def slow_paper(s, n, valid, tau1, tau2, unit=1.0) -> tuple[float, float, float]:
    """Facts section 1.4, eq. 1-4."""
    batch, slots = range(len(s)), [[k for k, flag in enumerate(row) if flag] for row in valid.tolist()]
    l_0, l_1, l_2 = [], [], []
    for i in batch:
        i2t = cross_entropy(s[i] + [n[i][k] for k in slots[i]], i)
        t2i = cross_entropy([s[j][i] for j in batch], i)
        l_0.append((i2t + t2i) / 2)
        wrong = [s[i][j] for j in batch if j != i] + [n[i][k] for k in slots[i]]
        l_1.append(mean([max(0.0, tau1 - s[i][i] / unit + t / unit) for t in wrong]))
        pairs = [(k, j) for k in slots[i] for j in batch if j != i]
        l_2.append(mean([max(0.0, tau2 - n[i][k] / unit + s[i][j] / unit) for k, j in pairs]))
    return mean(l_0), mean(l_1), mean(l_2)


def slow_released(s, n, valid, tau1, tau2) -> tuple[float, float, float]:
    """Facts section 1.2: zero masking, means over all entries, axis and sign as in the released code."""
    batch, m = range(len(s)), valid.long().tolist()
    l_0, l_1, l_2 = [], [], []
    for i in batch:
        text_row = [s[j][i] for j in batch] + [m[i][k] * n[i][k] for k in range(len(n[i]))]
        l_0.append((cross_entropy(text_row, i) + cross_entropy(s[i], i)) / 2)
        for j in batch:
            if j != i:
                l_1.append(max(0.0, tau1 + s[j][i] - s[i][i]))
        for k, value in enumerate(n[i]):
            l_1.append(m[i][k] * max(0.0, tau1 + value - s[i][i]))
            if len(s) > 1:
                hardest = max(s[j][i] for j in batch if j != i)
                l_2.append(m[i][k] * max(0.0, tau2 + value - hardest))
    return mean(l_0), mean(l_1), mean(l_2)


@pytest.mark.parametrize(("batch", "negatives"), [(5, 7), (1, 4), (3, 0), (1, 0)])
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_equals_the_formulas_written_out(mode: str, batch: int, negatives: int) -> None:
    images, captions, edited, valid = inputs(batch, negatives)
    if batch > 1 and negatives:
        valid[1] = False
    config = LossConfig(mode=mode)  # type: ignore[arg-type]
    lambda1, lambda2, tau1, tau2 = config.weights
    assert (lambda1, lambda2, tau1, tau2) == {"paper": (0.1, 0.1, 2, 2), "released": (0.2, 0.2, 5, 5)}[mode]
    slow = (slow_paper if mode == "paper" else slow_released)(
        *similarities(images, captions, edited), valid, tau1, tau2
    )
    parts = clip_loss(images, captions, edited, valid, SCALE, config)
    expected = torch.tensor([slow[0] + lambda1 * slow[1] + lambda2 * slow[2], *slow], dtype=torch.float32)
    found = torch.stack([parts.total, parts.contrastive, parts.margin1, parts.margin2])
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def test_margins_in_cosines_and_hardest_caption() -> None:
    images, captions, edited, valid = inputs(4, 5)
    s, n = similarities(images, captions, edited)
    scale = math.exp(SCALE.item())
    config = LossConfig(tau1=0.3, tau2=0.2, margin_unit="cosine")
    parts = clip_loss(images, captions, edited, valid, SCALE, config)
    slow = slow_paper(s, n, valid, 0.3, 0.2, unit=scale)
    torch.testing.assert_close(
        torch.stack([parts.margin1, parts.margin2]), torch.tensor(slow[1:]), rtol=1e-5, atol=1e-6
    )

    found = clip_loss(images, captions, edited, valid, SCALE, LossConfig(hardest=True)).margin2
    rows = []
    for i, flags in enumerate(valid.tolist()):
        best = max(s[i][j] for j in range(4) if j != i)
        rows.append(mean([max(0.0, 2 - n[i][k] + best) for k, flag in enumerate(flags) if flag]))
    assert found.item() == pytest.approx(mean(rows), rel=1e-5)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_no_negatives_and_no_margins_is_plain_clip(mode: str) -> None:
    images, captions, edited, _ = inputs(6, 3)
    config = LossConfig(mode=mode, lambda1=0.0, lambda2=0.0)  # type: ignore[arg-type]
    none = edited[:, :0], torch.zeros(6, 0, dtype=torch.bool)
    unit = torch.nn.functional.normalize(images, dim=-1), torch.nn.functional.normalize(captions, dim=-1)
    expected = image_text_contrastive_loss(SCALE.float().exp() * unit[1] @ unit[0].T)
    torch.testing.assert_close(clip_loss(images, captions, *none, SCALE, config).total, expected)
    if mode == "paper":  # every slot masked is the same as no slot; as a logit of 0 it is not
        masked = clip_loss(images, captions, edited, torch.zeros(6, 3, dtype=torch.bool), SCALE, config)
        torch.testing.assert_close(masked.total, expected)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_masked_captions_get_no_gradient(mode: str) -> None:
    images, captions, edited, valid = inputs(4, 5)
    valid[2] = False
    edited.requires_grad_()
    scale = SCALE.float().requires_grad_()
    clip_loss(images, captions, edited, valid, scale, LossConfig(mode=mode)).total.backward()  # type: ignore[arg-type]
    assert edited.grad is not None
    assert scale.grad is not None
    assert torch.isfinite(edited.grad).all()
    assert torch.isfinite(scale.grad)
    norms = edited.grad.norm(dim=-1)
    assert (norms[~valid] == 0).all()
    assert (norms[valid] > 0).all()


def test_similarities_are_float32_under_autocast() -> None:
    tensors = inputs(4, 5)
    plain = clip_loss(*tensors, SCALE, LossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = clip_loss(*tensors, SCALE, LossConfig())
    assert found.total.dtype == torch.float32
    assert found.total.item() == plain.total.item()
