"""Zero-shot recognition: the ensemble, and which images count for which metric."""

import json
from pathlib import Path

import pytest
import torch

from llava_ohd import tower
from llava_ohd.clip.embedding import Images
from llava_ohd.clip.zero_shot import TEMPLATES, Recognition, embed_kinds, metrics, predictions, read_kinds, recognise
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.pope_questions import ImageObjects


def test_a_kind_is_the_mean_of_its_prompts(tiny_encoder_dir: Path) -> None:
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    found = embed_kinds(model, tokenizer, ["ball", "umbrella"])
    for vector, named in zip(found, ("a ball", "an umbrella"), strict=True):
        texts = tokenizer([template.format(named) for template in TEMPLATES], padding=True, return_tensors="pt")
        with torch.no_grad():
            prompts = model.text_projection(model.text_model(**texts).pooler_output)
        mean = torch.nn.functional.normalize(prompts, dim=-1).mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_recognises_the_nearest_kind(tiny_encoder_dir: Path, ohd: tuple[Path, Path]) -> None:
    _, folder = ohd
    model, tokenizer = tower.load(tiny_encoder_dir), tower.load_tokenizer(tiny_encoder_dir)
    processor = tower.load_processor(tiny_encoder_dir)
    names = [f"{number:03}.png" for number in range(8)]
    objects = [ImageObjects(name, ("ball",)) for name in names]
    found = recognise(model, tokenizer, Images(folder, names, processor), objects, ["ball", "cup", "key"])
    kinds = embed_kinds(model, tokenizer, ["ball", "cup", "key"])
    for name, kind in zip(names, found.predicted, strict=True):
        pixels = processor(tower.open_image(folder / name), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        assert kind == ["ball", "cup", "key"][int((kinds @ image[0]).argmax())]


def test_images_of_one_kind_and_of_several_are_kept_apart() -> None:
    images = [ImageObjects("a", ("ball",)), ImageObjects("b", ("cup",)), ImageObjects("c", ("cup", "key"))]
    found = Recognition(images, ["ball", "ball", "key"])
    values = {metric.name: (metric.value, metric.n) for metric in metrics(found)}
    assert values["accuracy"] == (0.5, 2)
    assert values["accuracy_present"] == (1.0, 1)
    assert [(row["image"], row["correct"]) for row in predictions(found)] == [("a", True), ("b", False)]
    assert [row["image"] for row in predictions(found, single=False)] == ["c"]


def test_reads_coco_instances(tmp_path: Path) -> None:
    record = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7}, {"id": 2, "image_id": 1, "category_id": 7}],
        "categories": [{"id": 7, "name": "cup"}, {"id": 8, "name": "key"}],
    }
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(record))
    assert read_kinds(file) == ([ImageObjects("a.png", ("cup",))], ["cup", "key"])
    file.write_text(json.dumps(record | {"annotations": []}))
    with pytest.raises(DataFormatError, match="no image with an object"):
        read_kinds(file)
