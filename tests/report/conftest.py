"""A small world with two models whose answers are drawn: `ours` says yes to fewer objects that are not there."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from llava_ohd.evals import chair, pope, pope_questions
from llava_ohd.evals.answers import read_answers
from llava_ohd.files import write_json, write_jsonl
from llava_ohd.records import Metric
from llava_ohd.results import write_results

KINDS = ("ball", "box", "cone", "cup", "star", "tree", "boat", "lamp")
COLOURS = ("red", "green", "blue", "orange")
HALLUCINATES = {"ours": 0.08, "stock": 0.35}


@dataclass(frozen=True)
class Demo:
    """Where the data and the evaluations lie."""

    data: Path
    evals: Path

    def folders(self, side: str, seeds: int = 1) -> list[Path]:
        return [self.evals / f"{side}{seed}" for seed in range(seeds)]


def write_data(data: Path, images: int = 40) -> None:
    generator = random.Random(0)
    record = {"images": [], "annotations": [], "categories": [{"id": i, "name": k} for i, k in enumerate(KINDS)]}
    captions = []
    for number in range(images):
        name = f"test/{number:06d}.png"
        record["images"].append({"id": number, "file_name": name, "width": 64, "height": 64})
        picture = Image.new("RGB", (64, 64), "ivory")
        chosen = generator.sample(range(len(KINDS)), 3)
        for place, kind in enumerate(chosen):
            record["annotations"].append({"id": 3 * number + place, "image_id": number, "category_id": kind})
            corner = (4 + 20 * place, 8 + 5 * kind)
            ImageDraw.Draw(picture).rectangle((*corner, corner[0] + 15, corner[1] + 15), fill=generator.choice(COLOURS))
        (data / "images" / "test").mkdir(parents=True, exist_ok=True)
        picture.save(data / "images" / name)
        captions.append({"id": number, "image_id": number, "caption": f"a {KINDS[chosen[0]]}"})
    write_json(data / "annotations" / "instances_test.json", record)
    write_json(data / "annotations" / "captions_test.json", {"images": record["images"], "annotations": captions})
    (data / "synonyms.txt").write_text("".join(f"{kind}\n" for kind in KINDS))
    objects = pope_questions.read_coco_objects(data / "annotations" / "instances_test.json")
    questions = pope_questions.build_questions(objects, n_images=images, seed=0)
    pope_questions.write_questions(data / "pope", "world", questions)


def write_evaluations(data: Path, folder: Path, side: str, seed: int) -> None:
    generator = random.Random(f"{side}{seed}")
    wrong = HALLUCINATES[side]
    encoder = {"name": {"ours": "ours", "stock": "openai"}[side], "digest": f"{side:0<8}"}
    common = {"data_set": "world", "encoder": encoder, "settings": {"max_new_tokens": 64, "seed": seed}}
    questions = pope.read_questions(data / "pope")
    verdicts = {(q.image, q.prompt): (generator.random() < wrong) != (q.label == "yes") for q in questions}
    rows = [
        {
            "question_id": q.id,
            "image": q.image,
            "prompt": q.prompt,
            "text": "Yes" if verdicts[q.image, q.prompt] else "No",
        }
        for q in questions
    ]
    write_jsonl(folder / "pope" / "answers.jsonl", rows)
    metrics = pope.score(questions, read_answers(folder / "pope" / "answers.jsonl"))
    write_results(folder / "pope/results.json", metrics, evaluation="pope", rule=pope.RULE, n=len(rows), **common)
    annotations = data / "annotations"
    vocabulary = chair.read_synonyms(data / "synonyms.txt")
    truth = chair.read_ground_truth(annotations / "instances_test.json", annotations / "captions_test.json", vocabulary)
    rows = []
    for image in sorted(name for name in truth if "/" in name):
        names = [name for name in KINDS if (name in truth[image]) != (generator.random() < wrong)]
        rows.append({"question_id": image, "image": image, "text": "a <b> & " + " and a ".join(names)})
    write_jsonl(folder / "chair" / "answers.jsonl", rows)
    metrics = chair.score(chair.read_captions(folder / "chair" / "answers.jsonl"), truth, vocabulary)
    write_results(folder / "chair/results.json", metrics, evaluation="chair", rule=chair.RULES["exact"], n=40, **common)
    rows = [{"image": f"{n}.png", "correct": generator.random() > 2 * wrong} for n in range(150)]
    write_jsonl(folder / "ohd_caps" / "predictions.jsonl", rows)
    metrics = [Metric("accuracy", sum(row["correct"] for row in rows) / 150, 150, "higher")]
    metrics.append(Metric("control_chance", 1 / 28, 150, "none"))
    write_results(folder / "ohd_caps/results.json", metrics, evaluation="ohd_caps", rule="argmax", n=150, **common)
    metrics = [Metric("accuracy", {"ours": 0.955, "stock": 0.97}[side], 200, "higher")]
    write_results(folder / "zero_shot/results.json", metrics, evaluation="zero_shot", rule="top 1", n=200, **common)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Demo:
    """Data and evaluations of both sides, three seeds; read only."""
    root = tmp_path_factory.mktemp("demo")
    write_data(root / "data")
    for side in ("ours", "stock"):
        for seed in range(3):
            write_evaluations(root / "data", root / "evals" / f"{side}{seed}", side, seed)
    return Demo(root / "data", root / "evals")
