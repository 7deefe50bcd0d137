"""CHAIR on the real captions of the POPE paper: its Table 1, and the counts of both public implementations."""

from pathlib import Path

import pytest

from llava_ohd.evals import chair
from llava_ohd.evals.chair_data import read_objects
from llava_ohd.files import read_json

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
CAPTIONS, CASES, NLTK = SHARED / "data/pope_captions", SHARED / "cases/chair_pope_table1", SHARED / "data/nltk_data"
NAMES = [f"Instruction1_{system}" for system in ("mplug", "llava", "mmgpt", "minigpt-4", "instructblip")]
IMPLEMENTATIONS = {"pattern": "expected_pattern_maxlinn_impl.json", "wordnet": "expected_wordnet_opera_impl.json"}
pytestmark = pytest.mark.skipif(not CAPTIONS.is_dir(), reason=f"{CAPTIONS} is not there")

# arXiv 2305.10355, Table 1, CHAIRi, CHAIRs, Len; its I1 is Instruction2 of the files.
TABLE_1 = {
    "Instruction2_mplug": "14.8 25.4 35.8",
    "Instruction2_llava": "10.5 32.7 64.3",
    "Instruction2_mmgpt": "11.1 15.0 11.6",
    "Instruction2_minigpt-4": "6.7 9.5 24.7",
    "Instruction2_instructblip": "2.6 3.7 8.5",
    "Instruction1_mplug": "30.2 76.8 98.5",
    "Instruction1_llava": "18.8 62.7 90.7",
    "Instruction1_mmgpt": "18.2 36.2 45.7",
    "Instruction1_minigpt-4": "9.2 31.5 116.2",
    "Instruction1_instructblip": "2.5 3.4 7.5",
}


@pytest.fixture(scope="module")
def vocabulary():
    return chair.read_synonyms(SHARED / "data/chair/synonyms.txt")


@pytest.fixture(scope="module")
def truth(vocabulary):
    return read_objects(SHARED / "data/chair/coco2014_gt_objects.json", vocabulary)


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1_of_the_pope_paper(name, truth, vocabulary):
    captions = chair.read_captions(CAPTIONS / f"{name}.json")
    rows = chair.scored_captions(captions, truth, vocabulary, rule="pattern")
    chair_i, chair_s, _, _ = chair.metrics(rows)
    printed = (100 * chair_i.value, 100 * chair_s.value, chair.published_length(rows))
    assert " ".join(f"{value:.1f}" for value in printed) == TABLE_1[name]
    assert len(rows) == 2000


@pytest.mark.parametrize("rule", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_counts_of_the_public_implementations(name, rule, truth, vocabulary):
    if rule == "wordnet":
        pytest.importorskip("nltk")
    expected = read_json(CASES / IMPLEMENTATIONS[rule])[f"{name}.json"]
    captions = chair.read_captions(CAPTIONS / f"{name}.json")
    rows = chair.scored_captions(captions, truth, vocabulary, rule=rule, nltk_data=NLTK if rule == "wordnet" else None)
    values = {metric.name: metric.value for metric in chair.metrics(rows)}
    assert values == {
        "chair_i": expected["CHAIRi"],
        "chair_s": expected["CHAIRs"],
        "recall": expected["Recall"],
        "length": expected["mean_whitespace_words"],
    }
    assert sum(len(row.mentioned) for row in rows) == expected["n_object_mentions"]
    assert sum(len(row.hallucinated) for row in rows) == expected["n_hallucinated_mentions"]
    assert sum(row.present for row in rows) == expected["n_gt_objects"]
    if rule == "wordnet":  # later versions of NLTK split off a quote before a word: two tokens in 203,000
        assert chair.published_length(rows) / 100 == pytest.approx(expected["Len"], abs=2e-5)


def test_ground_truth_from_coco_files_is_the_prepared_one(truth, vocabulary):
    """On the 128 photos whose instances are at hand (train2017 has the ids of 2014); captions can only add objects."""
    instances = SHARED / "data/photos/coco128/annotations/instances_train2017.json"
    if not instances.is_file():
        pytest.skip(f"{instances} is not there")
    found = chair.read_ground_truth(instances, None, vocabulary, rule="pattern")
    images = [image for image in found if image.isdecimal()]
    assert len(images) == 128
    missing = {image: found[image] - truth[image] for image in images if not found[image] <= truth[image]}
    assert missing == {}
