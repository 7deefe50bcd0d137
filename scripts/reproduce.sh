#!/usr/bin/env bash
# The method, stage by stage: OHD-Caps -> encoder -> LLaVA-1.5 on the stock and on the new encoder -> POPE, CHAIR -> report.
#
#   scripts/reproduce.sh          LLaVA-1.5-7B as in the paper (arXiv 2410.03176): 8 x A100-80G, about 30 hours
#   scripts/reproduce.sh --tiny   the same lines on the embedded world: 2 CPU cores, about 10 minutes, nothing to download
#
# Needed at real size, in $DATA (default data/); what is missing is said before anything runs:
#   annotations/{instances,captions}_{train2017,val2014}.json, images/ (train2017 and val2014)   cocodataset.org
#   ohd_caps/test.jsonl     coco_annotations.json of Yufang-Liu/clip_hallucination, data/OHD-Caps/test
#   pope/                   the three coco_pope_*.json of AoiDragon/POPE, output/coco
#   synonyms.txt            data/synonyms.txt of LisaAnne/Hallucination
#   llava/pretrain.json + pretrain_images/   blip_laion_cc_sbu_558k   huggingface.co/datasets/liuhaotian/LLaVA-Pretrain
#   llava/instruct.json + instruct_images/   llava_v1_5_mix665k       huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K
#   $LANGUAGE_MODEL (default models/vicuna-7b-v1.5)          huggingface.co/lmsys/vicuna-7b-v1.5
#   Flickr30k: --rows with {"image", "caption", "objects"} adds the paper's second half of the training data.
# Every stage goes on where it was stopped when this script is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0"
    exit
elif [[ -n "${1:-}" && "$1" != --tiny ]]; then
    echo "error: $1 is not known; --tiny or nothing is expected, --help says more" >&2
    exit 2
fi
if [[ "${1:-}" == --tiny ]]; then
    export LLAVA_OHD_HOME=${LLAVA_OHD_HOME:-$PWD/runs/tiny} DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
    DATA=$LLAVA_OHD_HOME/world SIZE=mini GPUS=2 STOCK=world-openai LANGUAGE_MODEL=llava_ohd/world/assets/mini_llama
    [[ -d $DATA/annotations ]] || python scripts/build_world.py --data "$DATA"
    TRAIN=train TEST=test EXCLUDE=()
    PRETRAIN=$DATA/llava/instruct.json PRETRAIN_IMAGES=$DATA/images INSTRUCT_IMAGES=$DATA/images
    CLIP=(--max_steps 240 --learning_rate 8e-4 --batch_size 64 --negatives 13)
    # its language model has never read the form `plain`, so that both stages speak v1
    PROJECTOR=(--version v1 --max_steps 180 --per_device_train_batch_size 32 --learning_rate 3e-3)
    LORA=(--max_steps 120 --per_device_train_batch_size 32 --learning_rate 1e-3 --mm_projector_lr 1e-3
        --lora_r 32 --lora_alpha 64 --lora_dropout 0)
    COMMON=(--save_steps 50 --train_sampling_strategy group_by_length)
    POPE=()
else
    export LLAVA_OHD_HOME=${LLAVA_OHD_HOME:-$PWD/runs/7b}
    DATA=${DATA:-$PWD/data} SIZE=7b GPUS=${GPUS:-8} STOCK=openai
    LANGUAGE_MODEL=${LANGUAGE_MODEL:-models/vicuna-7b-v1.5}
    TRAIN=train2017 TEST=val2014
    EXCLUDE=(--exclude "$DATA/ohd_caps/test.jsonl" "$DATA"/pope/*.json "$DATA/annotations/instances_$TEST.json" --limit 8000)
    PRETRAIN=$DATA/llava/pretrain.json PRETRAIN_IMAGES=$DATA/llava/pretrain_images
    INSTRUCT_IMAGES=$DATA/llava/instruct_images
    for NEEDED in {instances,captions}_{train2017,val2014}.json; do NEED+=("annotations/$NEEDED"); done
    NEED+=(images ohd_caps/test.jsonl pope synonyms.txt llava/pretrain.json llava/pretrain_images llava/instruct.json
        llava/instruct_images)
    for NEEDED in "${NEED[@]}"; do
        [[ -e $DATA/$NEEDED ]] || { echo "error: $DATA/$NEEDED does not exist; see the list in $0" >&2; exit 2; }
    done
    # paper, section 5 (training details)
    CLIP=(--epochs 10 --learning_rate 1e-6 --batch_size 14 --bf16 True)
    # LLaVA scripts/v1_5/{pretrain,finetune_lora}.sh @ c121f04
    PROJECTOR=(--version plain --num_train_epochs 1 --per_device_train_batch_size 32 --learning_rate 1e-3)
    LORA=(--num_train_epochs 1 --per_device_train_batch_size 16 --learning_rate 2e-4 --mm_projector_lr 2e-5
        --lora_r 128 --lora_alpha 256 --image_aspect_ratio pad --group_by_modality_length True)
    COMMON=(--bf16 True --tf32 True --gradient_checkpointing True --model_max_length 2048 --dataloader_num_workers 4
        --save_steps 500 --save_total_limit 1)
    POPE=(--suffix)
fi
OUT=$LLAVA_OHD_HOME ANNOTATIONS=$DATA/annotations IMAGES=$DATA/images

# 1. OHD-Caps: 27 negative captions per image.                                             CPU, minutes
python scripts/build_ohd_caps.py --instances "$ANNOTATIONS/instances_$TRAIN.json" \
    --captions "$ANNOTATIONS/captions_$TRAIN.json" "${EXCLUDE[@]}" --out "$DATA/ohd_caps/train.jsonl"
if [[ $SIZE == mini ]]; then
    python scripts/build_ohd_caps.py --instances "$ANNOTATIONS/instances_$TEST.json" \
        --captions "$ANNOTATIONS/captions_$TEST.json" --out "$DATA/ohd_caps/test.jsonl"
fi

# 2. The encoder: `openai` becomes `ours`.                                                 1 GPU (24 GB), 3 hours
python -m llava_ohd.tower register openai "$(python -m llava_ohd.tower $STOCK)"
python scripts/finetune_clip.py --encoder openai --data "$DATA/ohd_caps/train.jsonl" --images "$IMAGES" "${CLIP[@]}"

for ENCODER in openai ours; do
    MODEL=$OUT/llava/llava-v1.5-$SIZE-$ENCODER EVAL=$OUT/eval/$ENCODER
    # 3. Caption accuracy, with the scorers that see no image beside it.                   1 GPU, minutes
    python eval/ohd_caps.py --encoder $ENCODER --data "$DATA/ohd_caps/test.jsonl" --images "$IMAGES" \
        --out "$EVAL/ohd_caps"
    if [[ $SIZE == mini ]]; then
        python eval/zero_shot.py --encoder $ENCODER --out "$EVAL/zero_shot" --images "$IMAGES" \
            --instances "$ANNOTATIONS/instances_zero_shot.json"
    fi

    # 4. LLaVA-1.5, stage projector: 558K captions.                                        8 GPUs, 3.5 hours
    deepspeed --num_gpus "$GPUS" scripts/finetune_llava.py --deepspeed zero_configs/zero2.json \
        --model_name_or_path "$LANGUAGE_MODEL" --vision_tower $ENCODER --tune_mm_mlp_adapter True \
        --data_path "$PRETRAIN" --image_folder "$PRETRAIN_IMAGES" --output_dir "$MODEL-projector" \
        --lr_scheduler_type cosine --warmup_ratio 0.03 --weight_decay 0 "${PROJECTOR[@]}" "${COMMON[@]}"

    # 5. LLaVA-1.5, stage lora: 665K instructions.                                         8 GPUs, 10 hours
    deepspeed --num_gpus "$GPUS" scripts/finetune_llava.py --deepspeed zero_configs/zero2.json \
        --model_name_or_path "$LANGUAGE_MODEL" --version v1 --vision_tower $ENCODER --lora_enable True \
        --pretrain_mm_mlp_adapter "$MODEL-projector/mm_projector.bin" \
        --data_path "$DATA/llava/instruct.json" --image_folder "$INSTRUCT_IMAGES" --output_dir "$MODEL-lora" \
        --lr_scheduler_type cosine --warmup_ratio 0.03 --weight_decay 0 "${LORA[@]}" "${COMMON[@]}"

    # 6. What it says about images: POPE and CHAIR.                                        1 GPU, 1 hour
    python eval/pope.py --encoder $ENCODER --set "$DATA" --out "$EVAL/pope" "${POPE[@]}"
    python eval/chair.py --encoder $ENCODER --set "$DATA" --split "$TEST" --out "$EVAL/chair"
done

# 7. Is it better, by how much, and is that significant?                                   CPU, a minute
python scripts/compare.py --ours "$OUT/eval/ours" --stock "$OUT/eval/openai" --data "$DATA" --split "$TEST" \
    --out "$OUT/report"
