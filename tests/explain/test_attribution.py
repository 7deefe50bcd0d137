"""Attributions against transformers' own attentions and autograd, pair by pair, and the identities that they obey."""

from typing import Any

import pytest
import torch
from transformers import CLIPModel

from llava_ohd import tower
from llava_ohd.errors import OptionError
from llava_ohd.explain.attribution import VARIANTS, attribute
from llava_ohd.explain.image_map import image_maps
from llava_ohd.world import MINI_CLIP

CAPTIONS = ("a large red ball", "a photo of a small blue cup, a tree and a moon", "a star")


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, torch.Tensor]:
    """The world's CLIP in float64, tokens of unequal length, an image for each."""
    model = tower.load(MINI_CLIP).eval().double().requires_grad_(False)
    tokenizer = tower.load_tokenizer(MINI_CLIP)
    pixels = torch.randn(len(CAPTIONS), 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, [tokenizer(caption)["input_ids"] for caption in CAPTIONS], pixels


def features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.get_image_features(pixel_values=pixels).pooler_output


@pytest.fixture(scope="module")
def plain() -> Any:
    """The same weights in transformers' class whose attention gives its weights."""
    return CLIPModel.from_pretrained(MINI_CLIP, attn_implementation="eager").eval().double()


def slowly(plain: Any, ids: list[int], image: torch.Tensor, layers: int, variant: str) -> torch.Tensor:
    """The published formula on one pair, with the graph of everything."""
    out = plain(input_ids=torch.tensor([ids]), pixel_values=image[None], output_attentions=True)
    score = out.logits_per_text[0, 0] / (1 if variant == "rollout" else plain.logit_scale.exp())
    total = torch.zeros(len(ids), len(ids), dtype=torch.float64)
    rollout = torch.eye(len(ids), dtype=torch.float64)
    for attention in out.text_model_output.attentions[-layers:]:
        [gradient] = torch.autograd.grad(score, [attention], retain_graph=True)
        product = (gradient * attention)[0].detach()
        if variant == "relu":
            product = -(attention * (-gradient).clamp(min=0))[0].detach()
        mean = product.mean(0)
        total += (mean.clamp(max=0) if variant == "relu_mean" else mean) / layers
        rollout = rollout + product.clamp(min=0).mean(0) @ rollout
    return (rollout if variant == "rollout" else total)[-1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_equal_to_the_formula_on_transformers_own_attentions(
    variant: str, layers: int, parts: tuple[Any, Any, torch.Tensor], plain: Any
) -> None:
    model, tokens, pixels = parts
    found = attribute(model, tokens, features(model, pixels), layers, variant)
    for one, ids, image in zip(found, tokens, pixels, strict=True):
        expected = slowly(plain, ids, image, layers, variant)
        torch.testing.assert_close(one.tokens.double(), expected, rtol=1e-5, atol=1e-9)
        assert expected.abs().max() > 1e-4


def test_a_batch_is_its_pairs_one_by_one(parts: tuple[Any, Any, torch.Tensor]) -> None:
    model, tokens, pixels = parts
    model, images = model.float(), features(model.float(), pixels.float())
    together = attribute(model, tokens, images)
    for number, one in enumerate(together):
        [alone] = attribute(model, tokens[number : number + 1], images[number : number + 1])
        torch.testing.assert_close(one.tokens, alone.tokens, rtol=0, atol=1e-6)
        assert one.cosine == pytest.approx(alone.cosine, abs=1e-6)
    model.double()


def test_in_the_last_layer_only_the_end_counts_and_its_sum_is_output_times_gradient(
    parts: tuple[Any, Any, torch.Tensor], plain: Any
) -> None:
    """Sum over heads and keys of G * A at the end of text = <attention's output before out_proj, its gradient>."""
    model, tokens, pixels = parts
    last = plain.text_model.encoder.layers[-1].self_attn
    for ids, image in zip(tokens, pixels, strict=True):
        kept: list[torch.Tensor] = []
        hook = last.out_proj.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0]))
        out = plain(input_ids=torch.tensor([ids]), pixel_values=image[None], output_attentions=True)
        hook.remove()
        score = out.logits_per_text[0, 0] / plain.logit_scale.exp()
        attention = out.text_model_output.attentions[-1]
        of_attention, of_output = torch.autograd.grad(score, [attention, kept[0]])
        rows = (of_attention * attention)[0].abs().sum((0, 2))
        assert rows[:-1].max() == 0 < rows[-1]
        [found] = attribute(model, [ids], features(model, image[None]), layers=1)
        heads = attention.shape[1]
        expected = float((kept[0].detach() * of_output)[0, -1].sum())
        assert float(found.tokens.sum()) * heads == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_impossible_options_are_refused(parts: tuple[Any, Any, torch.Tensor]) -> None:
    model, tokens, pixels = parts
    images = features(model, pixels)
    with pytest.raises(OptionError, match="layers 4: the text tower has 3"):
        attribute(model, tokens, images, layers=4)
    with pytest.raises(OptionError, match="variant 'gradcam': give one of clip4dm"):
        attribute(model, tokens, images, variant="gradcam")


@pytest.mark.parametrize("signed", [True, False])
def test_image_maps_equal_the_formula_on_transformers_own_attentions(
    signed: bool, parts: tuple[Any, Any, torch.Tensor], plain: Any
) -> None:
    model, tokens, pixels = parts
    with torch.no_grad():
        texts = torch.cat([model.get_text_features(input_ids=torch.tensor([i])).pooler_output for i in tokens])
    found = image_maps(model, pixels, texts, signed)
    for one, ids, image in zip(found, tokens, pixels, strict=True):
        out = plain(input_ids=torch.tensor([ids]), pixel_values=image[None], output_attentions=True)
        attention = out.vision_model_output.attentions[-1]
        [gradient] = torch.autograd.grad(out.logits_per_text[0, 0] / plain.logit_scale.exp(), [attention])
        product = (gradient * attention).detach()[0, :, 0, 1:]
        expected = (product if signed else product.clamp(min=0)).mean(0)
        torch.testing.assert_close(one.flatten(), expected, rtol=1e-5, atol=1e-9)
