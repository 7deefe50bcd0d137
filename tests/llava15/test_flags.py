"""Every command of LLaVA's own scripts, files of flags, and the recipes: they parse, and mean what they meant there."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_ohd.errors import DataFormatError, EncoderNotFound, LlavaOhdError
from llava_ohd.llava15.arguments import parse
from llava_ohd.llava15.flags import check_paths, prepare, translate
from llava_ohd.tower import hub

CHECKOUT = Path(__file__).parents[2]
REPO = os.environ.get("LLAVA_REPO")
RECIPES = sorted((CHECKOUT / "scripts/recipes").glob("*.yaml"))

# haotian-liu/LLaVA @ c121f04: what all of these scripts give, and what each gives beside or instead
COMMON = """
    --vision_tower openai/clip-vit-large-patch14 --mm_vision_select_layer -2 --mm_use_im_start_end False
    --mm_use_im_patch_token False --bf16 True --num_train_epochs 1 --per_device_train_batch_size 16
    --per_device_eval_batch_size 4 --gradient_accumulation_steps 1 --evaluation_strategy no --save_strategy steps
    --save_steps 50000 --save_total_limit 1 --learning_rate 2e-5 --weight_decay 0. --warmup_ratio 0.03
    --lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True
    --dataloader_num_workers 4 --lazy_preprocess True --report_to wandb --version v1
"""
NEW = "--vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu --deepspeed ./scripts/zero3.json"
MIX = f"{NEW} --data_path ./playground/data/llava_v1_5_mix665k.json --image_folder ./playground/data"
MIX += " --image_aspect_ratio pad --group_by_modality_length True"
TASK = f"{MIX} --model_name_or_path liuhaotian/llava-v1.5-13b"
STAGE_1 = "--pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"
VICUNA = f"{MIX} {STAGE_1} --model_name_or_path lmsys/vicuna-13b-v1.5"
LORA = "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4"
OLD = "--deepspeed ./scripts/zero2.json --model_name_or_path ./checkpoints/vicuna-v1-3-7b"
COCO = f"{OLD} --image_folder /path/to/coco/train2017"
COCO += " --pretrain_mm_mlp_adapter ./checkpoints/llava-vicuna-v1-3-7b-pretrain/mm_projector.bin"
CAPTIONS = f"{OLD} --version plain --tune_mm_mlp_adapter True --learning_rate 2e-3 --save_steps 24000"
CAPTIONS += " --data_path /path/to/pretrain_data.json --image_folder /path/to/images"
CAPTIONS += " --output_dir ./checkpoints/llava-vicuna-v1-3-7b-pretrain"
SQA = "--model_name_or_path lmsys/vicuna-13b-v1.3 --data_path /Data/ScienceQA/data/scienceqa/llava_train_QCM-LEA.json"
SQA += " --image_folder /Data/ScienceQA/data/scienceqa/images/train --num_train_epochs 12"
SQA += " --pretrain_mm_mlp_adapter"
SQA += " ./checkpoints/huggingface/liuhaotian/llava-pretrain-vicuna-13b-v1.3/mm_projector.bin --output_dir"
SQA += " ./checkpoints/llava-vicuna-13b-v1.3-pretrain_lcs558k_plain-ScienceQA_QCM_LEA-12e"
PRETRAIN_DATA = "--data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json"
PRETRAIN_DATA += " --image_folder ./playground/data/LLaVA-Pretrain/images"
SCRIPTS: dict[str, tuple[str, str]] = {  # stage, flags
    "v1_5/pretrain": (
        "projector",
        f"{NEW} --deepspeed ./scripts/zero2.json --model_name_or_path lmsys/vicuna-13b-v1.5 --version plain"
        f" {PRETRAIN_DATA} --tune_mm_mlp_adapter True --output_dir ./checkpoints/llava-v1.5-13b-pretrain"
        " --per_device_train_batch_size 32 --save_steps 24000 --learning_rate 1e-3",
    ),
    "v1_5/finetune": ("full", f"{VICUNA} --output_dir ./checkpoints/llava-v1.5-13b"),
    "v1_5/finetune_lora": ("lora", f"{VICUNA} {LORA} --output_dir ./checkpoints/llava-v1.5-13b-lora"),
    "v1_5/finetune_task": ("full", f"{TASK} --output_dir ./checkpoints/llava-v1.5-13b-task"),
    "v1_5/finetune_task_lora": ("lora", f"{TASK} {LORA} --output_dir ./checkpoints/llava-v1.5-13b-task-lora"),
    "pretrain": ("projector", CAPTIONS),
    "pretrain_xformers": (
        "projector",
        f"{CAPTIONS} --bf16 False --tf32 False --per_device_train_batch_size 4 --gradient_accumulation_steps 4",
    ),
    "finetune": (
        "full",
        f"{COCO} --data_path ./playground/data/llava_instruct_80k.json"
        " --output_dir ./checkpoints/llava-vicuna-v1-3-7b-finetune",
    ),
    "finetune_full_schedule": (
        "full",
        f"{COCO} --data_path ./playground/data/llava_instruct_158k.json --num_train_epochs 3"
        " --output_dir ./checkpoints/llava-vicuna-v1-3-7b-finetune",
    ),
    "finetune_lora": (
        "lora",
        f"{COCO} --data_path ./playground/data/llava_instruct_80k.json --lora_enable True"
        " --output_dir ./checkpoints/llava-vicuna-v1-3-7b-finetune_lora",
    ),
    "finetune_qlora": (
        "qlora",
        f"{COCO} --data_path ./playground/data/llava_instruct_80k.json --lora_enable True --bits 4"
        " --output_dir ./checkpoints/llava-vicuna-v1-3-7b-finetune_lora",
    ),
    "finetune_sqa": ("full", f"{SQA} --deepspeed ./scripts/zero2.json"),
}


@pytest.fixture(autouse=True)
def _whole_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No download, another working folder than the checkout, and no DeepSpeed configuration left behind."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    monkeypatch.setattr(hub, "encoder_snapshot", lambda name, revision, folder: tmp_path / "hub" / name)
    monkeypatch.chdir(tmp_path)
    yield
    unset_hf_deepspeed_config()


def flags(text: str) -> list[str]:
    """Returns the flags of a script; one that stands twice counts where it stands last."""
    given: dict[str, str] = {}
    parts = shlex.split(text)
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        given[name] = value
    return [part for pair in given.items() for part in pair]


def parsed(arguments: list[str]) -> tuple[Any, Any, Any, list[str]]:
    given, prepared = prepare(arguments)
    given, notes = translate(given, cuda=False)
    return *parse(given, ""), [*prepared, *notes]


def original(script: str) -> list[str]:
    """Returns the flags in LLaVA's own file, as the shell gives them to train.py."""
    lines = (Path(str(REPO)) / "scripts" / f"{script}.sh").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#") and "=" not in line.split(" ")[0])
    command = text[text.index("deepspeed ") :].replace("\\\n", " ")
    version = "plain" if script.startswith("pretrain") else "v1"
    for name, value in (("PROMPT_VERSION", version), ("MODEL_VERSION", "vicuna-v1-3-7b")):
        command = re.sub(rf"\${name}\b", value, command)
    return shlex.split(command)[2:]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_of_llava_parses(script: str) -> None:
    stage, more = SCRIPTS[script]
    arguments = flags(COMMON + more)
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    model, data, training, notes = parsed(arguments)
    assert training.stage == stage
    assert {note.split(":")[0].split(" ")[0] for note in notes} == {
        *("--vision_tower", "--deepspeed", "--evaluation_strategy", "--warmup_ratio", "--tf32"),
        *("--gradient_checkpointing", "--lazy_preprocess", "--use_cpu"),
    }
    assert len(notes) == 8
    assert training.eval_strategy == "no"
    assert training.warmup_steps == 0.03
    assert training.activation_checkpointing
    assert training.bits == int(given.get("--bits", 16))
    assert training.deepspeed == str(CHECKOUT / "zero_configs" / Path(given["--deepspeed"]).name)
    assert model.vision_tower.endswith(f"hub/{given['--vision_tower']}")
    for part in (model, data, training):
        for name, value in given.items():
            field = getattr(part, name[2:], None)
            if name not in ("--vision_tower", "--deepspeed", "--lazy_preprocess", "--gradient_checkpointing", "--tf32"):
                assert field is None or _same(field, value), name


def _same(field: Any, value: str) -> bool:
    field = getattr(field, "value", field)
    if isinstance(field, list):
        return field == [value]
    return (
        float(field) == float(value)
        if type(field) in (int, float)
        else str(field).removeprefix("./") == value.removeprefix("./")
    )


@pytest.mark.skipif(not REPO, reason="LLAVA_REPO is not set: give a checkout of haotian-liu/LLaVA @ c121f04")
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_lists_are_llavas_own(script: str) -> None:
    ours, theirs = flags(COMMON + SCRIPTS[script][1]), original(script)
    assert dict(zip(ours[::2], ours[1::2], strict=True)) == dict(zip(theirs[::2], theirs[1::2], strict=True))
    assert parsed(theirs)[2].stage == SCRIPTS[script][0]


@pytest.mark.skipif(not REPO, reason="LLAVA_REPO is not set: give a checkout of haotian-liu/LLaVA @ c121f04")
def test_no_training_script_is_left_out() -> None:
    files = [*Path(str(REPO)).glob("scripts/*.sh"), *Path(str(REPO)).glob("scripts/v1_5/*.sh")]
    training = [file for file in files if re.search("llava/train/train", file.read_text())]
    assert {str(file.relative_to(f"{REPO}/scripts").with_suffix("")) for file in training} == SCRIPTS.keys()


STAGES = {"projector": (256, 1e-3), "lora": (128, 2e-4), "qlora": (128, 2e-4), "full": (128, 2e-5)}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_parse(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    model, data, training, _ = parsed([str(recipe)])
    size, stage = recipe.stem.split("_")[3:]
    assert training.stage == stage
    assert f"vicuna-{size}-v1.5" in model.model_name_or_path
    batch, rate = STAGES[stage]
    assert 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps == batch
    assert (training.learning_rate, training.warmup_steps, training.num_train_epochs) == (rate, 0.03, 1)
    assert (model.version, data.image_aspect_ratio) == (("plain", "square") if stage == "projector" else ("v1", "pad"))
    assert model.vision_tower == "ours"
    assert training.optim == "adamw_torch"
    given = parsed([str(recipe), "--learning_rate", "5e-5", "--vision_tower=openai"])
    assert (given[2].learning_rate, given[0].vision_tower) == (5e-5, "openai")


def test_recipes_agree_with_llavas_commands() -> None:
    assert len(RECIPES) == 8
    own = {"--vision_tower", "--output_dir", "--deepspeed", "--report_to", "--save_steps", "--pretrain_mm_mlp_adapter"}
    own |= {"--data_path", "--image_folder", "--per_device_eval_batch_size", "--evaluation_strategy"}
    own |= {"--lazy_preprocess"}
    for stage, script in (("projector", "v1_5/pretrain"), ("lora", "v1_5/finetune_lora"), ("full", "v1_5/finetune")):
        theirs = flags(COMMON + SCRIPTS[script][1])
        recipe = prepare([str(CHECKOUT / f"scripts/recipes/llava_v1_5_13b_{stage}.yaml")])[0]
        ours = dict(zip(recipe[::2], recipe[1::2], strict=True))
        for name, value in zip(theirs[::2], theirs[1::2], strict=True):
            if name not in own:
                assert _same(float(ours[name]) if re.match(r"[-\d]", value) else ours[name], value), (stage, name)
            elif name.endswith(("path", "folder")):
                assert f"./{ours[name]}" == value


def test_every_value_of_a_recipe_has_a_source() -> None:
    for recipe in RECIPES:
        head = recipe.read_text().split("\n\n")[0]
        assert "Source: haotian-liu/LLaVA scripts/v1_5/" in head
        assert "@ c121f04" in head


def test_a_file_of_flags_stands_first_and_is_overridden(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "learning_rate: 1e-3\nsave_strategy: no\nbf16: True\nrun_name:\nreport_to: [a, b]\n"
    )
    expected = ["--learning_rate", "1e-3", "--save_strategy", "no", "--bf16", "True", "--report_to", "a", "b"]
    assert prepare([str(tmp_path / "a.yaml")]) == (expected, [])
    launched, _ = prepare(["--local_rank=1", str(tmp_path / "a.yaml"), "--seed=3"])  # as deepspeed starts it
    assert launched == ["--local_rank", "1", *expected, "--seed", "3"]
    (tmp_path / "a.json").write_text(json.dumps({"seed": 1, "deepspeed": {"zero_optimization": {"stage": 2}}}))
    assert prepare([str(tmp_path / "a.json")])[0][3] == '{"zero_optimization": {"stage": 2}}'
    (tmp_path / "b.yaml").write_text("deepspeed:\n  zero_optimization:\n    stage: 2\n")
    assert prepare([str(tmp_path / "b.yaml")])[0][1] == '{"zero_optimization": {"stage": 2}}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", "a file of flags is a .json or .yaml"),
        ("a.yaml", "- 1\n- 2\n", "must hold names and values"),
        ("a.yaml", "a: [1", "is not YAML"),
        ("a.json", "{", "is not JSON"),
        ("none.yaml", None, "does not exist"),
    ],
)
def test_what_is_no_file_of_flags(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataFormatError, match=message):
        prepare([str(tmp_path / name)])


def test_a_misspelt_flag_in_a_file_is_refused(tmp_path: Path) -> None:
    recipe = RECIPES[0].read_text().replace("learning_rate", "learning_rat")
    (tmp_path / "a.yaml").write_text(recipe)
    with pytest.raises(LlavaOhdError, match="learning_rat"):
        parsed([str(tmp_path / "a.yaml")])


def test_flags_that_transformers_renamed_or_that_do_nothing() -> None:
    given, notes = translate(["--group_by_length", "True", "--no_cuda", "True", "--cache_dir", "x"], cuda=False)
    assert given == ["--train_sampling_strategy", "group_by_length", "--use_cpu", "True", "--cache_dir", "x"]
    assert notes[2] == "--cache_dir: without effect, set HF_HOME instead"
    assert translate(["--group_by_length", "False"], cuda=True)[0] == ["--train_sampling_strategy", "random"]
    assert translate(["--group_by_length"], cuda=True)[0] == ["--train_sampling_strategy", "group_by_length"]


def test_images_may_lie_in_an_archive(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "a")
    model = ["--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    check_paths(["--image_folder", str(tmp_path / "a.zip"), *model])
    with pytest.raises(DataFormatError, match=r"no such folder, \.zip or \.tar"):
        check_paths(["--image_folder", str(tmp_path / "b.zip"), *model])


def test_an_encoder_of_the_hub_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, revision: str | None, folder: str) -> Path:
        raise EncoderNotFound(f"the Hub repository {name} at {revision} cannot be had")

    monkeypatch.setattr(hub, "encoder_snapshot", offline)
    with pytest.raises(EncoderNotFound, match="openai/clip-vit-large-patch14-336 at ce19dc9"):
        prepare(["--vision_tower", "openai/clip-vit-large-patch14-336"])
