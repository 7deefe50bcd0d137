"""Converts LLaVA-1.5 between LLaVA's layout and that of transformers (llava-hf), and merges what is trained apart.

Inputs:  --source: a model folder of scripts/finetune_llava.py, of the original LLaVA (whole; LoRA or projector with
         --base), or of transformers' LlavaForConditionalGeneration.
Outputs: --out: a whole model. hf: for transformers 4.37 to 5, vLLM, sglang; with processor and chat template.
         llava: for the unmodified original code. projector: what --pretrain_mm_mlp_adapter takes. ohd.json records
         digests of encoder and weights.
Command: python scripts/convert_llava.py --source runs/llava/ours-lora --out exports/llava-ours-hf --verify True
         python scripts/convert_llava.py --source runs/llava/ours-lora --to llava --out exports/llava-ours
         python scripts/convert_llava.py --source llava-hf/ --image_aspect_ratio pad --to llava --out exports/llava-1.5
         python scripts/convert_llava.py --source llava-v1.5-7b --swap_encoder ours --out exports/llava-swapped-hf
Cost:    reads and writes every tensor once, never more than one at a time: 7B takes the time of copying 14 GB, and 2 GB
         of memory. --verify runs both in float32, one after the other: 7B 30 GB, 13B 55 GB (on a GPU where there is
         one), seconds there and minutes on a CPU.

--verify prints the largest difference of pixels, tower features, projector output, logits and greedy text, each with
its tolerance, and raises above it; nothing is left at --out then. docs/conversion.md has the tables.
"""

from transformers import HfArgumentParser

from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.llava15.convert import ConvertConfig, convert


def main() -> None:
    """Runs the command."""
    parser = HfArgumentParser([ConvertConfig], description=__doc__, formatter_class=HelpFormatter)  # type: ignore[list-item]
    [config] = parser.parse_args_into_dataclasses()
    with exit_on_error():
        for row in convert(config):
            print(row)
        print(f"model: {config.out}")


if __name__ == "__main__":
    main()
