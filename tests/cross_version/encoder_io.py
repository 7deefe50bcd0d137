"""Runs inside one environment: writes encoder folders there, or reads those that others wrote.

python encoder_io.py write FOLDER FILES_FROM      ours/, stock_full/, stock_vision/, flat/ and truth.safetensors
python encoder_io.py read OUT FOLDER...           OUT/N.safetensors and OUT/N.json for the N-th folder
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from llava_ohd import tower
from llava_ohd.errors import LlavaOhdError

KINDS = ("ours", "stock_full", "stock_vision", "flat")
FILES = ("preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def picture() -> Image.Image:
    generator = numpy.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=numpy.uint8))


def pictures() -> list[Image.Image]:
    """Smooth ones, noise and stripes, wider, taller, smaller and larger than the encoder's image; grey, transparent."""
    generator = numpy.random.default_rng(1)
    made = [picture()]
    for width, height in ((30, 90), (500, 375), (333, 500), (32, 32), (7, 5), (1024, 68)):
        slope = numpy.linspace(0, 255, width) * numpy.linspace(0.3, 1, height)[:, None]
        stripes = 127 + 127 * numpy.sin(numpy.arange(width) / 1.7) * numpy.ones((height, 1))
        noise = generator.integers(0, 256, (height, width))
        made.append(Image.fromarray(numpy.stack([slope, stripes, noise], axis=-1).astype(numpy.uint8)))
    return [*made, made[2].convert("L"), made[3].convert("RGBA")]


def patch_tokens(vision: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].contiguous()


def write(folder: Path, files: Path) -> None:
    torch.manual_seed(int.from_bytes(folder.name.encode(), "little") % 2**31)
    model = CLIPModel(CLIPConfig.from_dict(json.loads((files / "config.json").read_text()))).eval()
    with torch.no_grad():  # not the initialisation of any version, so that a tower made anew cannot look right
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    tower.write(model, folder / "ours", files_from=files, name=folder.name, parents=[], config={})
    model.save_pretrained(folder / "stock_full")
    model.save_pretrained(folder / "flat")
    vision = CLIPVisionModel(model.config.vision_config).eval()
    getattr(vision, "vision_model", vision).load_state_dict(model.vision_model.state_dict())
    vision.save_pretrained(folder / "stock_vision")
    shutil.copy(folder / "stock_vision" / "model.safetensors", folder / "flat")  # with the config of a full CLIPModel
    for kind in KINDS[1:]:
        for file in FILES:
            shutil.copy(files / file, folder / kind)
    pixels = tower.process_images([picture()], tower.load_processor(files))
    save_file({"tokens": patch_tokens(model.vision_model, pixels)}, folder / "truth.safetensors")


def read(folder: Path, out: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Returns what was refused and why, digests of what was not, and its tokens and pixels."""
    said, found = {"transformers": transformers.__version__}, {}
    for kind in KINDS:
        try:
            digest = tower.check(folder / kind).digest
            model = tower.load(folder / kind)
        except LlavaOhdError as error:
            said[kind] = f"{type(error).__name__}: {error}"
            continue
        processor = tower.load_processor(folder / kind)
        pixels = tower.process_images([picture()], processor)
        found[f"{kind}/tokens"] = patch_tokens(model.vision_model, pixels)
        said[f"{kind}/digest"] = digest
    for kind in KINDS[1:]:  # what save_pretrained wrote there, repaired here
        tower.import_encoder(folder / kind, out / kind, base=None if kind == "stock_full" else folder / "ours")
        vision = CLIPVisionModel.from_pretrained(out / kind).eval()
        found[f"imported/{kind}"] = patch_tokens(
            vision, tower.process_images([picture()], tower.load_processor(out / kind))
        )
    images = pictures()
    for ratio in ("pad", "square"):
        found[f"pixels/{ratio}"] = tower.process_images(images, tower.load_processor(folder / "ours"), ratio)
    for kind in ("ours", "stock_vision"):  # what the original LLaVA calls, and gets without a check
        vision = CLIPVisionModel.from_pretrained(folder / kind).eval()
        found[f"llava/{kind}"] = patch_tokens(vision, found["pixels/pad"][:1])
    return said, found


def main(command: str, first: str, *rest: str) -> None:
    if command == "write":
        write(Path(first), Path(rest[0]))
        return
    for number, folder in enumerate(map(Path, rest)):
        said, found = read(folder, Path(first) / f"imported_{number}")
        save_file({name: value.contiguous() for name, value in found.items()}, Path(first) / f"{number}.safetensors")
        (Path(first) / f"{number}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
