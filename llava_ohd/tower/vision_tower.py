"""The tower: an encoder as LLaVA's model code sees it, from images to the patch tokens that the projector takes.

    eyes = OHDVisionTower.of("ours")
    tokens = eyes.encode([image, image])        # PIL images in, padded to squares as LLaVA-1.5 does
    tokens = eyes(pixels)                       # exact: what LLaVA's CLIPVisionTower returns for the same tensor

Its surface is that of LLaVA's CLIPVisionTower and CLIPVisionTowerS2, so that it takes their place anywhere. What
differs: a name such as `ours` is accepted, the folder is checked before any of it is used, and S2 needs no package.

Source: LLaVA model/multimodal_encoder/clip_encoder.py @ c121f04.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import nn

from llava_ohd.errors import EncoderFormatError
from llava_ohd.tower.checks import read_config
from llava_ohd.tower.encoder_dir import Encoder
from llava_ohd.tower.images import load_processor, process_images
from llava_ohd.tower.loading import load_vision_model, one_device
from llava_ohd.tower.names import resolve
from llava_ohd.tower.scales import DEFAULT_SCALES, multiscale, read_scales

__all__ = ["OHDVisionTower"]


class OHDVisionTower(nn.Module):
    """An encoder inside LLaVA.

    Attributes:
        is_loaded: Whether the weights are there; until then only `config` and the sizes are.
        vision_tower_name: The encoder's folder, absolute.
        vision_tower: transformers' `CLIPVisionModel`, frozen; there once loaded.
        image_processor: With the Pillow backend; there once loaded.
        encoder: What the checked folder holds; there once loaded.
        select_layer: Which hidden states are read; LLaVA-1.5: -2.
        select_feature: `patch` (without the class token) or `cls_patch`.
        s2_scales: Sides in pixels, smallest first; empty without S2.
    """

    def __init__(self, vision_tower: str | Path, args: Any, delay_load: bool = False) -> None:
        """Finds the encoder, and loads it unless that is to wait.

        Args:
            vision_tower: Name or path, as for `--encoder`.
            args: LLaVA's config or model arguments. Read: mm_vision_select_layer, mm_vision_select_feature,
                unfreeze_mm_vision_tower (then it loads at once, so that the checkpoint's weights find their place),
                s2, s2_scales.
            delay_load: Load only the configuration now, and the weights at `load_model`.

        Raises:
            EncoderNotFound: the name leads nowhere.
            EncoderFormatError: as `check`, s2_scales is no list of sizes, or its smallest is not the encoder's image
                size.
        """
        super().__init__()
        self.is_loaded = False
        folder = resolve(vision_tower)
        self.vision_tower_name = str(folder)
        self.select_layer = args.mm_vision_select_layer
        self.select_feature = getattr(args, "mm_vision_select_feature", "patch")
        self.cfg_only = read_config(folder).vision_config
        s2 = getattr(args, "s2", False)
        self.s2_scales = read_scales(getattr(args, "s2_scales", DEFAULT_SCALES)) if s2 else []
        if self.s2_scales:
            self._prepare_s2()
        if not delay_load or getattr(args, "unfreeze_mm_vision_tower", False):
            self.load_model()

    @classmethod
    def of(cls, encoder: str | Path, select_layer: int = -2, select_feature: str = "patch") -> "OHDVisionTower":
        """Returns a loaded tower as LLaVA-1.5 uses it.

        Raises:
            EncoderNotFound: the name leads nowhere.
            EncoderFormatError: as `check`.
        """
        args = {"mm_vision_select_layer": select_layer, "mm_vision_select_feature": select_feature}
        return cls(encoder, SimpleNamespace(**args))

    def _prepare_s2(self) -> None:
        self.s2_split_size, self.s2_image_size = self.s2_scales[0], self.s2_scales[-1]
        if self.s2_split_size != self.cfg_only.image_size:
            raise EncoderFormatError(
                f"the smallest of s2_scales {self.s2_scales} is {self.s2_split_size} pixels, but the encoder "
                f"{self.vision_tower_name} takes {self.cfg_only.image_size}; let s2_scales begin with that"
            )

    def load_model(self, device_map: Any = None) -> None:
        """Loads the weights, once; a second call does nothing.

        Args:
            device_map: None for the CPU, a device, `{"": device}`, or `auto` for the GPU if there is one. The tower is
                small and never split.

        Raises:
            EncoderFormatError: as `check`, or a device map with several devices.
        """
        if self.is_loaded:
            return
        device = one_device(device_map)
        self.hold(*load_vision_model(Path(self.vision_tower_name)))
        self.vision_tower.to(device)

    def hold(self, encoder: Encoder, vision: nn.Module) -> None:
        """Takes weights that `load_vision_model` loaded from this tower's folder."""
        self.encoder = encoder
        self.vision_tower: Any = vision.requires_grad_(False)
        self.image_processor = load_processor(self.vision_tower_name)
        if self.s2_scales:
            side = self.s2_image_size
            self.image_processor.size = {"shortest_edge": side}
            self.image_processor.crop_size = {"height": side, "width": side}
        self.is_loaded = True

    def feature_select(self, image_forward_outs: Any) -> torch.Tensor:
        """Takes the tokens that the projector gets out of the output of `vision_tower`.

        Returns:
            (B, N, D) for `patch`, (B, N + 1, D) for `cls_patch`.

        Raises:
            ValueError: `select_feature` is something else.
        """
        tokens: torch.Tensor = image_forward_outs.hidden_states[self.select_layer]
        if self.select_feature == "cls_patch":
            return tokens
        if self.select_feature != "patch":
            raise ValueError(f"select_feature is {self.select_feature!r}; 'patch' or 'cls_patch' is expected")
        return tokens[:, 1:]

    def forward_feature(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the tokens of images at the tower's own size: (B, 3, S, S) to (B, N, D), in the images' type."""
        with torch.no_grad():
            pixels = images.to(device=self.device, dtype=self.dtype)
            return self.feature_select(self.vision_tower(pixels, output_hidden_states=True)).to(images.dtype)

    @torch.no_grad()
    def forward(self, images: torch.Tensor | list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Returns the tokens of processed images, on the tower's device and in the images' own type.

        Args:
            images: (B, 3, S, S), or a list of (3, S, S), which are then seen one at a time. With S2 any size, for
                which the processor gives the largest scale.

        Returns:
            (B, N, D), or a list of (1, N, D). With S2, D is the encoder's width times the number of scales.
        """
        if isinstance(images, list):
            return [self._tokens(image.unsqueeze(0)) for image in images]
        return self._tokens(images)

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        if self.s2_scales:
            return multiscale(self.forward_feature, images, self.s2_scales)
        return self.forward_feature(images)

    def encode(self, images: Image.Image | list[Image.Image], pad: bool = True) -> torch.Tensor:
        """Returns the tokens of images.

        Args:
            images: One or more of any size and mode.
            pad: Pad to a square of the mean colour, as LLaVA-1.5 does; else the centre is cut out.

        Returns:
            (B, N, D), on the tower's device and in its type.

        Raises:
            EncoderFormatError: the processor was replaced by one that resizes with torchvision.
            ImageError: no image was given, or one is a path or tensor.
        """
        images = images if isinstance(images, list) else [images]
        pixels = process_images(images, self.image_processor, "pad" if pad else "square")
        tokens: torch.Tensor = self(pixels.to(device=self.device, dtype=self.dtype))
        return tokens

    @property
    def dummy_feature(self) -> torch.Tensor:
        """Zeros (1, D) in the place of an image that is not there."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vision_tower.device

    @property
    def config(self) -> Any:
        """The `CLIPVisionConfig`, also before the weights are loaded."""
        return self.vision_tower.config if self.is_loaded else self.cfg_only

    @property
    def hidden_size(self) -> int:
        """Width D of a token that the projector gets."""
        return self.config.hidden_size * max(1, len(self.s2_scales))

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of the image."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.num_patches_per_side**2
