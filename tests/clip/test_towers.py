"""Both towers as fine-tuning runs them against transformers' own: every activation, recomputed, with LoRA, in bf16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_ohd import tower
from llava_ohd.clip.captions import encode_captions, share_beginnings, tokenise
from llava_ohd.clip.embedding import encode_images
from llava_ohd.clip.layers import feed_forward

CAPTIONS = ["a red ball", "a red ball and a blue key", "a red cup", "a small green box and a small green star"]


@pytest.fixture
def model(tiny_encoder_dir: Path) -> Any:
    return tower.load(tiny_encoder_dir).train()


@pytest.fixture
def ways(tiny_encoder_dir: Path) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """Ours and transformers': from a model to the features of four images and of four captions, (8, 32)."""
    tokenizer = tower.load_tokenizer(tiny_encoder_dir)
    tree = share_beginnings(tokenise(tokenizer, CAPTIONS), 2)
    padded = tokenizer(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt")
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def ours(model: Any) -> Tensor:
        return torch.cat([encode_images(model, pixels.to(model.dtype)), encode_captions(model, tree)])

    def theirs(model: Any) -> Tensor:
        images = model.get_image_features(pixel_values=pixels.to(model.dtype)).pooler_output
        return torch.cat([images, model.get_text_features(**padded).pooler_output])

    return ours, theirs


def features_and_gradients(way: Callable[[Any], Tensor], model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    features = way(model)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features.dtype)
    (features * weights).sum().backward()
    return features.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model: Any, ours: Callable[[Any], Tensor], theirs: Callable[[Any], Tensor]) -> None:
    found, found_grads = features_and_gradients(ours, model)
    expected, expected_grads = features_and_gradients(theirs, model)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert found_grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        torch.testing.assert_close(found_grads[name], grad, rtol=1e-8, atol=1e-9, msg=name)


def test_features_and_gradients_are_those_of_transformers(model: Any, ways: Any) -> None:
    assert_equal(model.double(), *ways)


def test_recomputing_layers_changes_nothing_and_is_done(model: Any, ways: Any) -> None:
    model.double().activation_checkpointing_enable()
    runs = []
    layers = [*model.vision_model.encoder.layers, *model.text_model.encoder.layers]
    for layer in layers:
        layer.mlp.fc1.register_forward_hook(lambda *_: runs.append(1))
    features_and_gradients(ways[0], model)
    assert len(runs) == 2 * len(layers)
    assert_equal(model, *ways)


def test_lora_is_seen(model: Any, ways: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    plain = ways[0](model.double())
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    lora = inject_adapter_in_model(LoraConfig(target_modules=names, init_lora_weights=False), model).double()
    assert_equal(lora, *ways)
    assert not torch.allclose(ways[0](lora), plain)


def test_bfloat16_autocast_stays_near_float32(model: Any, ways: Any) -> None:
    exact, gradients = features_and_gradients(ways[0], model)

    def autocast(model: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ways[0](model).float()

    found, found_gradients = features_and_gradients(autocast, model)
    assert (found - exact).norm() < 0.02 * exact.norm()
    [expected, got] = (torch.cat([g.flatten() for g in part.values()]) for part in (gradients, found_gradients))
    assert (got - expected).norm() < 0.03 * expected.norm()


def test_quick_gelu_and_its_derivative(model: Any) -> None:
    mlp = model.double().text_model.encoder.layers[0].mlp
    assert mlp.config.hidden_act == "quick_gelu"
    states = (3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: feed_forward(mlp, x), states)
    torch.testing.assert_close(feed_forward(mlp, states), mlp(states), rtol=1e-12, atol=1e-12)


def test_another_activation_is_left_to_transformers(model: Any) -> None:
    mlp = model.text_model.encoder.layers[0].mlp
    mlp.config.hidden_act, mlp.activation_fn = "gelu", torch.nn.GELU()
    states = torch.randn(5, 32)
    torch.testing.assert_close(feed_forward(mlp, states), mlp(states))


def test_gradients_are_the_same_in_every_run(model: Any, ways: Any) -> None:
    runs = [features_and_gradients(ways[0], model)[1] for _ in range(3)]
    for name, grad in runs[0].items():
        assert all(torch.equal(grad, other[name]) for other in runs[1:]), name
