"""What goes wrong on disks and clusters: an encoder is whole, or an error of the package says what is wrong with it.

`test_encoder_dir.py` has one example of each fault; here they come at every place, at once, and without root's rights.
"""

import ctypes
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_ohd import tower
from llava_ohd.errors import EncoderFormatError, EncoderNotFound
from llava_ohd.tower import encoder_dir

WEIGHTS = "model.safetensors"


@pytest.fixture
def encoder(tiny_encoder_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder that the test may spoil."""
    return Path(shutil.copytree(tiny_encoder_dir, tmp_path / "encoder"))


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


# --- one byte, at every place


def places(content: bytes) -> list[int]:
    """The length, the header, and the first and last byte of every tensor."""
    start = header_end(content)
    header = json.loads(content[8:start])
    ends = [row["data_offsets"] for name, row in header.items() if name != "__metadata__"]
    data = [start + place for first, last in ends for place in (first, last - 1)]
    return sorted({*range(8), *range(8, start, 101), *data})


@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_anywhere_is_refused(encoder: Path, bit: int) -> None:
    whole = (encoder / WEIGHTS).read_bytes()
    for place in places(whole):
        (encoder / WEIGHTS).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(EncoderFormatError):
            tower.check(encoder)
    (encoder / WEIGHTS).write_bytes(whole)
    tower.check(encoder)


def test_a_flipped_header_bit_without_a_record(encoder: Path) -> None:
    """Nothing tells what the bytes were; the tensors are the same (a comment was hit), or it is refused."""
    (encoder / "ohd.json").unlink()
    whole, expected = (encoder / WEIGHTS).read_bytes(), load_file(encoder / WEIGHTS)
    refused = 0
    for place in range(0, header_end(whole), 41):
        (encoder / WEIGHTS).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            state = tower.load(encoder).state_dict()
        except EncoderFormatError:
            refused += 1
            continue
        assert all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert refused > 30


def test_a_cut_anywhere_is_refused(encoder: Path) -> None:
    whole = (encoder / WEIGHTS).read_bytes()
    start = header_end(whole)
    (encoder / "ohd.json").unlink()
    for length in (0, 1, 7, 8, 9, start // 2, start - 1, start, start + 1, len(whole) // 2, len(whole) - 1):
        (encoder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(EncoderFormatError, match="truncated or damaged"):
            tower.check(encoder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "ohd.json"])
def test_damaged_json_is_refused(encoder: Path, name: str) -> None:
    whole = (encoder / name).read_bytes()
    for content in (b"", b"\0" * len(whole), b"[]", b"null", b"{}", b"\xff\xfe", whole[: len(whole) // 2]):
        (encoder / name).write_bytes(content)
        with pytest.raises(EncoderFormatError):
            tower.check(encoder)


VALUES: list[Any] = ["x", -1, 0, 1.5, [], {}, None, True, 10**9]


FIELDS = ["hidden_size", "patch_size", "image_size", "num_hidden_layers", "num_attention_heads", "num_channels"]


@pytest.mark.parametrize("field", [*FIELDS, "hidden_act", "layer_norm_eps"])
def test_odd_numbers_in_the_configuration(encoder: Path, field: str) -> None:
    """Refused by name, before a model of that size is made."""
    record = json.loads((encoder / "config.json").read_text())
    (encoder / "ohd.json").unlink()
    for value in VALUES:
        spoilt = record | {"vision_config": record["vision_config"] | {field: value}}
        (encoder / "config.json").write_text(json.dumps(spoilt))
        with pytest.raises(EncoderFormatError, match=str(encoder)):
            tower.check(encoder)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_odd_parts_of_the_configuration(encoder: Path, part: str) -> None:
    record = json.loads((encoder / "config.json").read_text())
    (encoder / "ohd.json").unlink()
    for value in VALUES:
        (encoder / "config.json").write_text(json.dumps(record | {part: value}))
        with pytest.raises(EncoderFormatError):
            tower.check(encoder)
    for spoilt in (*(value for value in VALUES if value not in (None, {})), {"num_hidden_layers": 10**9}):
        (encoder / "config.json").write_text(json.dumps(record | {f"{part}_dict": spoilt}))
        with pytest.raises(EncoderFormatError, match=f"{part}_dict"):
            tower.check(encoder)
    (encoder / "config.json").write_text(json.dumps(record | {f"{part}_dict": None}))
    tower.check(encoder)


# --- types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_of_two_types(encoder: Path, dtype: torch.dtype) -> None:
    """As people make them: the tower in half precision, the rest not. Features are those of the rounded tower."""
    weights = load_file(encoder / WEIGHTS)
    weights |= {name: weight.to(dtype) for name, weight in weights.items() if name.startswith("vision_model.")}
    save_file(weights, encoder / WEIGHTS, metadata={"format": "pt"})
    (encoder / "ohd.json").unlink()
    model, pixels = tower.load(encoder), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[name], weight.float()) for name, weight in weights.items())
    exact = tower.load(encoder)
    exact.load_state_dict({name: weight.float() for name, weight in weights.items()})
    with torch.no_grad():
        assert torch.equal(model.get_image_features(pixels)[0], exact.get_image_features(pixels)[0])


# --- rights and places

WITHOUT_RIGHTS = """
import ctypes, sys
from pathlib import Path
none = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: root without them obeys the mode of a folder
assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), none) == 0
from llava_ohd import tower
from llava_ohd.errors import StorageError
folder = Path(sys.argv[1])
model = tower.load(folder)
for destination in (folder, folder.parent / "new", folder / "inside"):
    try:
        tower.write(model, destination, files_from=folder, name="x", parents=[], config={})
    except StorageError as error:
        print(error)
print(tower.check(folder).name)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "capset"), reason="Linux only: drops root's right to write anywhere")
def test_a_read_only_folder_can_be_loaded_and_not_written(encoder: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in encoder.iterdir()}
    for path, mode in ((encoder, 0o555), (tmp_path, 0o555), *((file, 0o444) for file in encoder.iterdir())):
        path.chmod(mode)
    try:
        command = [sys.executable, "-W", "ignore", "-c", WITHOUT_RIGHTS, str(encoder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        for path in (tmp_path, encoder):
            path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-4:]  # deepspeed, where installed, announces itself above them
    assert [line.split(" (")[0] for line in lines[:2]] == [
        f"cannot write {place}: no permission to write there" for place in (encoder, tmp_path / "new")
    ]
    assert lines[-1] == "tiny"
    assert before == {file.name: file.read_bytes() for file in encoder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_a_snapshot_of_the_hub_is_made_of_links(encoder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(list(encoder.iterdir())):
        file.replace(blobs / str(number))
        file.symlink_to(Path("..") / "blobs" / str(number))
    model = tower.load(encoder)
    tower.write(model, tmp_path / "copy", files_from=encoder, name="copy", parents=[], config={})
    assert not any(file.is_symlink() for file in (tmp_path / "copy").iterdir())
    assert tower.check(tmp_path / "copy").digest == tower.check(encoder).digest
    (blobs / "0").unlink()
    with pytest.raises(EncoderFormatError):
        for number in range(1, len(list(encoder.iterdir()))):
            tower.check(encoder)
            (blobs / str(number)).unlink()


def test_a_link_that_leads_nowhere(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "later" / "encoder")
    with pytest.raises(EncoderNotFound):
        tower.check(link)
    tower.write(tower.load(tiny_encoder_dir), link, files_from=tiny_encoder_dir, name="x", parents=[], config={})
    assert link.is_symlink()
    assert tower.check(tmp_path / "later" / "encoder").name == "x"


@pytest.mark.parametrize("name", ["two words", "größe", "a'b\"c", "$HOME", "*", "100%"])
def test_any_name_of_a_folder(tiny_encoder_dir: Path, tmp_path: Path, name: str) -> None:
    place = tmp_path / name / name
    tower.write(tower.load(tiny_encoder_dir), place, files_from=tiny_encoder_dir, name=name, parents=[], config={})
    tower.write(tower.load(place), place, files_from=place, name=name, parents=[], config={})
    assert (tower.check(place).name, tower.check(place).path) == (name, place)
    assert [path.name for path in place.parent.iterdir()] == [name]
    assert tower.compare(place, tiny_encoder_dir).verdict == "keep"


# --- two writers

WRITER = """
import sys, torch
from llava_ohd import tower
source, destination, number = sys.argv[1:]
model = tower.load(source)
with torch.no_grad():
    model.visual_projection.weight.fill_(float(number))
    model.vision_model.post_layernorm.bias.fill_(float(number))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    tower.write(model, destination, files_from=source, name=number, parents=[], config={})
"""


def test_two_writers_at_once_leave_one_whole_encoder(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    place = tmp_path / "encoder"
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WRITER, str(tiny_encoder_dir), str(place), number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ("1", "2")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert "ready\n" in iter(writer.stdout.readline, "")  # deepspeed, where installed, announces itself before
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], errors
    found = tower.check(place)
    weights = load_file(place / WEIGHTS)
    for name in ("visual_projection.weight", "vision_model.post_layernorm.bias"):
        assert set(weights[name].flatten().tolist()) == {float(found.name)}
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


# --- code


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kept", [True, False], ids=["beside_safetensors", "alone"])
def test_code_in_a_plain_pickle_is_never_run(encoder: Path, tmp_path: Path, protocol: int, kept: bool) -> None:
    content = pickle.dumps({"vision_model.pre_layrnorm.bias": Bomb(tmp_path / "exploded")}, protocol=protocol)
    (encoder / "pytorch_model.bin").write_bytes(content)
    if kept:
        tower.load(encoder)
    else:
        (encoder / WEIGHTS).unlink()
        with pytest.raises(EncoderFormatError, match=r"truncated or damaged|holds code beside tensors"):
            tower.load(encoder)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(content)  # the bomb is a real one
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("place", ["pytorch_model.bin", "model.pt"], ids=["encoder", "import"])
def test_code_in_a_tar_is_never_run(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A layout of torch from before 2018, in which versions before 2.6 run code although weights_only is set."""
    content = pickle.dumps(Bomb(tmp_path / "exploded"))
    with tarfile.open(encoder / place, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            row = tarfile.TarInfo(name)
            row.size = len(content)
            archive.addfile(row, io.BytesIO(content))
    (encoder / WEIGHTS).unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: os.mkdir(tmp_path / "exploded"))
    with pytest.raises(EncoderFormatError, match=r"is a tar archive.*CVE-2025-32434"):
        if place == "model.pt":
            tower.import_encoder(encoder / place, tmp_path / "out", files_from=encoder)
        else:
            tower.load(encoder)
    assert not (tmp_path / "exploded").exists()


# --- loaders that would take something else


def test_a_reader_beside_a_writer_never_mixes(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is replaced after any of its files was read: by one that differs in configuration, or in the text."""
    model = tower.load(encoder)
    model.config.vision_config.layer_norm_eps = 0.1
    tower.write(model, tmp_path / "other", files_from=encoder, name="other", parents=[], config={})
    with torch.no_grad():
        model.text_model.final_layer_norm.bias.add_(1)
    tower.write(model, tmp_path / "third", files_from=encoder, name="third", parents=[], config={})
    for old, new in ((encoder, tmp_path / "other"), (tmp_path / "other", tmp_path / "third")):
        for step in ("file_sums", "read_config", "read_weights", "check_preprocessor"):
            place = Path(shutil.copytree(old, tmp_path / "place"))
            with monkeypatch.context() as patch:
                patch.setattr(encoder_dir, step, then_replace(getattr(encoder_dir, step), place, new))
                try:
                    found = tower.load(place)
                except EncoderFormatError:
                    continue
                finally:
                    shutil.rmtree(place)
            expected = tower.load(new)
            assert found.config.vision_config.layer_norm_eps == expected.config.vision_config.layer_norm_eps
            assert all(torch.equal(found.state_dict()[name], w) for name, w in expected.state_dict().items())


def then_replace(function: Any, place: Path, new: Path) -> Any:
    def call(*arguments: Any) -> Any:
        result = function(*arguments)
        place.replace(place.with_name("away"))
        shutil.copytree(new, place)
        shutil.rmtree(place.with_name("away"))
        return result

    return call


def test_shards_beside_the_file_that_is_checked(encoder: Path) -> None:
    weights = load_file(encoder / WEIGHTS)
    torch.save(weights, encoder / "pytorch_model.bin")
    (encoder / WEIGHTS).unlink()
    (encoder / "ohd.json").unlink()
    tower.check(encoder)
    shard = "model-00001-of-00001.safetensors"
    save_file({name: weight + 1 for name, weight in weights.items()}, encoder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EncoderFormatError, match=r"model\.safetensors\.index\.json does not belong .* import"):
        tower.check(encoder)


@pytest.mark.parametrize("recorded", [True, False])
def test_processor_config_that_new_versions_prefer(encoder: Path, recorded: bool) -> None:
    if not recorded:
        (encoder / "ohd.json").unlink()
    pixels = json.loads((encoder / "preprocessor_config.json").read_text())
    for content in ({"processor_class": "CLIPProcessor"}, {"image_processor": pixels}):
        (encoder / "processor_config.json").write_text(json.dumps(content))
        tower.check(encoder)
    spoilt = {"image_processor": pixels | {"image_mean": [0.5, 0.5, 0.5]}}
    (encoder / "processor_config.json").write_text(json.dumps(spoilt))
    with pytest.raises(EncoderFormatError, match=r"processor_config\.json has image_processor\.image_mean \[0\.5"):
        tower.check(encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "makes hidden_act 'gelu' in a CLIPModel, vision_config makes it 'quick_gelu'"),
        ({"layer_norm_eps": 0.1}, "makes layer_norm_eps 0.1 in a CLIPModel"),
        ({}, None),
    ],
)
def test_an_old_part_that_contradicts_the_new_one(encoder: Path, change: dict[str, Any], message: str | None) -> None:
    """CLIPModel reads `vision_config_dict`, CLIPVisionModel, which is LLaVA's, does not."""
    record = json.loads((encoder / "config.json").read_text())
    (encoder / "ohd.json").unlink()
    (encoder / "config.json").write_text(json.dumps(record | {"vision_config_dict": record["vision_config"] | change}))
    if message is None:
        tower.check(encoder)
        return
    with pytest.raises(EncoderFormatError, match=message):
        tower.check(encoder)


def test_what_the_old_part_leaves_out_counts_as_the_default(encoder: Path) -> None:
    record = json.loads((encoder / "config.json").read_text())
    (encoder / "ohd.json").unlink()
    old = dict(record["vision_config"])
    del old["hidden_act"]
    new = record["vision_config"] | {"hidden_act": "gelu"}
    (encoder / "config.json").write_text(json.dumps(record | {"vision_config": new, "vision_config_dict": old}))
    with pytest.raises(EncoderFormatError, match="hidden_act 'quick_gelu' in a CLIPModel"):
        tower.check(encoder)


# --- formats of ohd.json


def test_a_folder_of_format_1_is_read_with_the_checks_it_has(encoder: Path, tmp_path: Path) -> None:
    record = json.loads((encoder / "ohd.json").read_text())
    del record["files"]
    (encoder / "ohd.json").write_text(json.dumps(record | {"format": 1}))
    assert tower.check(encoder).digest == record["digest"]
    tower.import_encoder(encoder, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "ohd.json").read_text())["files"].keys() >= {"config.json", "vocab.json"}
    (encoder / "ohd.json").write_text(json.dumps(record))
    with pytest.raises(EncoderFormatError, match="files is None"):
        tower.check(encoder)


def test_import_of_an_altered_encoder(encoder: Path, tmp_path: Path) -> None:
    """Import does not make a sound folder of one that `check` refuses."""
    record = json.loads((encoder / "config.json").read_text())
    record["vision_config"]["hidden_act"] = "gelu"
    (encoder / "config.json").write_text(json.dumps(record))
    with pytest.raises(EncoderFormatError, match=r"config\.json was altered"):
        tower.import_encoder(encoder, tmp_path / "new")
    (encoder / "ohd.json").unlink()
    tower.import_encoder(encoder, tmp_path / "new")
