"""The CHAIR job of the scoring benchmark, on two images of our own making."""

import json
from pathlib import Path

from benchmarks import scoring


def test_chair_job_writes_one_caption_per_image_with_known_objects(tmp_path: Path) -> None:
    """Objects of the image are named; the one added to caption 1 is the second of the sorted names."""
    (tmp_path / "data/chair").mkdir(parents=True)
    (tmp_path / "data/chair/synonyms.txt").write_text("cat, kitten\ndog, puppy\nzebra\n")
    record = {"categories": ["cat", "dog", "zebra"], "images": {"10": [0], "9": [2]}}
    (tmp_path / "data/chair/coco2014_gt_objects.json").write_text(json.dumps(record))
    job = scoring.JOBS["chair_pattern"](tmp_path / "data", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [row["image_id"] for row in rows] == [9, 10]
    named = [[word for word in ("cat", "dog", "zebra") if f"a {word} " in row["caption"]] for row in rows]
    assert named == [["zebra"], ["cat", "dog"]]
    assert (job.rows, job.target, job.official) == (2, 10.0, [])
    assert job.ours[job.ours.index("--rule") + 1] == "pattern"
