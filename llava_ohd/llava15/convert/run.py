"""The conversion: opens the source, writes the target beside its place, compares the two, and puts it in place."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from llava_ohd import tower
from llava_ohd.command_line import helps
from llava_ohd.errors import LlavaOhdError, StorageError
from llava_ohd.files import atomic_folder, read_json, write_json
from llava_ohd.llava15.convert import targets
from llava_ohd.llava15.convert.parity import Row, pictures, verify
from llava_ohd.llava15.convert.parts import Parts, in_type
from llava_ohd.llava15.convert.shards import parse_size
from llava_ohd.llava15.convert.sources import open_source, with_encoder

__all__ = ["ConvertConfig", "convert"]

TARGETS = ("hf", "llava", "projector")
_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class ConvertConfig:
    """What is converted, and into what."""

    source: Path = field(metadata=helps("model folder: ours, the original LLaVA's (whole, LoRA, projector), or HF's"))
    out: Path = field(metadata=helps("folder to write; LLaVA needs 'llava' in its name, and no 'lora'"))
    to: str = field(default="hf", metadata=helps("hf, llava, or projector (mm_projector.bin alone)"))
    base: str | None = field(default=None, metadata=helps("language model of an original LoRA or projector"))
    encoder: str | None = field(default=None, metadata=helps("where its encoder is, if not where the folder says"))
    swap_encoder: str | None = field(default=None, metadata=helps("export with this encoder instead: ours, PATH ..."))
    image_aspect_ratio: str | None = field(
        default=None, metadata=helps("pad or square, for HF folders whose processor does not pad (llava-hf's)")
    )
    dtype: str = field(default="auto", metadata=helps("auto: as stored; or float16, bfloat16, float32 for all weights"))
    max_shard_size: str = field(default="5GB", metadata=helps("most bytes per weight file"))
    verify: bool = field(default=False, metadata=helps("run source and export in float32, and compare; see above"))
    images: list[Path] = field(default_factory=list, metadata=helps("images for --verify; none: two made ones"))
    overwrite: bool = field(default=False, metadata=helps("replace an earlier conversion at --out"))


def convert(config: ConvertConfig) -> list[Row]:
    """Converts a model folder.

    Args:
        config: What into what.

    Returns:
        The parity report; empty without `verify`.

    Raises:
        LlavaOhdError: any of its kinds; nothing is left at `out` then.
    """
    if config.to not in TARGETS or config.dtype not in ("auto", *_TYPES):
        raise LlavaOhdError(f"--to {config.to} --dtype {config.dtype}: one of {TARGETS} and of {('auto', *_TYPES)}")
    if config.image_aspect_ratio not in (None, "pad", "square"):
        raise LlavaOhdError(f"--image_aspect_ratio {config.image_aspect_ratio}: pad or square is expected")
    if config.verify and config.to == "projector":
        raise LlavaOhdError("a projector alone cannot answer; verify the whole model (--to hf or --to llava)")
    size, out = parse_size(config.max_shard_size), config.out.expanduser().absolute()
    images = [tower.open_image(path) for path in config.images] or pictures()
    _refuse_loss(out, config.overwrite)
    parts = open_source(config.source, base=config.base, encoder=config.encoder, aspect_ratio=config.image_aspect_ratio)
    if config.swap_encoder is not None:
        parts = with_encoder(parts, config.swap_encoder)
    _refuse_inside(out, parts)
    made = parts if config.dtype == "auto" else in_type(parts, _TYPES[config.dtype])
    with atomic_folder(out) as folder:
        if config.to == "hf":
            targets.write_hf(made, folder, size)
        elif config.to == "llava":
            targets.write_llava(made, folder, out, size)
        else:
            targets.write_projector(made, folder, out)
        rows = verify(parts, folder, images) if config.verify else []
        if rows:
            report = {row.what: {"difference": row.difference, "tolerance": row.tolerance} for row in rows}
            write_json(folder / "ohd.json", read_json(folder / "ohd.json") | {"parity": report})
    return rows


def _refuse_loss(out: Path, overwrite: bool) -> None:
    """Raises where something would be lost."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    record = read_json(out / "ohd.json") if (out / "ohd.json").is_file() else {}
    if "converted" not in record:
        raise StorageError(f"{out} holds something else than a conversion, which would be lost; give another --out")
    if not overwrite:
        raise StorageError(f"{out} holds a conversion of {record['converted']['path']} already; say --overwrite True")


def _refuse_inside(out: Path, parts: Parts) -> None:
    for file in parts.files:
        if out.resolve() in (file.parent.resolve(), *file.parent.resolve().parents):
            raise StorageError(f"{file} is read and lies in --out {out}, which would be replaced; give another --out")
