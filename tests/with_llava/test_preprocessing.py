"""The ids and labels that LLaVA's own LazySupervisedDataset and collator give for the sentences in our case file.

`LLAVA_REPO=PATH make test-llava` compares; run as a program in the same environment, this file writes them anew:
    PYTHONPATH=.:$LLAVA_REPO python tests/with_llava/test_preprocessing.py
"""

import copy
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CASES = Path(__file__).resolve().parents[1] / "llava15/cases/preprocessing.json"
LLAMA = Path(__file__).resolve().parents[3] / "shared/data/tokenizers/llama/tokenizer.model"


def tokenizer(folder: Path, legacy: bool, longest: int) -> Any:
    """Llama's tokenizer as train.py loads it; vicuna-7b-v1.5 says legacy false, older Llama folders true."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(LLAMA.read_bytes())
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made = transformers.AutoTokenizer.from_pretrained(
        folder, model_max_length=longest, padding_side="right", use_fast=False
    )
    made.pad_token = made.unk_token
    return made


def original(case: dict[str, Any], legacy: bool, folder: Path) -> dict[str, Any]:
    """Returns what the original code makes of a case: `ids`, `trained` (spans [start, end) with labels), `words`.

    `words` is LLaVA's `modality_lengths`; its dataset takes no list of images.
    """
    import torch
    from llava import conversation
    from llava.train import train
    from PIL import Image

    conversation.default_conversation = conversation.conv_templates[case["template"]]
    made = tokenizer(folder / str(legacy), legacy, case.get("model_max_length", 2048))
    row = case["row"]
    settings = SimpleNamespace(is_multimodal=True, mm_use_im_start_end=False, image_aspect_ratio="pad")
    settings.image_folder = str(folder)
    pixels = torch.zeros(3, 4, 4)
    settings.image_processor = SimpleNamespace(
        image_mean=[0.5, 0.5, 0.5],
        crop_size={"height": 4, "width": 4},
        preprocess=lambda *_, **__: {"pixel_values": [pixels]},
    )
    if isinstance(row.get("image"), list):  # 1.5 reads one image only; its preprocessing of the text takes several
        example = train.preprocess([copy.deepcopy(row["conversations"])], made, has_image=True)
        example = {"input_ids": example["input_ids"][0], "labels": example["labels"][0]}
        words = None
    else:
        if "image" in row:
            Image.new("RGB", (4, 4)).save(folder / row["image"])
        (folder / "rows.json").write_text(json.dumps([row]))
        dataset = train.LazySupervisedDataset(str(folder / "rows.json"), made, settings)
        example, words = dataset[0], dataset.modality_lengths[0]
    batch = train.DataCollatorForSupervisedDataset(made)([example])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    return {"ids": ids, "trained": spans(ids, labels), "words": words}


def spans(ids: list[int], labels: list[int]) -> list[list[int]]:
    """Returns the maximal runs [start, end) in which the label is the token itself."""
    found: list[list[int]] = []
    for place, (token, label) in enumerate(zip(ids, labels, strict=True)):
        assert label in (-100, token)
        if label != -100:
            if found and found[-1][1] == place:
                found[-1][1] += 1
            else:
                found.append([place, place + 1])
    return found


def test_the_case_file_is_what_the_original_code_gives(tmp_path: Path) -> None:
    if not LLAMA.is_file():
        pytest.skip(f"the Llama tokenizer is not at {LLAMA}")
    cases = json.loads(CASES.read_text())
    for case in cases:
        for name, legacy in (("legacy", True), ("current", False)):
            assert original(case, legacy, tmp_path) == case[name], f"{case['name']}, {name}"


def write() -> None:
    """Writes the outputs beside the inputs."""
    cases = json.loads(CASES.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            for name, legacy in (("legacy", True), ("current", False)):
                case[name] = original(case, legacy, Path(folder))
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    CASES.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write()
