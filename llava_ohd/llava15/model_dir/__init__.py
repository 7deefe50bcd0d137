"""The model folder: what a stage trained, in the files that LLaVA's own loader reads.

projector     mm_projector.bin                                 model.mm_projector.{0,2}.*
lora, qlora   adapter_model.safetensors, adapter_config.json   base_model.model.model.layers.N.*
              non_lora_trainables.bin                          base_model.model.model.mm_projector.{0,2}.*
full          model*.safetensors, tokenizer                    model.*, lm_head.*, model.mm_projector.{0,2}.*
every stage   config.json (of LlavaLlamaForCausalLM, with mm_vision_tower), safetensors beside each .bin, ohd.json

A tower that was trained lies in the files of the table as model.vision_tower.vision_tower.*, as LLaVA reads it with
`unfreeze_mm_vision_tower`, and as a whole encoder folder in `encoder/`, which `mm_vision_tower` names.

ohd.json, written last: {"format": 1, "kind": "llava", "stage", "encoder": {"path", "digest", "name"},
                         "base": {"path", "sha256"}, "weights": {file: sha256}, "config": {flags}, "versions"}
With a trained tower, "encoder" is the one inside, and "trained_from" that which it started as.

A model whose encoder was exchanged after training (swapping.py) is of kind "llava-swapped": "encoder" is the one that
it runs on, "swapped": {"trained_on": {"name", "digest"}, "source": {"path", "digest"}, "projector": "kept", ...}.

Source: haotian-liu/LLaVA model/builder.py, train/train.py `safe_save_model_for_hf_trainer` @ c121f04.
"""

from llava_ohd.llava15.model_dir.loading import (
    load_projector,
    load_trained,
    projector_file,
    read_projector,
    stored_weights,
)
from llava_ohd.llava15.model_dir.record import SWAPPED, ModelDir, base_of, base_sha256, encoder_of, read
from llava_ohd.llava15.model_dir.trained_weights import load_checkpoint, trained_weights
from llava_ohd.llava15.model_dir.writing import write
from llava_ohd.llava15.weight_names import llava_name

__all__ = [
    "SWAPPED",
    "ModelDir",
    "base_of",
    "base_sha256",
    "encoder_of",
    "llava_name",
    "load_checkpoint",
    "load_projector",
    "load_trained",
    "projector_file",
    "read",
    "read_projector",
    "stored_weights",
    "trained_weights",
    "write",
]
