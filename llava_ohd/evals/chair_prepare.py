"""CHAIR's ground truth of all images of COCO 2014 in one small file, out of COCO's own annotations."""

from pathlib import Path
from typing import Any

from llava_ohd.errors import DataFormatError
from llava_ohd.evals.chair_data import read_ground_truth
from llava_ohd.evals.chair_words import read_synonyms

__all__ = ["SPLITS", "prepared_objects"]

SPLITS = ("train2014", "val2014")


def prepared_objects(annotations: Path, synonyms: Path) -> dict[str, Any]:
    """Joins annotated objects with those in the reference captions, by the rule "pattern" as the original does.

    Args:
        annotations: Folder with {instances,captions}_{train2014,val2014}.json.
        synonyms: CHAIR's synonyms file.

    Returns:
        `{"categories": [node words], "images": {"<image id>": [places in categories, ascending]}}`, as
        `chair_data.read_objects` reads it.

    Raises:
        DataFormatError: a file is missing or not COCO's.

    Source: LisaAnne/Hallucination utils/chair.py @6e4d33c `get_annotations`.
    """
    vocabulary = read_synonyms(synonyms)
    names = list(dict.fromkeys(vocabulary.node.values()))
    places = {name: place for place, name in enumerate(names)}
    images: dict[str, list[int]] = {}
    for split in SPLITS:
        instances, captions = (annotations / f"{kind}_{split}.json" for kind in ("instances", "captions"))
        for file in (instances, captions):
            if not file.is_file():
                raise DataFormatError(f"{file} does not exist; give the annotations of COCO 2014, train and val")
        truth = read_ground_truth(instances, captions, vocabulary, rule="pattern")
        images |= {key: sorted(places[name] for name in found) for key, found in truth.items() if key.isdecimal()}
    return {"categories": names, "images": dict(sorted(images.items(), key=lambda row: int(row[0])))}
