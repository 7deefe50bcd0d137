"""An imported file gives the features of the code that its format belongs to, which is written out here.

Two references: OpenAI's model, from its published structure, and open_clip itself where it is installed. Neither knows
the names of transformers, so that a mistake in the translation cannot be undone by the same mistake in a test.

Source: openai/CLIP clip/model.py `VisionTransformer`, `ResidualAttentionBlock`, `CLIP.encode_text` @ a1d0717.
"""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from llava_ohd import tower


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mask: torch.Tensor | None, activation: type[nn.Module]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        wide = (nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(OrderedDict(zip(("c_fc", "gelu", "c_proj"), wide, strict=True)))
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (N, B, D)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, *sizes: Any, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(*sizes) for _ in range(layers)))


class VisionTransformer(nn.Module):
    def __init__(self, side: int, patch: int, width: int, heads: int, layers: int, out: int, activation: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, None, activation, layers=layers)
        self.proj = nn.Parameter(torch.randn(width, out))

    def tokens(self, pixels: torch.Tensor, layers: int) -> torch.Tensor:
        x = self.conv1(pixels).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding).permute(1, 0, 2)
        return self.transformer.resblocks[:layers](x).permute(1, 0, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        whole = self.tokens(pixels, len(self.transformer.resblocks))
        return self.ln_post(whole[:, 0]) @ self.proj


class CLIP(nn.Module):
    """Vision: 48 px, patch 16, 3 layers, 3 heads of 12. Text: 2 layers, 2 heads of 12."""

    def __init__(self, pieces: int, activation: Any) -> None:
        super().__init__()
        self.visual = VisionTransformer(48, 16, 36, 3, 3, 20, activation)
        mask = torch.full((16, 16), float("-inf")).triu(1)
        self.transformer = Transformer(24, 2, mask, activation, layers=2)
        self.token_embedding, self.ln_final = nn.Embedding(pieces, 24), nn.LayerNorm(24)
        self.positional_embedding = nn.Parameter(torch.randn(16, 24))
        self.text_projection = nn.Parameter(torch.randn(24, 20))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels)

    def encode_text(self, words: torch.Tensor) -> torch.Tensor:  # (B, 16); the highest id ends a caption
        x = (self.token_embedding(words) + self.positional_embedding).permute(1, 0, 2)
        x = self.ln_final(self.transformer.resblocks(x).permute(1, 0, 2))
        return x[torch.arange(len(x)), words.argmax(dim=-1)] @ self.text_projection


def lively(model: Any) -> Any:
    """Every number moved, so that none is 0 or 1 and no two tensors are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


def files_for(model: Any, source: Path, destination: Path) -> Path:
    """Tokenizer and preprocessor for 48 px."""
    destination.mkdir()
    for file in source.iterdir():
        if file.suffix in (".json", ".txt") and file.name not in ("config.json", "ohd.json"):
            text = file.read_text()
            if file.name == "preprocessor_config.json":
                text = json.dumps(
                    json.loads(text) | {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
                )
            (destination / file.name).write_text(text)
    return destination


def folder_of(model: Any, folder: Path, **model_cfg: Any) -> Path:
    folder.mkdir()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "attn_mask"}
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    return folder


def assert_same(folder: Path, model: Any, tokens: torch.Tensor, pixels: torch.Tensor, pieces: int) -> None:
    """Image and caption vectors, and what LLaVA reads: layer -2."""
    words = torch.tensor([[pieces - 2, 5, 9, pieces - 1, *[0] * 12], [pieces - 2, 70, 3, 8, 11, pieces - 1, *[0] * 10]])
    found: Any = tower.load(folder)
    with torch.no_grad():
        out = found(input_ids=words, pixel_values=pixels)
        layer = found.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
        expected = [
            nn.functional.normalize(one, dim=-1) for one in (model.encode_image(pixels), model.encode_text(words))
        ]
    for one, other in zip((out.image_embeds, out.text_embeds, layer), (*expected, tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def pieces(tiny_encoder_dir: Path) -> int:
    return tower.load(tiny_encoder_dir).config.text_config.vocab_size


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quick", [True, False])
def test_openai(pieces: int, pixels: torch.Tensor, tiny_encoder_dir: Path, tmp_path: Path, quick: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(CLIP(pieces, QuickGELU if quick else nn.GELU))
    said = {"vision_cfg": {"head_width": 12, "width": 36}, "text_cfg": {"heads": 2, "width": 24}, "quick_gelu": quick}
    source = folder_of(model, tmp_path / "source", **said)
    tower.import_encoder(source, tmp_path / "out", files_from=files_for(model, tiny_encoder_dir, tmp_path / "files"))
    with torch.no_grad():
        tokens = model.visual.tokens(pixels, layers=2)
    assert_same(tmp_path / "out", model, tokens, pixels, pieces)


@pytest.mark.parametrize("quick", [True, False])
def test_open_clip(pieces: int, pixels: torch.Tensor, tiny_encoder_dir: Path, tmp_path: Path, quick: bool) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed (pip install open_clip_torch)")
    vision = {"image_size": 48, "patch_size": 16, "width": 36, "head_width": 12, "layers": 3}
    text = {"context_length": 16, "vocab_size": pieces, "width": 24, "heads": 2, "layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(open_clip.CLIP(20, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), quick))
    source = folder_of(model, tmp_path / "source", vision_cfg=vision, text_cfg=text, quick_gelu=quick)
    tower.import_encoder(source, tmp_path / "out", files_from=files_for(model, tiny_encoder_dir, tmp_path / "files"))
    seen = []
    model.visual.transformer.resblocks[1].register_forward_hook(lambda block, given, out: seen.append(out))
    with torch.no_grad():
        model.encode_image(pixels)
    tokens = seen[0] if model.visual.transformer.batch_first else seen[0].permute(1, 0, 2)
    assert_same(tmp_path / "out", model, tokens, pixels, pieces)
