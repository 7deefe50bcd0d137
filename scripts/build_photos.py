"""Builds a data folder from photographs, and a small CLIP and Llama with the real tokenizers trained on it.

Inputs:  --photos DIR with flickr8k/, coco128/, ohd_caps_real/, pope_aokvqa_real/ (see llava_ohd/world/photos.py);
         --tokenizers DIR with clip_vitb32_no_weights/ and llama/tokenizer.model.
Outputs: --data DIR (layout of the embedded world, photos linked), --models DIR (clip/, llama/).
Command: python scripts/build_photos.py --photos PHOTOS --tokenizers TOKENIZERS --data runs/photos/world \
             --models runs/photos/models
Cost:    3 minutes on 2 CPU cores.
"""

import argparse
from pathlib import Path

from llava_ohd.errors import exit_on_error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, help="default: tokenizers/ beside the photos")
    parser.add_argument("--data", type=Path, required=True, help="data folder to write")
    parser.add_argument("--models", type=Path, required=True, help="folder of the two models to write")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Runs the command."""
    given = _arguments()
    with exit_on_error():
        from llava_ohd.world.photo_models import PhotoModelsConfig, build_photo_models
        from llava_ohd.world.photos import prepare

        prepare(given.photos, given.data, given.seed)
        tokenizers = given.tokenizers or given.photos.resolve().parent / "tokenizers"
        build_photo_models(given.data, tokenizers, given.models, PhotoModelsConfig())
        print(f"data:   {given.data}\nmodels: {given.models}")


if __name__ == "__main__":
    main()
