"""Times scoring, as a user starts it: a process from its start to results.json, beside the official script.

Input:   --data DIR, the benchmark files (default: $LLAVA_OHD_DATA); --originals DIR with checkouts in LLaVA/ (c121f04)
         and AMBER/ (534babf), whose scripts run on the same answers; what does not run is said with its last line.
Output:  OUT (default: benchmarks/results/scoring.json): per evaluation rows, seconds and CPU seconds (median of the
         repeats), the target, and the same of the official script; the last line printed is `slowest share of target`.
Command: python benchmarks/scoring.py --data DIR
Cost:    half a minute.

POPE: 9,000 answers to COCO's three splits, in LLaVA's form. AMBER: 15,220 responses, 1,004 of them descriptions (needs
NLTK and its data). CHAIR: 5,000 captions of COCO's images of 2014 by each published rule (wordnet needs NLTK and its
data); no official script beside it, it asks for COCO's own annotation files. A further evaluation is one function that
writes its answers and returns a `Job`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llava_ohd.evals import amber, chair_data, pope_sets
from llava_ohd.evals.pope_answers import SUFFIX
from llava_ohd.files import write_json, write_jsonl

ROOT = Path(__file__).resolve().parent.parent
_FIRST_ID = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
_CAPTIONS = 5_000


@dataclass(frozen=True)
class Job:
    """One evaluation.

    Attributes:
        rows: Answers.
        target: Seconds.
        ours: Command.
        official: Command of the official script, without the interpreter; empty if none is run.
        repository: Folder of --originals that it is run in.
    """

    rows: int
    target: float
    ours: list[str]
    official: list[str]
    repository: str


def _pope(data: Path, folder: Path) -> Job:
    labels = data / "pope/coco_official_08d957b"
    (folder / "labels").mkdir()
    for split in pope_sets.SPLITS:
        (folder / f"labels/coco_pope_{split}.json").symlink_to(labels / f"coco_pope_{split}.json")
    questions, answers = [], []
    for number, question in enumerate(pope_sets.read_questions(labels)):
        name = _FIRST_ID[question.split] + int(question.id.partition("/")[2])
        asked = question.prompt + SUFFIX
        questions.append({"question_id": name, "image": question.image, "text": asked, "category": question.split})
        said = "Yes" if (question.label == "yes") != (number % 7 == 0) else "No"  # six of seven are right
        answers.append({"question_id": name, "prompt": asked, "text": said, "answer_id": str(number), "metadata": {}})
    write_jsonl(folder / "questions.jsonl", questions)
    write_jsonl(folder / "answers.jsonl", answers)
    ours = ["eval/pope.py", "--set", "coco", "--answers", str(folder / "answers.jsonl"), "--out", str(folder / "out")]
    official = ["llava/eval/eval_pope.py", "--annotation-dir", str(folder / "labels"), "--question-file"]
    official += [str(folder / "questions.jsonl"), "--result-file", str(folder / "answers.jsonl")]
    return Job(len(answers), 2.0, ours, official, "LLaVA")


def _amber(data: Path, folder: Path) -> Job:
    place = data / "amber"
    responses = []
    for number, item in amber.read_items(place).items():
        described = (
            f"The image shows {', '.join(f'a {word}' for word in item.truth + item.hallu[:1])} in a sunny place."
        )
        said = described if item.type == "generative" else ("No" if number % 3 else "Yes")
        responses.append({"id": number, "response": said})
    write_json(folder / "responses.json", responses)
    ours = ["eval/amber.py", "--responses", str(folder / "responses.json"), "--data", str(place)]
    official = ["inference.py", "--inference_data", str(folder / "responses.json"), "--evaluation_type", "a"]
    for option, name in {
        "annotation": "annotations.json",
        "word_association": "relation.json",
        "safe_words": "safe_words.txt",
        "metrics": "metrics.txt",
    }.items():
        official += [f"--{option}", str(place / name)]
    return Job(len(responses), 10.0, [*ours, "--out", str(folder / "out")], official, "AMBER")


def _chair(data: Path, folder: Path, rule: str) -> Job:
    place = data / "chair"
    vocabulary = chair_data.read_synonyms(place / "synonyms.txt")
    truth = chair_data.read_objects(place / "coco2014_gt_objects.json", vocabulary)
    names, captions = sorted(set(vocabulary.node.values())), []
    for number, image in enumerate(sorted(truth, key=int)[:_CAPTIONS]):
        seen = sorted(truth[image])
        said = [*seen, names[number % len(names)]] if number % 3 else seen  # two of three may name one too many
        places = " ".join(f"There is a {word} near the left side of the scene, in bright light." for word in said)
        captions.append({"image_id": int(image), "caption": f"The image shows a calm place. {places}"})
    write_jsonl(folder / "captions.jsonl", captions)
    ours = ["eval/chair.py", "--set", "coco", "--captions", str(folder / "captions.jsonl"), "--rule", rule]
    return Job(len(captions), 10.0, [*ours, "--out", str(folder / "out")], [], "")


JOBS: dict[str, Callable[[Path, Path], Job]] = {
    "pope": _pope,
    "amber": _amber,
    "chair_pattern": partial(_chair, rule="pattern"),
    "chair_wordnet": partial(_chair, rule="wordnet"),
}


def _timed(command: list[str], folder: Path, data: Path, repeats: int) -> dict[str, Any]:
    """Runs a script some times; the medians, or why it does not run."""
    environment = os.environ | {"LLAVA_OHD_DATA": str(data), "PYTHONPATH": str(folder)}
    walls, processors = [], []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode:
            return {"does_not_run": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return {"seconds": round(statistics.median(walls), 2), "cpu_seconds": round(statistics.median(processors), 2)}


def main() -> None:
    """Times all jobs, writes and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = os.environ.get("LLAVA_OHD_DATA")
    parser.add_argument("--data", type=Path, default=home, required=not home)
    parser.add_argument("--originals", type=Path, metavar="DIR", help="checkouts of LLaVA and AMBER")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scoring.json")
    given = parser.parse_args()
    data = Path(given.data).resolve()
    record: dict[str, Any] = {"python": platform.python_version(), "processors": os.cpu_count(), "jobs": {}}
    for name, prepare in JOBS.items():
        with tempfile.TemporaryDirectory() as temporary:
            job = prepare(data, Path(temporary))
            row = {"rows": job.rows, "target": job.target, "ours": _timed(job.ours, ROOT, data, given.repeats)}
            checkout = job.official and given.originals and (given.originals / job.repository).resolve()
            row["official"] = _timed(job.official, checkout, data, given.repeats) if checkout else None
            record["jobs"][name] = row
            print(f"{name}: {json.dumps(row)}")
    write_json(given.out, record)
    shares = [row["ours"]["seconds"] / row["target"] for row in record["jobs"].values() if "seconds" in row["ours"]]
    print(f"slowest share of target {max(shares):.2f}")


if __name__ == "__main__":
    main()
