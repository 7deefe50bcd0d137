"""Names inside transformers; the original LLaVA has its own tests in tests/with_llava."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, ModelNotFound


@pytest.fixture
def _registered(tiny_encoder_dir: Path) -> Iterator[None]:
    tower.register("mine", tiny_encoder_dir)
    tower.register_with_transformers()
    tower.register_with_transformers()
    yield
    tower.unregister_from_transformers()


@pytest.mark.usefixtures("_registered")
def test_names_in_transformers(tiny_encoder_dir: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPModel, CLIPVisionConfig, CLIPVisionModel

    for kind in (CLIPModel, CLIPVisionModel, AutoModel):
        found, expected = kind.from_pretrained("mine"), kind.from_pretrained(tiny_encoder_dir)
        assert type(found) is type(expected)
        weights = expected.state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in found.state_dict().items())
    assert CLIPVisionConfig.from_pretrained("mine").image_size == 32
    assert AutoConfig.from_pretrained("mine").model_type == "clip"
    assert AutoTokenizer.from_pretrained("mine")("a ball")["input_ids"]


@pytest.mark.usefixtures("_registered")
def test_the_encoder_is_checked_first(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    copy = Path(shutil.copytree(tiny_encoder_dir, tmp_path / "copy"))
    tower.register("copied", copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(EncoderFormatError, match=r"altered|now holds"):
        CLIPVisionModel.from_pretrained("copied")


def test_nothing_stays_behind(tiny_encoder_dir: Path) -> None:
    from transformers import AutoModel, CLIPVisionModel

    kinds = (AutoModel, CLIPVisionModel)
    before = [(kind.from_pretrained.__func__, "from_pretrained" in vars(kind)) for kind in kinds]
    tower.register("mine", tiny_encoder_dir)
    tower.register_with_transformers()
    assert CLIPVisionModel.from_pretrained.__func__ is not before[1][0]
    tower.unregister_from_transformers()
    assert [(kind.from_pretrained.__func__, "from_pretrained" in vars(kind)) for kind in kinds] == before
    with pytest.raises(OSError, match="couldn't"):
        CLIPVisionModel.from_pretrained("mine")


@pytest.mark.skipif(find_spec("llava") is not None, reason="the original LLaVA can be imported here")
def test_without_the_original_code() -> None:
    with pytest.raises(ModelNotFound, match=r"the original LLaVA cannot be imported.*PYTHONPATH=CHECKOUT"):
        tower.register_with_llava()


def test_functions_stay_functions() -> None:
    """No module of the folder has the name of something that the package offers, and so would come in its place."""
    offered = set(tower.__all__)
    assert not offered & {file.stem for file in Path(tower.__file__).parent.glob("*.py")}
    assert all(callable(getattr(tower, name)) for name in offered)
