"""Trains a stage of LLaVA-1.5 on an encoder, with the flags of LLaVA's own train.py.

Inputs:  a language model folder (--model_name_or_path), an encoder (--vision_tower ours|openai|NAME|PATH), a training
         json in LLaVA's format (--data_path), its images (--image_folder); stage lora: what stage projector wrote.
Outputs: --output_dir: a model folder that LLaVA's own loader reads, curve.json, checkpoint-N while it runs.
Command: deepspeed --num_gpus 2 scripts/finetune_llava.py --deepspeed zero_configs/zero2.json \\
             --model_name_or_path llava_ohd/world/assets/mini_llama --vision_tower ours --version plain \\
             --tune_mm_mlp_adapter True --data_path runs/world/llava/pretrain.json --image_folder runs/world/images \\
             --output_dir runs/llava/ours-projector --learning_rate 1e-3
Cost:    on the embedded world about a minute on 2 cores, 1 GB. LLaVA-1.5-7B on 8 A100: 3.5 h and 10 h (LLaVA's README).

Stages:  --tune_mm_mlp_adapter True (projector), --lora_enable True (lora, with --bits 4 or 8 qlora), neither (full).

Also with torchrun, accelerate launch, Slurm (scripts/finetune_llava.sbatch), or as a single process (docs/training.md).
A run that was stopped goes on from its last checkpoint when the same command is given again. `--num_gpus 2` counts
processes: without GPU it starts two that share the CPU.
Source:  haotian-liu/LLaVA llava/train/train.py @ c121f04; arXiv 2310.03744.
"""

import sys

from llava_ohd.errors import exit_on_error
from llava_ohd.llava15.train import train
from llava_ohd.training.launch import leave


def main() -> None:
    """Runs the command."""
    with exit_on_error():
        folder = train(sys.argv[1:], __doc__ or "")
        if folder is not None:
            print(f"model: {folder}\ncurve: {folder / 'curve.json'}")
        leave()


if __name__ == "__main__":
    main()
