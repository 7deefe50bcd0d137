"""Runs in the main environment: trains every stage, merges and converts some of them, and answers with each.

python convert_here.py LANGUAGE ENCODER IMAGES OUT      writes folders into OUT, and OUT/answers.json
"""

import json
import subprocess
import sys
from pathlib import Path

from llava_ohd import tower
from llava_ohd.llava15.convert import ConvertConfig, convert, open_source
from llava_ohd.llava15.convert.live import observe_hf, observe_llava

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Is there a ball in the image?"
NEW_TOKENS = 12


def train(language: Path, encoder: Path, images: Path, out: Path, flags: str) -> None:
    """Two steps of one stage by the command."""
    common = f"--model_name_or_path {language} --vision_tower {encoder} --data_path {images}/data.json --image_folder "
    common += f"{images} --image_aspect_ratio pad --max_steps 2 --per_device_train_batch_size 2 --learning_rate 1e-2 "
    common += f"--model_max_length 256 --seed 0 --save_strategy no --output_dir {out} {flags}"
    command = [sys.executable, str(ROOT / "scripts/finetune_llava.py"), *common.split()]
    subprocess.run(command, check=True)


def main(language: Path, encoder: Path, images: Path, out: Path) -> None:
    projector, lora = out / "llava-projector", out / "llava-lora"
    train(language, encoder, images, projector, "--version plain --tune_mm_mlp_adapter True")
    start = f"--version v1 --pretrain_mm_mlp_adapter {projector}/mm_projector.bin"
    adapter = f"{start} --lora_enable True --lora_r 8 --lora_alpha 16"
    train(language, encoder, images, lora, adapter)
    train(language, encoder, images, out / "llava-qlora", f"{adapter} --bits 4")
    train(language, encoder, images, out / "llava-full", start)
    train(language, encoder, images, out / "llava-unfrozen", f"{start} --unfreeze_mm_vision_tower True")
    convert(ConvertConfig(lora, out / "llava-merged", "llava", dtype="float16", verify=True))
    convert(ConvertConfig(out / "llava-qlora", out / "llava-quantised-merged", "llava", dtype="float16", verify=True))
    convert(ConvertConfig(lora, out / "hf", dtype="float16"))
    convert(ConvertConfig(out / "hf", out / "llava-back", "llava", verify=True))
    (out / "hf/ohd.json").unlink()  # as if somebody else had made it: no encoder is known
    convert(ConvertConfig(out / "hf", out / "llava-beside", "llava", image_aspect_ratio="pad"))
    pictures = [tower.open_image(images / f"{number}.png") for number in range(4)]
    answers = {}
    for folder in [*sorted(out.glob("llava-*")), out / "hf"]:
        parts = open_source(folder)
        observe = observe_hf if parts.layout == "hf" else observe_llava
        found = observe(parts, pictures, QUESTION, NEW_TOKENS)
        answers[folder.name] = {
            "tokens": [one.tokens for one in found],
            "scores": [one.scores[0].tolist() for one in found],
        }
    (out / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
