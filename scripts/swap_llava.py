"""Puts another encoder into a trained LLaVA without training it: as it is, or with the projector re-fitted.

Inputs:  --model: a model folder of scripts/finetune_llava.py; --encoder: the encoder to put in.
         --projector keep (default), refit (affine least squares from the new encoder's features to the old one's, on
         images of the model's training file, folded into the projector), or a folder that stage projector wrote.
Outputs: --out: a model folder whose ohd.json says which encoder it runs on and that it was not trained on it; with
         refit also refit.json: how much of the old features the map explains.
Command: python scripts/swap_llava.py --model runs/llava/llava-v1.5-mini-openai-lora --encoder ours --projector refit \\
             --out runs/llava/llava-v1.5-mini-refit-lora
         python eval/pope.py --encoder ours --model runs/llava/llava-v1.5-mini-refit-lora --out runs/eval/refit/pope
Cost:    the copy of the model folder's own weights; refit: two passes over 1,000 images, at CLIP-L/336 minutes.
"""

from transformers import HfArgumentParser

from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.files import read_json
from llava_ohd.llava15.swapping import SwapConfig, swap


def main() -> None:
    """Runs the command."""
    parser = HfArgumentParser([SwapConfig], description=__doc__, formatter_class=HelpFormatter)  # type: ignore[list-item]
    [config] = parser.parse_args_into_dataclasses()
    with exit_on_error():
        made = swap(config)
        print(f"trained on {made.swapped['trained_on']['name']}, runs on {made.encoder['name']}")
        print(f"projector {made.swapped['projector']}")
        if (made.path / "refit.json").is_file():
            fitted = read_json(made.path / "refit.json")
            print(f"explained of the old features, held-out tokens: {fitted['explained_held_out']:.1%}")
        print(f"model: {made.path}")


if __name__ == "__main__":
    main()
