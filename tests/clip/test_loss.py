"""The loss against the formulas written out with loops, and against transformers' own CLIP loss."""

import itertools
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


def similarities(images, captions, edited) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Returns s[i][j] and n[i][j][k] as Python floats (double precision)."""
    unit = [torch.nn.functional.normalize(x.double(), dim=-1) for x in (images, captions, edited)]
    scale = math.exp(SCALE.item())
    s = [[scale * float(a @ b) for b in unit[1]] for a in unit[0]]
    n = [[[scale * float(a @ b) for b in row] for row in unit[2]] for a in unit[0]]
    return s, n


def cross_entropy(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[target]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def slow(s, n_all, valid, c: dict) -> tuple[float, float, float]:
    """Facts sections 1.2 and 1.4, every switch as a branch; n_all[i][j][k]: image i, k-th negative of image j."""
    batch, slots = range(len(s)), range(valid.shape[1])
    unit = math.exp(SCALE.item()) if c["margin_unit"] == "cosine" else 1.0
    l_0, l_1, l_2 = [], [], []
    for i in batch:
        extra = []
        for j in batch if c["neg_scope"] == "all" else [i]:
            for k in slots:
                if valid[j, k]:
                    extra.append(n_all[i][j][k])
                elif c["mask"] == "zero":
                    extra.append(0.0)
        image_row, text_row = [s[i][j] for j in batch], [s[j][i] for j in batch]
        with_negatives, without = (image_row, text_row) if c["mode"] == "paper" else (text_row, image_row)
        l_0.append((cross_entropy(with_negatives + extra, i) + cross_entropy(without, i)) / 2)

        pairs = [(s[i][j] if c["axis"] == "texts" else s[j][i]) / unit for j in batch if j != i]
        wrong, lifted = [max(0.0, c["tau1"] + t - s[i][i] / unit) for t in pairs], []
        for k in slots:
            n = n_all[i][i][k] / unit
            if valid[i, k]:
                wrong.append(max(0.0, c["tau1"] + n - s[i][i] / unit))
                against = [max(pairs)] if pairs and c["hardest"] else pairs
                sign = 1 if c["l2_sign"] == "above" else -1
                lifted.append(mean([max(0.0, c["tau2"] - sign * n + sign * t) for t in against]))
            elif c["mask"] == "zero":
                wrong.append(0.0)
                lifted.append(0.0)
        l_1.append(mean(wrong))
        l_2.append(mean(lifted))
    return mean(l_0), mean(l_1), mean(l_2)


def check(config: LossConfig, batch: int, negatives: int) -> None:
    images, captions, edited, valid = inputs(batch, negatives)
    if batch > 1 and negatives:
        valid[1] = False
    chosen = config.chosen
    expected = slow(*similarities(images, captions, edited), valid, chosen)
    parts = clip_loss(images, captions, edited, valid, SCALE, config)
    total = expected[0] + chosen["lambda1"] * expected[1] + chosen["lambda2"] * expected[2]
    found = torch.stack([parts.total, parts.contrastive, parts.margin1, parts.margin2])
    torch.testing.assert_close(found, torch.tensor([total, *expected]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("batch", "negatives"), [(5, 7), (1, 4), (3, 0), (1, 0)])
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_equals_the_formulas_written_out(mode: str, batch: int, negatives: int) -> None:
    config = LossConfig(mode=mode)  # type: ignore[arg-type]
    assert config.weights == {"paper": (0.1, 0.1, 2, 2), "released": (0.2, 0.2, 5, 5)}[mode]
    check(config, batch, negatives)


SWITCHES = {
    "hardest": (True, False),
    "l2_sign": ("above", "below"),
    "axis": ("texts", "images"),
    "mask": ("inf", "zero"),
    "neg_scope": ("own", "all"),
    "margin_unit": ("logit", "cosine"),
}


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize(("batch", "negatives"), [(5, 7), (1, 4), (3, 0)])
def test_every_combination_of_switches_equals_the_formulas(mode: str, batch: int, negatives: int) -> None:
    for values in itertools.product(*SWITCHES.values()):
        switches = dict(zip(SWITCHES, values, strict=True))
        check(LossConfig(mode=mode, tau1=0.7, tau2=0.4, **switches), batch, negatives)  # type: ignore[arg-type]


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
