"""What ohd.json says of a run, whether two runs are the same, and the config.json that the original LLaVA reads."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_ohd.errors import LlavaOhdError, ModelFormatError
from llava_ohd.files import read_json, sha256_file
from llava_ohd.results import differences

if TYPE_CHECKING:
    from llava_ohd.llava15.arguments import ModelArguments
    from llava_ohd.tower import Encoder

__all__ = ["identity", "llava_config", "name_note", "projector_sha256", "refuse_other_run", "with_projector"]

_OF_RANKS = {"world_size", "per_device_train_batch_size", "gradient_accumulation_steps"}
_PLACES = ("model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter", "data_path", "image_folder")


def identity(record: dict[str, Any]) -> dict[str, Any]:
    """Returns what makes a run the same run, from its ohd.json: settings and digests, but not where files lie."""
    settings = {key: value for key, value in record["config"].items() if key not in _PLACES}
    start = record.get("trained_from", record["encoder"])
    digests = {"encoder digest": start["digest"], "language model sha256": record["base"]["sha256"]}
    return settings | digests | {"stage": record["stage"]}


def refuse_other_run(folder: Path, record: dict[str, Any], ranks: int) -> None:
    """Compares a run with what lies in its output folder.

    Args:
        folder: The output folder.
        record: What ohd.json is to say of the run.
        ranks: Processes of the run.

    Raises:
        ModelFormatError: the folder holds a run with other settings, whose work would be lost or mixed up.
    """
    for file in sorted([folder / "ohd.json", *folder.glob("checkpoint-*/ohd.json")]):
        if not file.is_file():
            continue
        if changed := differences(identity(read_json(file)), identity(record)):
            if {line.split(" was ")[0] for line in changed} <= _OF_RANKS:
                raise ModelFormatError(_other_ranks(file, ranks))
            raise ModelFormatError(
                f"{file.parent} was made by another run: {'; '.join(changed[:4])}. Give the old values to go on, "
                f"another --output_dir, or remove {folder} to start again"
            )


def _other_ranks(file: Path, ranks: int) -> str:
    """Says what to do where a run goes on with another number of ranks."""
    before = read_json(file)["config"]["world_size"]
    return (
        f"{file.parent} was made by {before} ranks, this run has {ranks} (or other batches): optimiser and random "
        f"states belong to ranks. Start {before} with the old batches to go on (deepspeed --num_gpus {before}, "
        f"torchrun --nproc-per-node {before}), or give another --output_dir to start again"
    )


def with_projector(model: "ModelArguments", stage: str) -> "ModelArguments":
    """Returns the flags with None where the projector is to start at random, which only stage projector does unasked.

    Raises:
        LlavaOhdError: another stage was given no projector.
    """
    start = model.pretrain_mm_mlp_adapter
    if start is None and stage != "projector":
        raise LlavaOhdError(
            f"stage {stage} without --pretrain_mm_mlp_adapter would start with a random projector, which LLaVA-1.5 "
            "never does; give the folder that stage projector wrote, or `random` where that is meant"
        )
    return replace(model, pretrain_mm_mlp_adapter=None if start == "random" else start)


def projector_sha256(start: Path, encoder: "Encoder", layer: int) -> str:
    """Returns the digest of the projector to start from.

    Args:
        start: `mm_projector.bin`, or the folder of stage projector.
        encoder: The encoder of this run.
        layer: Which hidden states of it are read (`mm_vision_select_layer`).

    Raises:
        ModelFormatError: it was trained for another encoder, or for another layer of it.
    """
    from llava_ohd.llava15.model_dir import projector_file

    file = projector_file(start)
    record = read_json(file.parent / "ohd.json") if (file.parent / "ohd.json").is_file() else {}
    if "swapped" in record:
        raise ModelFormatError(
            f"{file} belongs to a model whose encoder was exchanged after training; it was trained for the one with "
            f"digest {record['swapped']['trained_on']['digest'][:12]}. Run stage projector for this encoder"
        )
    trained_for = record.get("encoder", {})
    if trained_for and trained_for.get("digest") != encoder.digest:
        raise ModelFormatError(
            f"{file} was trained for the encoder with digest {str(trained_for.get('digest'))[:12]}, "
            f"--vision_tower is {encoder.name!r} ({encoder.digest[:12]}); run stage projector for this encoder"
        )
    if (before := record.get("config", {}).get("mm_vision_select_layer", layer)) != layer:
        raise ModelFormatError(
            f"{file} was trained on layer {before} of the encoder, --mm_vision_select_layer is {layer}; give the "
            "former, or run stage projector for this one"
        )
    return sha256_file(file)


def name_note(folder: Path, stage: str) -> str:
    """Returns what to say of a folder whose name the original LLaVA would take for another kind of model; else ""."""
    from llava_ohd.llava15.model_dir.record import ADAPTER_STAGES

    name, adapter = folder.name.lower(), stage in ADAPTER_STAGES
    if "llava" in name and (stage == "projector" or ("lora" in name) == adapter):
        return ""
    named = "llava and lora" if adapter else "llava, and not lora"
    return f"NOTE: the original LLaVA loads by name: rename {folder.name} to hold {named} before it is used there"


def llava_config(base: Path, encoder: "Encoder", flags: dict[str, Any]) -> dict[str, Any]:
    """Returns config.json as the original LLaVA reads it: that of the language model, with what LLaVA adds.

    Args:
        base: Folder of the language model.
        encoder: The encoder.
        flags: `config` of ohd.json.
    """
    config = read_json(base / "config.json")
    rope = config.pop("rope_parameters", None) or {}  # transformers 5's spelling, which 4.37 would not see
    config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    config["torch_dtype"] = config.pop("dtype", None) or config.get("torch_dtype")
    mm = {key: flags[key] for key in flags if key.startswith("mm_")}
    return (
        config
        | mm
        | {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava_llama",
            "mm_vision_tower": str(encoder.path),
            "mm_hidden_size": encoder.hidden_size,
            "use_mm_proj": True,
            "image_aspect_ratio": flags["image_aspect_ratio"],
            "tune_mm_mlp_adapter": flags["tune_mm_mlp_adapter"],
            "freeze_mm_mlp_adapter": flags.get("freeze_mm_mlp_adapter", False),
            "unfreeze_mm_vision_tower": False,
            "tokenizer_padding_side": "right",
            "tokenizer_model_max_length": flags["model_max_length"],
            "use_cache": True,
        }
    )
