"""LLaVA's own commands parse; what cannot be honoured is refused."""

import shlex
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError, EncoderNotFound, LlavaOhdError, ModelNotFound, StorageError
from llava_ohd.llava15.arguments import flags, parse
from llava_ohd.llava15.flags import check_paths, separated, translate

ZERO = Path(__file__).parents[2] / "zero_configs"
# scripts/v1_5/pretrain.sh and finetune_lora.sh of LLaVA @ c121f04: every flag, in their order
PRETRAIN = """
    --model_name_or_path lmsys/vicuna-13b-v1.5 --version plain
    --data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json
    --image_folder ./playground/data/LLaVA-Pretrain/images --vision_tower openai/clip-vit-large-patch14-336
    --mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True --mm_vision_select_layer -2 --mm_use_im_start_end False
    --mm_use_im_patch_token False --bf16 True --output_dir ./checkpoints/llava-v1.5-13b-pretrain --num_train_epochs 1
    --per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 24000 --save_total_limit 1 --learning_rate 1e-3
    --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 --tf32 True
    --model_max_length 2048 --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True
    --report_to wandb
"""
LORA = """
    --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5
    --model_name_or_path lmsys/vicuna-13b-v1.5 --version v1
    --data_path ./playground/data/llava_v1_5_mix665k.json --image_folder ./playground/data
    --vision_tower openai/clip-vit-large-patch14-336
    --pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin --mm_projector_type mlp2x_gelu
    --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad
    --group_by_modality_length True --bf16 True --output_dir ./checkpoints/llava-v1.5-13b-lora --num_train_epochs 1
    --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
    --evaluation_strategy "no" --save_strategy "steps" --save_steps 50000 --save_total_limit 1 --learning_rate 2e-4
    --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine" --logging_steps 1 --tf32 True
    --model_max_length 2048 --gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True
    --report_to wandb
"""


def test_llavas_pretrain_command_parses() -> None:
    arguments, notes = translate(shlex.split(PRETRAIN), cuda=False)
    model, data, training = parse(arguments, "")
    assert [note.split(":")[0] for note in notes] == [
        "--evaluation_strategy",
        "--warmup_ratio",
        "--tf32",
        "--gradient_checkpointing",
        "--lazy_preprocess",
        "--use_cpu True",
    ]
    assert (model.version, model.mm_vision_select_layer, model.tune_mm_mlp_adapter) == ("plain", -2, True)
    assert data.image_aspect_ratio == "square"
    assert (training.stage, training.learning_rate, training.warmup_steps) == ("projector", 1e-3, 0.03)
    assert training.activation_checkpointing is True
    assert training.get_warmup_steps(1000) == 30
    assert training.bf16


def test_llavas_lora_command_parses() -> None:
    arguments, _ = translate(shlex.split(LORA), cuda=False)
    model, data, training = parse(arguments, "")
    assert training.stage == "lora"
    assert (training.lora_r, training.lora_alpha, training.mm_projector_lr) == (128, 256, 2e-5)
    assert training.group_by_modality_length
    assert data.image_aspect_ratio == "pad"
    recorded = flags(model, data, training)
    assert recorded["lr_scheduler_type"] == "cosine"
    assert recorded["deepspeed"] is None
    assert "output_dir" not in recorded


def test_translation_keeps_what_it_does_not_know() -> None:
    given = ["--logging_dir=x y", "--warmup_ratio=0.1", "--save_safetensors", "--report_to", "wandb", "tensorboard"]
    arguments, notes = translate(separated(given), cuda=True)
    assert arguments == ["--warmup_steps", "0.1", "--report_to", "wandb", "tensorboard"]
    assert len(notes) == 3
    assert translate(["--tf32", "True"], cuda=True)[0] == ["--tf32", "True"]
    assert translate(["--use_cpu", "True"], cuda=False) == (["--use_cpu", "True"], [])


BASE = "--model_name_or_path lm --vision_tower ours --data_path rows.json --image_folder images --output_dir out"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--lora_enable True --version v0", "--version v0: only plain or v1"),
        ("--lora_enable True --mm_use_im_start_end True", "--mm_use_im_start_end True: only False"),
        ("--lora_enable True --image_aspect_ratio anyres", "only pad or square"),
        ("--lora_enable True --no_such_flag 1", "no_such_flag"),
        ("--lora_enable True --lr_scheduler_type nonsense", "nonsense"),
        ("--train_sampling_strategy sequential", "only random or group_by_length"),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor 0.1: only 0.0"),
        ("--neftune_noise_alpha 5", "--neftune_noise_alpha 5.0: only None"),
        ("--resume_from_checkpoint out/checkpoint-4", "only None"),
        ("--save_only_model True", "--save_only_model True: only False"),
        ("--evaluation_strategy steps --eval_steps 5", "eval_strategy .*only no"),
        ("--lora_enable True --lora_r 0", "--lora_r 0: give a number of at least 1"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0: give a number of at least 1"),
        ("--push_to_hub True", "--push_to_hub True: only False"),
        ("""--accelerator_config '{"even_batches": false}'""", "--accelerator_config .*not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused(more: str, message: str) -> None:
    arguments, _ = translate(shlex.split(f"{BASE} {more}"), cuda=False)
    with pytest.raises(LlavaOhdError, match=message):
        parse(arguments, "")


@pytest.mark.parametrize(
    ("name", "value"), [("USE_DEEPSPEED", "true"), ("USE_FSDP", "true"), ("MIXED_PRECISION", "fp16")]
)
def test_what_accelerates_configuration_asks_for_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(LlavaOhdError, match=f"asks for {name.lower()}"):
        parse(shlex.split(f"{BASE} --lora_enable True --use_cpu True"), "")


def test_everything_that_changes_weights_is_recorded(tmp_path: Path) -> None:
    zero = tmp_path / "zero.json"
    zero.write_text('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}')
    plain = flags(*parse(shlex.split(f"{BASE} --use_cpu True"), ""))
    for more, names in (
        (f"--deepspeed {zero}", {"deepspeed"}),
        ("--attn_implementation flash_attention_2", {"attn_implementation"}),
        ("--dataloader_drop_last True", {"dataloader_drop_last"}),
        ("--data_seed 3", {"data_seed"}),
        ("--feature_cache DIR --feature_cache_dtype bfloat16", {"feature_cache_dtype"}),
        ("--feature_cache DIR", set()),
        ("--data_policy skip", {"data_policy"}),
        ("--bits 4 --lora_enable True", {"bits", "quant_type", "double_quant", "lora_r", "lora_alpha", "lora_dropout"}),
    ):
        found = flags(*parse(shlex.split(f"{BASE} --use_cpu True {more}"), ""))
        assert {key for key in found.keys() | plain.keys() if found.get(key) != plain.get(key)} == names, more


def test_an_optimizer_of_deepspeed_would_hide_the_projectors_rate(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}')
    for rate in ("--mm_projector_lr 2e-5", ""):
        more = f"--lora_enable True {rate} --deepspeed {tmp_path / 'zero.json'} --use_cpu True"
        with pytest.raises(LlavaOhdError, match=r"has an 'optimizer'.*remove that part"):
            parse(shlex.split(f"{BASE} {more}"), "")


def test_wrong_paths_are_named(tmp_path: Path, tiny_encoder_dir: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text("[]")
    right = {
        "--data_path": str(rows),
        "--image_folder": str(tmp_path),
        "--model_name_or_path": str(tmp_path),
        "--vision_tower": str(tiny_encoder_dir),
        "--deepspeed": str(ZERO / "zero2.json"),
        "--output_dir": str(tmp_path / "out"),
    }

    def check(**changed: str) -> None:
        flags = right | {f"--{name}": value for name, value in changed.items()}
        check_paths([part for pair in flags.items() for part in pair])

    check()
    check(model_name_or_path="lmsys/vicuna-7b-v1.5")  # a name on the Hub
    for name, error in (
        ("data_path", DataFormatError),
        ("image_folder", DataFormatError),
        ("deepspeed", DataFormatError),
        ("model_name_or_path", ModelNotFound),
        ("pretrain_mm_mlp_adapter", ModelNotFound),
        ("vision_tower", EncoderNotFound),
    ):
        with pytest.raises(error, match="no-such"):
            check(**{name: "no-such"})
    check(pretrain_mm_mlp_adapter="random")
    with pytest.raises(StorageError, match="give the folder that the model goes to"):
        check(output_dir=right["--deepspeed"])  # a file
    with pytest.raises(StorageError, match="--output_dir is missing"):
        check_paths(["--model_name_or_path", str(tmp_path)])
