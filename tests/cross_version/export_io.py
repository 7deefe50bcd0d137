"""Runs inside one environment: loads an exported HF folder with what its users call, and answers.

python export_io.py OUT FOLDER...      OUT/N.safetensors and OUT/N.json for the N-th folder
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    LlamaTokenizerFast,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)


def picture() -> Image.Image:
    generator = numpy.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (40, 70, 3), dtype=numpy.uint8))


def padded(image: Image.Image) -> Image.Image:
    """What the user of a version without LlavaImageProcessor must do: LLaVA's expand2square."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))  # the mean colour of CLIP
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def load_processor(folder: Path) -> Any:
    """By AutoProcessor; LlavaProcessor of 4.37 stumbles over processor_config.json, and is put together."""
    if transformers.__version__ >= "4.45":
        return AutoProcessor.from_pretrained(folder)
    return LlavaProcessor(CLIPImageProcessor.from_pretrained(folder), LlamaTokenizerFast.from_pretrained(folder))


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    processor = load_processor(folder)
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    talk = [{"role": "user", "content": "<image>\nIs there a ball in the image?"}]
    prompt = processor.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=prompt, images=padded(picture()), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        made = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    raw = processor(text=prompt, images=picture(), return_tensors="pt")["pixel_values"]
    image = model.config.image_token_index
    ids = inputs["input_ids"][0].tolist()
    said = {"transformers": transformers.__version__, "prompt": prompt, "tokens": made.tolist()}
    said |= {kind: list(report[kind]) for kind in ("missing_keys", "unexpected_keys")}
    said |= {"ids": [number for place, number in enumerate(ids) if number != image or ids[place - 1] != image]}
    said |= {"images": ids.count(image)}
    return said, {"logits": logits, "pixels": inputs["pixel_values"], "raw": raw}


def main(out: Path, folders: list[Path]) -> None:
    for number, folder in enumerate(folders):
        said, found = read(folder)
        save_file({name: value.contiguous() for name, value in found.items()}, out / f"{number}.safetensors")
        (out / f"{number}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
