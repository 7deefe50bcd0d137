"""An encoder folder as `--vision_tower` of the unmodified code: trained with, loaded with, and the same to the bit."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError

Trained = dict[str, tuple[Path, dict[str, Any]]]


def pixels(images: Path, processor: Any, config: Any) -> torch.Tensor:
    from llava.mm_utils import process_images

    return process_images([Image.open(images / f"{i}.png").convert("RGB") for i in range(4)], processor, config)


def question(tokenizer: Any) -> torch.Tensor:
    """The ids of a question, with the original code's prompt and image index."""
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.mm_utils import tokenizer_image_token

    prompt = "USER: <image>\nIs there a ball in the image? ASSISTANT:"
    return tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]


def answer(tokenizer: Any, model: Any, image: torch.Tensor) -> list[int]:
    """Twelve tokens by greedy search."""
    with torch.inference_mode():
        ids = question(tokenizer)
        return model.generate(ids, images=image[None], do_sample=False, max_new_tokens=12)[0].tolist()


def scores(tokenizer: Any, model: Any, image: torch.Tensor) -> torch.Tensor:
    """The logits of the first token of an answer."""
    with torch.inference_mode():
        return model(question(tokenizer), images=image[None]).logits[0, -1]


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_training(trained: Trained, tiny_encoder_dir: Path, stage: str) -> None:
    folder, record = trained[stage]
    assert record["mm_vision_tower"] == str(tiny_encoder_dir)
    assert record["mm_hidden_size"] == 32
    assert len(record["losses"]) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in record["losses"])
    assert tower.check_llava_checkpoint(folder) == tower.check(tiny_encoder_dir)


def test_training_saw_this_tower(trained: Trained, tiny_encoder_dir: Path) -> None:
    """A full checkpoint holds the tower that was in the model, in the float16 that train.py gave it."""
    from safetensors.torch import load_file

    prefix = "model.vision_tower.vision_tower."
    inside = load_file(trained["full"][0] / "model.safetensors")
    found = {name.removeprefix(prefix): weight for name, weight in inside.items() if name.startswith(prefix)}
    expected = load_file(tiny_encoder_dir / "model.safetensors")
    assert found.keys() == {name for name in expected if name.startswith("vision_model.")}
    assert all(torch.equal(weight, expected[name].half()) for name, weight in found.items())


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_loading_and_answering(
    trained: Trained,
    load: Any,
    tiny_llama_dir: Path,
    tiny_encoder_dir: Path,
    other_encoder_dir: Path,
    images: Path,
    stage: str,
) -> None:
    """The stock model, and ours swapped into it: the same features to the bit, the same tokens."""
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

    tokenizer, model, processor = load(trained[stage][0], None if stage == "full" else tiny_llama_dir)
    stock = model.get_vision_tower()
    assert type(stock) is CLIPVisionTower
    tower.verify(model, tiny_encoder_dir)
    full = pixels(images, processor, model.config)
    batch = full.half()  # as the original code's evaluations do
    features, tokens = stock(batch), [answer(tokenizer, model, image) for image in batch]
    logits = [scores(tokenizer, model, image) for image in batch]
    assert not torch.equal(logits[0], logits[1])  # the answers depend on the image

    tower.swap(model, tiny_encoder_dir)
    ours = model.get_vision_tower()
    assert type(ours) is tower.OHDVisionTower
    assert (ours.dtype, ours.device) == (stock.dtype, stock.device)
    assert torch.equal(ours(batch), features)
    assert all(torch.equal(a, b) for a, b in zip(ours(list(batch)), stock(list(batch)), strict=True))
    assert torch.equal(pixels(images, ours.image_processor, model.config), full)
    assert torch.equal(ours.encode([Image.open(images / f"{i}.png") for i in range(4)]), stock(full))
    assert [answer(tokenizer, model, image) for image in batch] == tokens
    assert all(torch.equal(scores(tokenizer, model, image), a) for image, a in zip(batch, logits, strict=True))

    tower.swap(model, other_encoder_dir)
    assert model.config.mm_vision_tower == str(other_encoder_dir)
    assert not torch.equal(model.get_vision_tower()(batch), features)
    assert not any(torch.equal(scores(tokenizer, model, image), a) for image, a in zip(batch, logits, strict=True))
    with pytest.raises(EncoderFormatError, match="is not tiny"):
        tower.verify(model, tiny_encoder_dir)


@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
@pytest.mark.parametrize("layer", [-1, -2])
def test_surface_of_the_tower(tiny_encoder_dir: Path, feature: str, layer: int) -> None:
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

    args = SimpleNamespace(mm_vision_select_layer=layer, mm_vision_select_feature=feature)
    stock, ours = (
        kind(str(tiny_encoder_dir), args, delay_load=True) for kind in (CLIPVisionTower, tower.OHDVisionTower)
    )
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        for name in ("is_loaded", "hidden_size", "num_patches", "num_patches_per_side", "select_layer"):
            assert getattr(ours, name) == getattr(stock, name)
        assert ours.vision_tower_name == stock.vision_tower_name
        stock.load_model()
        ours.load_model()
    assert torch.equal(ours(batch), stock(batch))
    assert torch.equal(ours.dummy_feature, stock.dummy_feature)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert {name for name in dir(stock) if not name.startswith("_")} <= set(dir(ours))
    assert json.loads(ours.config.to_json_string())["image_size"] == 32
