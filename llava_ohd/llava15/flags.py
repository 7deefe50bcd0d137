"""The command line before anything heavy is imported: dead flags translated, wrong paths found in a second.

Source of the flags: haotian-liu/LLaVA scripts/v1_5/*.sh @ c121f04; of the changes: transformers 5 `TrainingArguments`.
"""

from itertools import pairwise
from pathlib import Path

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, ModelNotFound

__all__ = ["check_paths", "separated", "translate"]

_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # a number below 1 is a share of all steps
    "gradient_checkpointing": "activation_checkpointing",
}
_DROPPED = ("save_safetensors", "overwrite_output_dir", "logging_dir")


def separated(arguments: list[str]) -> list[str]:
    """Returns a command line in which every flag stands apart from its value: `--flag=value` becomes two parts."""
    return [part for given in arguments for part in (given.split("=", 1) if given.startswith("--") else [given])]


def translate(arguments: list[str], cuda: bool) -> tuple[list[str], list[str]]:
    """Translates the flags of LLaVA's scripts that transformers 5 does not take.

    Args:
        arguments: A command line without the program, `separated`.
        cuda: Whether there is a GPU.

    Returns:
        The arguments for transformers 5, and one line for each change.
    """
    kept: list[str] = []
    notes: list[str] = []
    dropping = False
    for part in arguments:
        if part.startswith("--"):
            name = part.removeprefix("--")
            dropping = name in _DROPPED or (name == "tf32" and not cuda)
            if dropping:
                reason = "there is no GPU" if name == "tf32" else "transformers 5 has no such flag"
                notes.append(f"{part}: left out, {reason}")
            elif name in _RENAMED:
                notes.append(f"{part}: is --{_RENAMED[name]} in transformers 5")
                part = f"--{_RENAMED[name]}"
        if not dropping:
            kept.append(part)
    if not cuda and "--use_cpu" not in kept:
        kept += ["--use_cpu", "True"]
        notes.append("--use_cpu True: added, there is no GPU")
    return kept, notes


def check_paths(arguments: list[str]) -> None:
    """Looks whether the files and folders that a command line names are there.

    Raises:
        DataFormatError: the training json, the image folder or the DeepSpeed file is not there.
        ModelNotFound: the language model or the projector to start from is not there.
        EncoderNotFound, EncoderFormatError: the encoder.
    """
    given = dict(pairwise(arguments))
    for flag, is_there, kind in (
        ("--data_path", Path.is_file, "file"),
        ("--image_folder", Path.is_dir, "folder"),
        ("--deepspeed", Path.is_file, "file"),
    ):
        if flag in given and not is_there(Path(given[flag])) and not given[flag].startswith("{"):
            raise DataFormatError(f"{flag} {given[flag]}: there is no such {kind}; give an existing one")
    language = given.get("--model_name_or_path", "")
    if not Path(language).is_dir() and (language.count("/") != 1 or language[:1] in "./~"):
        raise ModelNotFound(f"--model_name_or_path {language}: there is no such folder; give a language model's folder")
    projector = given.get("--pretrain_mm_mlp_adapter")
    if projector is not None and not Path(projector).exists():
        raise ModelNotFound(f"--pretrain_mm_mlp_adapter {projector} does not exist; run stage projector first")
    if "--vision_tower" in given:
        tower.resolve(given["--vision_tower"])
