"""A CLIP whose activations matter, and the proof that an encoder folder gives the features of a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ohd import tower


@pytest.fixture(scope="session")
def lively_dir(tiny_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder with weights so large that QuickGELU and GELU give other features."""
    model = tower.load(tiny_encoder_dir)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "logit_scale":
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    folder = tmp_path_factory.mktemp("encoders") / "lively"
    tower.write(model, folder, files_from=tiny_encoder_dir, name="lively", parents=[], config={})
    return folder


@pytest.fixture
def lively(lively_dir: Path) -> Any:
    """The model in it, for tests that change it."""
    return tower.load(lively_dir)


def features(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image and text embeddings (normalised), and the patch tokens that LLaVA reads."""
    side, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(2))
    words = torch.tensor([[vocabulary - 2, 5, 9, vocabulary - 1], [vocabulary - 2, 70, 3, vocabulary - 1]])
    with torch.no_grad():
        out = model.eval()(input_ids=words, pixel_values=pixels)
        tokens = model.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    return out.image_embeds, out.text_embeds, tokens


@pytest.fixture
def assert_same() -> Callable[[Path, Any], None]:
    """`assert_same(folder, model)`: the encoder gives the model's features to 1e-6."""

    def compare(folder: Path, model: Any) -> None:
        from transformers import CLIPModel

        for loaded in (tower.load(folder), CLIPModel.from_pretrained(folder)):
            for found, expected in zip(features(loaded.float()), features(model.float()), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)

    return compare
