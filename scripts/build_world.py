"""Builds the embedded world: its data folder, its two mini models, or pictures of several objects (SimCO, ComCO).

Inputs:  none; everything is drawn from seeds.
Outputs: --data DIR    images, COCO-format annotations, POPE questions, LLaVA json (seconds, 4 MB)
         --models DIR  mini CLIP (the world's `openai`) and mini Llama (its Vicuna), with a manifest
         --scenes DIR  one large object and small ones in fixed slots, for eval/multi_object.py --data DIR
Command: python scripts/build_world.py --data runs/world
         python scripts/build_world.py --models llava_ohd/world/assets   (how the shipped models were made)
Cost:    data and scenes about 10 s each; models about 30 min on 2 CPU cores.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from llava_ohd.errors import exit_on_error
from llava_ohd.home import home
from llava_ohd.world.dataset import WorldConfig, write_world
from llava_ohd.world.multi_object import STYLES, SceneSetConfig, write_scene_set


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="data folder to write (default: runs/world)")
    parser.add_argument("--models", type=Path, default=None, help="retrain the mini models into this folder instead")
    parser.add_argument("--scenes", type=Path, default=None, help="draw pictures of several objects there instead")
    parser.add_argument("--style", choices=STYLES, default="simco", help="of --scenes (default simco: all blue)")
    parser.add_argument("--rounds", type=int, default=25, help="of --scenes: pictures per layout and kind, default 25")
    for field in fields(WorldConfig):
        parser.add_argument(f"--{field.name}", type=int, default=field.default, help=f"default {field.default}")
    return parser.parse_args()


def main() -> None:
    """Runs the command."""
    arguments = _arguments()
    with exit_on_error():
        if arguments.models:
            from llava_ohd.world.assets import build_assets
            from llava_ohd.world.mini_clip import MiniClipConfig
            from llava_ohd.world.mini_llama import MiniLlamaConfig

            build_assets(arguments.models, MiniClipConfig(), MiniLlamaConfig())
            print(f"mini models: {arguments.models}")
            return
        if arguments.scenes:
            write_scene_set(arguments.scenes, SceneSetConfig(arguments.style, arguments.rounds, arguments.seed))
            print(f"scenes: {arguments.scenes}")
            return
        folder = arguments.data or home() / "world"
        write_world(
            folder, WorldConfig(**{field.name: getattr(arguments, field.name) for field in fields(WorldConfig)})
        )
        print(f"world: {folder}")


if __name__ == "__main__":
    main()
