"""The command line before anything heavy is imported: a file of flags, dead flags translated, wrong paths found.

Source of the flags: haotian-liu/LLaVA scripts/v1_5/*.sh @ c121f04; of the changes: transformers 5 `TrainingArguments`.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ModelNotFound, StorageError
from llava_ohd.files import read_json
from llava_ohd.llava15.image_source import ARCHIVES

__all__ = ["check_paths", "prepare", "separated", "translate"]

_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # a number below 1 is a share of all steps
    "gradient_checkpointing": "activation_checkpointing",
    "no_cuda": "use_cpu",
}
_DROPPED = ("save_safetensors", "overwrite_output_dir", "logging_dir")
_IDLE = {
    "lazy_preprocess": "rows are always read when they are needed",
    "is_multimodal": "it always is",
    "cache_dir": "set HF_HOME instead",
    "mpt_attn_impl": "there are no MPT models",
    "lora_weight_path": "LLaVA does not read it either",
}
_FILES = (".json", ".yaml", ".yml")
_ZERO = Path(__file__).resolve().parents[2] / "zero_configs"


def prepare(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Makes one command line of a file of flags and what follows it, and finds what LLaVA's scripts name elsewhere.

    Args:
        arguments: A command line without the program: flags, or a .json or .yaml file and flags that override it.

    Returns:
        The flags, `separated`, and one line for each change.

    Raises:
        DataFormatError: the file is missing, or does not hold flags.
        EncoderNotFound: an encoder named like a repository of the Hub is not to be had.
    """
    launcher = [part for part in arguments[:1] if part.startswith(("--local_rank", "--local-rank"))]
    rest = arguments[len(launcher) :]
    if rest and not rest[0].startswith("--"):
        rest = [*_file_flags(Path(rest[0])), *rest[1:]]
    found = separated([*launcher, *rest])
    notes: list[str] = []
    for place in range(len(found) - 1):
        if found[place] == "--deepspeed":
            found[place + 1] = _zero_config(found[place + 1], notes)
        elif found[place] == "--vision_tower":
            found[place + 1] = _encoder(found[place + 1], notes)
    return found, notes


def _file_flags(path: Path) -> list[str]:
    """Returns the flags in a file: an object of names and values."""
    if path.suffix not in _FILES:
        raise DataFormatError(f"{path}: flags begin with --; a file of flags is a .json or .yaml")
    content = read_json(path) if path.suffix == ".json" else _read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise DataFormatError(f"{path} must hold names and values of flags, such as 'learning_rate: 2e-5'")
    return [part for name, value in content.items() if value is not None for part in (f"--{name}", *_texts(value))]


def _read_yaml(path: Path) -> Any:
    """Reads YAML with every value as it is written: `no` is a save_strategy, not False."""
    import yaml

    if not path.is_file():
        raise DataFormatError(f"{path} does not exist; give the path of an existing file")
    text = path.read_text(encoding="utf-8")
    try:
        written, meant = yaml.load(text, Loader=yaml.BaseLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataFormatError(f"{path} is not YAML: {error}") from None
    if not isinstance(meant, dict):
        return meant
    names = zip(written, meant, strict=True)
    return {name: meant[key] if isinstance(meant[key], dict | type(None)) else written[name] for name, key in names}


def _texts(value: Any) -> list[str]:
    if isinstance(value, list):
        return [str(item) for item in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]


def _zero_config(value: str, notes: list[str]) -> str:
    ours = _ZERO / Path(value).name
    if value.startswith("{") or Path(value).exists() or not ours.is_file():
        return value
    notes.append(f"--deepspeed {value}: does not exist here; {ours} is taken")
    return str(ours)


def _encoder(value: str, notes: list[str]) -> str:
    """Returns the folder of an encoder that is named like a repository, as in all of LLaVA's scripts."""
    if value.count("/") != 1 or value[0] in "./~" or Path(value).exists() or value in tower.registered():
        return value
    from llava_ohd.tower import hub, names

    known = [row for row in names.BUILT_IN.values() if row.hub and row.source == value]
    revision = known[0].revision if known else None
    folder = hub.encoder_snapshot(value, revision or hub.remembered_commit(value), known[0].folder if known else "")
    notes.append(f"--vision_tower {value}: is the folder {folder}")
    return str(folder)


def separated(arguments: list[str]) -> list[str]:
    """Returns a command line in which every flag stands apart from its value: `--flag=value` becomes two parts."""
    return [part for given in arguments for part in (given.split("=", 1) if given.startswith("--") else [given])]


def translate(arguments: list[str], cuda: bool) -> tuple[list[str], list[str]]:
    """Translates the flags of LLaVA's scripts that transformers 5 does not take, and names those without effect.

    Args:
        arguments: A command line without the program, `separated`.
        cuda: Whether there is a GPU.

    Returns:
        The arguments for transformers 5, and one line for each change.
    """
    kept: list[str] = []
    notes: list[str] = []
    for flag, values in _flags(arguments):
        name = flag.removeprefix("--")
        if name in _DROPPED or (name == "tf32" and not cuda):
            reason = "there is no GPU" if name == "tf32" else "transformers 5 has no such flag"
            notes.append(f"{flag}: left out, {reason}")
        elif name == "group_by_length":
            strategy = "random" if values and values[0].lower() in ("false", "0", "no") else "group_by_length"
            notes.append(f"{flag}: is --train_sampling_strategy {strategy} in transformers 5")
            kept += ["--train_sampling_strategy", strategy]
        elif name in _RENAMED:
            notes.append(f"{flag}: is --{_RENAMED[name]} in transformers 5")
            kept += [f"--{_RENAMED[name]}", *values]
        else:
            if name in _IDLE:
                notes.append(f"{flag}: without effect, {_IDLE[name]}")
            kept += [flag, *values] if flag else values
    if not cuda and "--use_cpu" not in kept:
        kept += ["--use_cpu", "True"]
        notes.append("--use_cpu True: added, there is no GPU")
    return kept, notes


def _flags(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """Returns every flag with its values; what stands before the first flag has the name ""."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for part in arguments:
        if part.startswith("--"):
            found.append((part, []))
        else:
            found[-1][1].append(part)
    return [row for row in found if row != ("", [])]


def check_paths(arguments: list[str]) -> None:
    """Looks whether the files and folders that a command line names are there.

    Raises:
        DataFormatError: the training json, the images or the DeepSpeed file are not there.
        ModelNotFound: the language model or the projector to start from is not there.
        EncoderNotFound, EncoderFormatError: the encoder.
        StorageError: no folder for the model is given, or a file.
    """
    given = dict(pairwise(arguments))
    for flag, is_there, kind in (
        ("--data_path", Path.is_file, "file"),
        ("--image_folder", _holds_images, "folder, .zip or .tar"),
        ("--data_manifest", Path.is_file, "file"),
        ("--deepspeed", Path.is_file, "file"),
    ):
        if flag in given and not given[flag].startswith("{") and not is_there(Path(given[flag])):
            raise DataFormatError(f"{flag} {given[flag]}: there is no such {kind}; give an existing one")
    if "--help" not in arguments and "-h" not in arguments:
        out = given.get("--output_dir")
        if out is None or (Path(out).exists() and not Path(out).is_dir()):
            raise StorageError(f"--output_dir {out or 'is missing'}: give the folder that the model goes to")
    language = given.get("--model_name_or_path", "")
    if not Path(language).is_dir() and (language.count("/") != 1 or language[:1] in "./~"):
        raise ModelNotFound(f"--model_name_or_path {language}: there is no such folder; give a language model's folder")
    projector = given.get("--pretrain_mm_mlp_adapter")
    if projector not in (None, "random") and not Path(projector).exists():
        raise ModelNotFound(f"--pretrain_mm_mlp_adapter {projector} does not exist; run stage projector first")
    if "--vision_tower" in given:
        tower.resolve(given["--vision_tower"])


def _holds_images(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and path.suffix.lower() in ARCHIVES)
