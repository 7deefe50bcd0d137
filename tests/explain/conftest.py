"""A small world and its stock encoder."""

from pathlib import Path

import pytest
from PIL import Image

from llava_ohd.world import MINI_CLIP
from llava_ohd.world.kinds import COLOURS


@pytest.fixture(scope="session")
def stock() -> Path:
    return MINI_CLIP


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain squares of colour, red.png and so on."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        image = Image.new("RGB", (64, 64), (205, 203, 199))
        image.paste(colour, (16, 16, 48, 48))
        image.save(folder / f"{name}.png")
    return folder
