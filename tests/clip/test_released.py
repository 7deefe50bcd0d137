"""`released` beside the authors' own module: CLIP_HALLUCINATION_REPO names a checkout of their repository @ 8a748e6.

The file is written for transformers 4; only the names that left since are supplied here, its own lines run unchanged.
"""

import importlib.util
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.utils as transformers_utils

from llava_ohd.clip.loss import LossConfig, clip_loss

REPO = os.environ.get("CLIP_HALLUCINATION_REPO", "")


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`CLIPModel.forward` of the released code."""
    file = Path(REPO) / "finetune_clip" / "modeling_clip.py"
    if not REPO or not file.is_file():
        pytest.skip("set CLIP_HALLUCINATION_REPO to a checkout of Yufang-Liu/clip_hallucination @ 8a748e6")
    same = lambda *args, **kwargs: lambda function: function  # noqa: E731
    for name in ("add_start_docstrings", "add_start_docstrings_to_model_forward", "replace_return_docstrings"):
        monkeypatch.setattr(transformers_utils, name, same, raising=False)
    for name in ("is_flash_attn_2_available", "is_flash_attn_greater_or_equal_2_10"):
        monkeypatch.setattr(transformers_utils, name, lambda: False, raising=False)
    spec = importlib.util.spec_from_file_location("transformers.models.clip.authors_modeling_clip", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CLIPModel.forward


@pytest.mark.parametrize("margins", [True, False])
@pytest.mark.parametrize("batch", [6, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_and_gradients_equal_the_authors(authors: Any, batch: int, masked: bool, margins: bool) -> None:
    """Towers that return given embeddings, so that nothing but the loss is compared."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 16, generator=generator)
    texts = torch.randn(batch, 28, 16, generator=generator) + images[:, None]
    valid = torch.rand(batch, 28, generator=generator) > (0.3 if masked else -1.0)
    valid[:, 0] = True
    found = []
    for theirs in (True, False):
        image, text, scale = (x.clone().requires_grad_() for x in (images, texts, torch.tensor(math.log(30.0))))
        if theirs:
            clip = SimpleNamespace(
                config=SimpleNamespace(output_attentions=False, output_hidden_states=False, use_return_dict=True),
                vision_model=lambda image=image, **_: (None, image),
                text_model=lambda text=text, **_: (None, text.flatten(0, 1)),
                visual_projection=lambda x: x,
                text_projection=lambda x: x,
                logit_scale=scale,
                **{"ne_margin_loss": margins, "ne_margin_loss_weight": 0.2, "ne_margin_threshold": 5.0},
                **{"margin_loss": margins, "margin_loss_weight": 0.2, "margin_threshold": 5.0},
            )
            ids = torch.zeros(batch, 28, 4, dtype=torch.long)
            flags = valid.long() if masked else None
            loss = authors(clip, input_ids=ids, pixel_values=image, valid_caption=flags, return_loss=True).loss
        else:
            weights = None if margins else 0.0
            config = LossConfig("released", lambda1=weights, lambda2=weights)
            loss = clip_loss(image, text[:, 0], text[:, 1:], valid[:, 1:], scale, config).total
        loss.backward()
        found.append([loss.detach(), image.grad, text.grad, scale.grad])
    for name, mine, expected in zip(("loss", "images", "texts", "scale"), found[1], found[0], strict=True):
        print(f"{name}: {(mine - expected).abs().max() / expected.abs().max():.1e}")
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
