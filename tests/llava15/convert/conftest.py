"""One model folder of every kind that can be converted, and what each computes.

The folders are written here by hand, in the names of the original LLaVA; the logits come from the model in memory.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llava_ohd import tower
from llava_ohd.files import sha256_file
from llava_ohd.llava15 import model_dir
from llava_ohd.llava15.conversation import encode_question
from llava_ohd.llava15.convert.parity import pictures
from llava_ohd.llava15.model import build, image_tokens
from llava_ohd.llava15.run_record import llava_config
from llava_ohd.llava15.tokenizer import load_tokenizer
from llava_ohd.world import MINI_CLIP, MINI_LLAMA

FLAGS: dict[str, Any] = {
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "model_max_length": 256,
    "image_aspect_ratio": "pad",
    "tune_mm_mlp_adapter": False,
    "freeze_mm_mlp_adapter": False,
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
}
QUESTION = "<image>\nIs there a ball in the image?"


@dataclass(frozen=True)
class Source:
    """A folder, what it is loaded on, and the model that it stands for."""

    folder: Path
    base: Path
    encoder: Path
    ids: list[int]
    pixels: torch.Tensor
    logits: torch.Tensor

    @property
    def options(self) -> dict[str, str]:
        """What the command needs beside the folder."""
        needs = not (self.folder / "ohd.json").exists() and self.folder.name.endswith(("lora", "projector"))
        return {"base": str(self.base)} if needs else {}


def whole(model: Any, tied: bool, with_tower: bool) -> dict[str, torch.Tensor]:
    """A model's weights under the names of the original LLaVA's whole checkpoints."""
    names = {"model.language_model.": "model.", "model.multi_modal_projector.linear_1": "model.mm_projector.0"}
    names |= {"model.multi_modal_projector.linear_2": "model.mm_projector.2"}
    names |= {"model.vision_tower.": "model.vision_tower.vision_tower.vision_model."}
    found = {}
    for name, weight in model.state_dict().items():
        start = next((old for old in names if name.startswith(old)), "")
        if (tied and name == "lm_head.weight") or ("vision_tower" in name and not with_tower):
            continue
        found[names.get(start, "") + name.removeprefix(start)] = weight.clone()
    return found


def copy_tokenizer(base: Path, folder: Path) -> None:
    for file in base.glob("*token*"):
        shutil.copy(file, folder)


def in_shards(folder: Path, weights: dict[str, torch.Tensor], ending: str) -> None:
    """Two shards with an index, as transformers writes them."""
    stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = folder / f"{stem}-0000{number}-of-00002.{ending}"
        content = {name: weights[name] for name in part}
        places |= dict.fromkeys(part, file.name)
        save_file(content, file, metadata={"format": "pt"}) if ending == "safetensors" else torch.save(content, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


class Maker:
    """Makes folders of one language model and one encoder."""

    def __init__(self, root: Path, base: Path, encoder: Path, size: float) -> None:
        self.root, self.base, self.size = root, base, size
        self.encoder = tower.check(encoder)
        tokenizer = load_tokenizer(base)
        self.ids = encode_question(QUESTION, tokenizer, image_tokens(self.encoder))
        self.pixels = tower.process_images(pictures()[:1], tower.load_processor(encoder), "pad")
        self.tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
        self.random = torch.Generator().manual_seed(3)

    def __call__(self, kind: str) -> Source:
        who, stage = kind.split("-")
        folder = self.root / f"{who}-llava-{stage}"
        folder.mkdir()
        model = build(self.base, self.encoder)
        self.change(model.model.multi_modal_projector)
        if stage in ("full", "unfrozen"):
            self.change(model.model.language_model)
        if stage == "unfrozen":
            self.change(model.model.vision_tower)
        adapter = self.adapt(model) if stage == "lora" else {}
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([self.ids]), pixel_values=self.pixels).logits[0]
        self.write(folder, who, stage, model, adapter)
        return Source(folder, self.base, self.encoder.path, self.ids, self.pixels, logits)

    def change(self, module: torch.nn.Module) -> None:
        with torch.no_grad():
            for weight in module.parameters():
                weight += torch.randn(weight.shape, generator=self.random) * self.size

    def adapt(self, model: Any) -> dict[str, torch.Tensor]:
        """Adds W + 2 B A to every linear layer of the language model; returns the halves under peft's names."""
        halves = {}
        for name, module in model.model.language_model.named_modules():
            if isinstance(module, torch.nn.Linear):
                down = torch.randn(4, module.in_features, generator=self.random) * self.size
                up = torch.randn(module.out_features, 4, generator=self.random) * self.size
                module.weight.data += 2 * up @ down
                halves[f"base_model.model.model.{name}.lora_A.weight"] = down
                halves[f"base_model.model.model.{name}.lora_B.weight"] = up
        return halves

    def write(self, folder: Path, who: str, stage: str, model: Any, adapter: dict[str, torch.Tensor]) -> None:
        config = llava_config(self.base, self.encoder, FLAGS) | {"unfreeze_mm_vision_tower": stage == "unfrozen"}
        (folder / "config.json").write_text(json.dumps(config))
        weights = whole(model, self.tied, with_tower=stage == "unfrozen")
        if stage == "full" and config["torch_dtype"] == "float16":
            weights = {name: weight.half() for name, weight in weights.items()}
        projector = {name: weight for name, weight in weights.items() if "mm_projector" in name}
        if stage in ("full", "unfrozen"):
            in_shards(folder, weights, "bin" if who == "old" else "safetensors")
            copy_tokenizer(self.base, folder)
        elif stage == "projector":
            both(folder / "mm_projector", projector, who)
        else:
            both(folder / "non_lora_trainables", {f"base_model.model.{n}": w for n, w in projector.items()}, who)
            both(folder / "adapter_model", adapter, who)
            settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "fan_in_fan_out": False}
            (folder / "adapter_config.json").write_text(json.dumps(settings))
        if who == "ours":
            self.record(folder, stage)

    def record(self, folder: Path, stage: str) -> None:
        encoder = {"path": str(self.encoder.path), "digest": self.encoder.digest, "name": self.encoder.name}
        base = {"path": str(self.base), "sha256": model_dir.base_sha256(self.base)}
        sums = {file.name: sha256_file(file) for file in folder.glob("*.safetensors")}
        head = {"format": 1, "kind": "llava", "stage": stage, "encoder": encoder, "base": base}
        (folder / "ohd.json").write_text(json.dumps(head | {"weights": sums, "config": FLAGS}))


def both(stem: Path, weights: dict[str, torch.Tensor], who: str) -> None:
    """A pickle, as the original writes; ours has safetensors beside it."""
    torch.save(weights, stem.with_suffix(".bin"))
    if who == "ours":
        save_file(weights, stem.with_suffix(".safetensors"), metadata={"format": "pt"})


@pytest.fixture(scope="session")
def source(
    tiny_llama_dir: Path, tiny_encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Source]:
    """Gives a folder by its kind; those of the world are tied."""
    language = tmp_path_factory.mktemp("language") / "tiny"
    shutil.copytree(tiny_llama_dir, language)
    shutil.copy(MINI_LLAMA / "tokenizer.model", language)  # as many pieces, and it keeps spaces as Llama's does
    tiny = Maker(tmp_path_factory.mktemp("sources"), language, tiny_encoder_dir, 0.1)
    world = Maker(tmp_path_factory.mktemp("world_sources"), MINI_LLAMA, MINI_CLIP, 0.05)
    made: dict[str, Source] = {}

    def get(kind: str) -> Source:
        if kind not in made:
            is_world = kind.startswith("world")
            made[kind] = world(kind.replace("world", "ours")) if is_world else tiny(kind)
        return made[kind]

    return get
