"""The mini models that are shipped with the package, and the proof that they come from the configuration in the code.

assets/mini_clip/    encoder directory; the `openai` of this world
assets/mini_llama/   Llama directory; its Vicuna
assets/manifest.json configuration, fingerprint of the world they were trained in, SHA-256 of every file
"""

import hashlib
import itertools
import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.errors import DataFormatError
from llava_ohd.files import atomic_folder, read_json, sha256_file, sha256_json, write_json
from llava_ohd.world import ASSETS
from llava_ohd.world.captions import captions
from llava_ohd.world.kinds import KINDS
from llava_ohd.world.language import conversations, first_lessons
from llava_ohd.world.mini_clip import MiniClipConfig, train_mini_clip, write_clip_files
from llava_ohd.world.mini_llama import MiniLlamaConfig, train_mini_llama
from llava_ohd.world.scenes import render, sample_scene, single_object_scene

__all__ = ["build_assets", "check_assets", "world_fingerprint"]


def world_fingerprint() -> str:
    """Returns a hash of what the world's generators produce: scenes and their pixels, captions, conversations.

    A change of the generators changes it, so that models trained in another world are noticed.
    """
    rng = random.Random("fingerprint")
    scenes = [sample_scene(rng) for _ in range(50)]
    pictures = [*scenes, *(single_object_scene(kind, rng) for kind in KINDS)]
    return sha256_json(
        [
            [str(scene) for scene in scenes],
            hashlib.sha256(b"".join(render(scene).tobytes() for scene in pictures)).hexdigest(),
            [captions(scene, rng) for scene in scenes],
            list(itertools.islice(first_lessons(0), 50)),
            list(itertools.islice(conversations(0), 50)),
        ]
    )


def _settings(clip: MiniClipConfig, llama: MiniLlamaConfig) -> dict[str, Any]:
    return {"mini_clip": asdict(clip), "mini_llama": asdict(llama), "world": world_fingerprint()}


def build_assets(folder: Path, clip: MiniClipConfig, llama: MiniLlamaConfig) -> None:
    """Trains both mini models from scratch and writes them in float16 with their manifest, all or nothing.

    Args:
        folder: Where `mini_clip`, `mini_llama` and `manifest.json` go; what is there is replaced.
        clip: Geometry and training of the stock CLIP.
        llama: Geometry and training of the language model.
    """
    with atomic_folder(folder, marker="manifest.json") as new:
        model, tokenizer = train_mini_clip(clip)
        with tempfile.TemporaryDirectory() as scratch:
            write_clip_files(Path(scratch), tokenizer, clip)
            tower.write(
                model.half(),
                new / "mini_clip",
                files_from=Path(scratch),
                name="world-openai",
                parents=[],
                config=asdict(clip),
            )
        (new / "mini_llama").mkdir()
        language_model = train_mini_llama(llama, new / "mini_llama")
        language_model.half().save_pretrained(new / "mini_llama")
        files = {str(p.relative_to(new)): sha256_file(p) for p in sorted(new.rglob("*")) if p.is_file()}
        write_json(new / "manifest.json", {"settings": _settings(clip, llama), "files": files})


def check_assets(folder: Path = ASSETS) -> None:
    """Compares every shipped file with the manifest, and the manifest with the configuration in the code.

    Raises:
        DataFormatError: a file differs or is missing, or the models were made with other settings or in another world.
    """
    manifest = read_json(folder / "manifest.json")
    expected = json.loads(json.dumps(_settings(MiniClipConfig(), MiniLlamaConfig())))
    if manifest["settings"] != expected:
        differing = [key for key in expected if manifest["settings"].get(key) != expected[key]]
        raise DataFormatError(
            f"{folder} was made with other settings ({', '.join(differing)}); "
            f"make it again: python scripts/build_world.py --models {folder}"
        )
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise DataFormatError(f"{folder / name} is missing or altered; restore it from the repository")
