"""Fine-tunes an encoder on OHD-Caps: `openai` becomes `ours`.

Inputs:  an encoder (name or folder), rows with negative captions (scripts/build_ohd_caps.py), their images.
Outputs: OUT/encoder (the new encoder folder with its model card, registered as NAME), OUT/curve.json (loss and its
         parts per step).
Command: python scripts/finetune_clip.py --max_steps 240
Cost:    on the embedded world about 3 minutes on 2 cores, 2 GB. OpenAI's ViT-L/14-336 on the paper's 16,000 images
         wants a GPU: --encoder openai --data all_train.json --images coco --learning_rate 1e-6 --epochs 10
         --batch_size 14 --bf16. Several GPUs: torchrun --nproc-per-node N scripts/finetune_clip.py ... (DDP), or
         deepspeed --num_gpus N scripts/finetune_clip.py --deepspeed zero_configs/zero2.json ... (ZeRO-2).

A run that was stopped goes on from its last checkpoint when the same command is given again.
Source:  arXiv 2410.03176; --loss released computes what the authors' code does instead of what the paper prints.
"""

from argparse import SUPPRESS

from transformers import HfArgumentParser

from llava_ohd.clip.train import FinetuneConfig, finetune
from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.files import read_json
from llava_ohd.training.launch import is_first, leave, quiet


def main() -> None:
    """Runs the command."""
    parser = HfArgumentParser([FinetuneConfig], description=__doc__, formatter_class=HelpFormatter)  # type: ignore[list-item]
    parser.add_argument(
        "--local_rank", type=int, help=SUPPRESS
    )  # DeepSpeed's launcher gives it; LOCAL_RANK says it too
    config, *_ = parser.parse_args_into_dataclasses()
    quiet()
    with exit_on_error():
        folder = finetune(config)
        if is_first():
            from llava_ohd.clip.model_card import outcome

            curve = config.out / "curve.json"
            print(f"encoder: {folder}\ncurve:   {curve}\nresult:  {outcome(read_json(curve))}")
        leave()


if __name__ == "__main__":
    main()
