"""The comparison: its numbers, and what it refuses."""

import shutil

import numpy as np
import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals import chair
from llava_ohd.files import read_json, read_jsonl, write_json, write_jsonl
from llava_ohd.report.benchmarks import BENCHMARKS, read_truth
from llava_ohd.report.comparison import compare, read_pairs
from llava_ohd.report.gallery import cards, count_flips, flips


@pytest.fixture(scope="module")
def truth(demo):
    return read_truth(demo.data, "test")


@pytest.fixture(scope="module")
def record(demo, truth):
    return compare(read_pairs(demo.folders("ours"), demo.folders("stock"), truth), resamples=300)


@pytest.fixture
def broken(demo, tmp_path):
    """A copy of one folder of ours, to be broken."""
    shutil.copytree(demo.folders("ours")[0], tmp_path / "ours")
    return tmp_path / "ours"


def test_every_value_is_the_one_of_the_evaluation(demo, record):
    for name, part in record["benchmarks"].items():
        for side in ("ours", "stock"):
            reported = read_json(demo.folders(side)[0] / name / "results.json")["metrics"]
            assert set(part["metrics"]) == set(reported)
            for metric, row in part["metrics"].items():
                assert row[side]["value"] == pytest.approx(reported[metric]["value"], abs=1e-12)
                assert row["better"] == reported[metric]["better"]


def test_values_lie_in_their_intervals_and_add_up(record):
    for part in record["benchmarks"].values():
        for row in part["metrics"].values():
            assert row["difference"]["value"] == pytest.approx(row["ours"]["value"] - row["stock"]["value"])
            for kind in ("ours", "stock", "difference"):
                if row[kind]["low"] is not None:
                    assert row[kind]["low"] <= row[kind]["value"] <= row[kind]["high"]


def test_the_effect_that_was_drawn_is_found(record):
    pope = record["benchmarks"]["pope"]["metrics"]
    assert pope["adversarial/accuracy"]["difference"]["low"] > 0.1
    assert pope["adversarial/accuracy"]["mcnemar"][0]["p"] < 0.001
    assert record["benchmarks"]["chair"]["metrics"]["chair_s"]["difference"]["high"] < 0
    assert record["benchmarks"]["ohd_caps"]["images"] == 150


def test_only_headline_metrics_are_corrected(record):
    corrected = [row for part in record["benchmarks"].values() for row in part["metrics"].values() if row["p_holm"]]
    assert len(corrected) == 5
    assert all(row["headline"] and row["p_holm"] >= row["p"] for row in corrected)
    assert record["statistics"]["p_holm"] == "Holm over 5 headline metrics"


def test_without_answers_there_are_values_only(record):
    row = record["benchmarks"]["zero_shot"]["metrics"]["accuracy"]
    assert (row["ours"], row["p"]) == ({"value": 0.955, "low": None, "high": None}, None)
    assert any("Zero-shot recognition: values only" in text for text in record["missing"])


def test_seeds_are_averaged(demo, truth):
    pairs = read_pairs(demo.folders("ours", 3), demo.folders("stock", 3), truth)
    row = compare(pairs, resamples=50)["benchmarks"]["pope"]["metrics"]["f1_macro"]
    files = [read_json(folder / "pope" / "results.json") for folder in demo.folders("ours", 3)]
    assert row["ours"]["value"] == pytest.approx(np.mean([f["metrics"]["f1_macro"]["value"] for f in files]))
    assert row["difference"]["value"] == pytest.approx(np.mean(row["by_seed"]))
    assert len(row["by_seed"]) == 3


def test_f1_of_the_counts_is_that_of_the_rule():
    """Closed form against precision and recall, also where they are 0/0."""
    pope = next(benchmark for benchmark in BENCHMARKS if benchmark.name == "pope")
    f1 = next(measure for measure in pope.measures if measure.name == "popular/f1").statistic
    totals = np.array([[0] * 5 + [3, 1, 4, 2, 7] + [9] * 10, [0] * 20], float)
    assert f1(totals) == pytest.approx([2 * 0.75 * 0.6 / 1.35, 0])


def test_a_missing_benchmark_is_said(demo, truth, broken):
    shutil.rmtree(broken / "chair")
    record = compare(read_pairs([broken], demo.folders("stock"), truth), resamples=20)
    assert "chair" not in record["benchmarks"]
    assert f"CHAIR: no {broken}/chair/results.json" in record["missing"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "strict"}, "cannot be compared: rule is 'strict' and 'official"),
        ({"set": "coco"}, "set is 'coco' and 'world'"),
        ({"n": 3}, "n is 3 and 720"),
        ({"settings": {"max_new_tokens": 8}}, "max_new_tokens is 8 and 64"),
        ({"complete": False}, "is incomplete; run its evaluation again"),
    ],
)
def test_other_terms_are_refused(demo, truth, broken, changes, message):
    path = broken / "pope" / "results.json"
    write_json(path, {**read_json(path), **changes})
    with pytest.raises(DataFormatError, match=message):
        read_pairs([broken], demo.folders("stock"), truth)


def rescore_chair(folder, data, rule):
    """Scores the captions of a CHAIR folder by another rule and writes its results.json anew."""
    vocabulary, annotations = chair.read_synonyms(data / "synonyms.txt"), data / "annotations"
    places = (annotations / f"{kind}_test.json" for kind in ("instances", "captions"))
    truth = chair.read_ground_truth(*places, vocabulary, rule=rule)
    found = chair.score(chair.read_captions(folder / "answers.jsonl"), truth, vocabulary, rule=rule)
    record = read_json(folder / "results.json")
    for metric in found:
        record["metrics"][metric.name] |= {"value": metric.value, "n": metric.n}
    write_json(folder / "results.json", {**record, "rule": chair.RULES[rule]})


def test_two_rules_of_chair_are_not_mixed(demo, truth, broken):
    rescore_chair(broken / "chair", demo.data, "pattern")
    with pytest.raises(DataFormatError, match=r"rule is 'pattern \(LisaAnne/.*' and 'exact \(words"):
        read_pairs([broken], demo.folders("stock"), truth)
    stock = broken.parent / "stock"
    shutil.copytree(demo.folders("stock")[0], stock)
    rescore_chair(stock / "chair", demo.data, "pattern")
    runs = read_pairs([broken], [stock], truth).runs["chair"]
    assert len(runs[0][0].images) == 40


def test_captions_that_a_protocol_cut_give_values_only(demo, truth, broken):
    path = broken / "chair" / "results.json"
    record = read_json(path)
    write_json(path, {**record, "settings": {**record["settings"], "drop_unfinished": True}})
    with pytest.raises(DataFormatError, match="drop_unfinished is True and None"):
        read_pairs([broken], demo.folders("stock"), truth)
    stock = broken.parent / "stock"
    shutil.copytree(demo.folders("stock")[0], stock)
    path = stock / "chair" / "results.json"
    write_json(path, {**read_json(path), "settings": {**record["settings"], "drop_unfinished": True}})
    pairs = read_pairs([broken], [stock], truth)
    assert "CHAIR: values only, without answers or labels there are no intervals" in pairs.missing


def test_another_seed_is_no_other_term(demo, truth):
    read_pairs(demo.folders("ours", 3)[2:], demo.folders("stock"), truth)


def test_seeds_may_lie_in_two_places_but_not_a_pair(demo, truth, broken):
    path = broken / "pope" / "results.json"
    write_json(path, {**read_json(path), "set": "elsewhere"})
    with pytest.raises(DataFormatError, match="set is 'world' and 'elsewhere'"):
        read_pairs([*demo.folders("ours"), *demo.folders("ours")], [*demo.folders("stock"), broken], truth)
    folder = broken.parent / "stock"
    shutil.copytree(demo.folders("stock")[0], folder)
    write_json(folder / "pope" / "results.json", {**read_json(folder / "pope/results.json"), "set": "elsewhere"})
    read_pairs([*demo.folders("ours"), broken], [*demo.folders("stock"), folder], truth)


def test_results_of_two_encoders_in_one_folder_are_refused(demo, truth, broken):
    path = broken / "ohd_caps" / "results.json"
    write_json(path, {**read_json(path), "encoder": {"name": "ours", "digest": "another"}})
    with pytest.raises(
        DataFormatError, match=r"holds results of different encoders: .*/ohd_caps of another; .* of ours0000"
    ):
        read_pairs([broken], demo.folders("stock"), truth)


def test_metrics_that_do_not_follow_from_the_answers_are_refused(demo, truth, broken):
    path = broken / "pope" / "answers.jsonl"
    rows = read_jsonl(path)
    write_jsonl(path, [{**rows[0], "text": "No" if rows[0]["text"] == "Yes" else "Yes"}, *rows[1:]])
    with pytest.raises(DataFormatError, match=r"results.json says .* the answers beside it give"):
        read_pairs([broken], demo.folders("stock"), truth)


def test_missing_answers_are_refused(demo, truth, broken):
    path = broken / "pope" / "answers.jsonl"
    write_jsonl(path, read_jsonl(path)[:-1])
    with pytest.raises(AnswersMismatch, match=r"719 of 720 questions answered. 1 missing"):
        read_pairs([broken], demo.folders("stock"), truth)


def test_other_images_are_refused(demo, truth, broken):
    path = broken / "ohd_caps" / "predictions.jsonl"
    write_jsonl(path, [{**row, "image": "other/" + row["image"]} for row in read_jsonl(path)])
    with pytest.raises(AnswersMismatch, match="not about the same images"):
        read_pairs([broken], demo.folders("stock"), truth)


def test_folders_that_cannot_be_paired(demo, truth, tmp_path):
    with pytest.raises(DataFormatError, match="2 folders of ours and 1 of stock"):
        read_pairs(demo.folders("ours", 2), demo.folders("stock"), truth)
    with pytest.raises(DataFormatError, match="is not a folder; run the evaluations"):
        read_pairs([tmp_path / "nowhere"], demo.folders("stock"), truth)
    with pytest.raises(DataFormatError, match=r"share no benchmark. OHD-Caps: no "):
        read_pairs([tmp_path], demo.folders("stock"), truth)


def test_flips_count_distinct_questions(demo, truth):
    pairs = read_pairs(demo.folders("ours"), demo.folders("stock"), truth)
    counts = count_flips(pairs, truth)
    assert counts["present"] == 120
    assert counts["absent"] == len({(q.image, q.prompt) for q in truth.questions if q.label == "no"})
    found = flips(truth.questions, *pairs.runs["pope"][0])
    assert len(found) == sum(counts[kind][0] for kind in ("gone", "new", "found", "lost"))
    assert len({(flip.image, flip.prompt) for flip in found}) == len(found)
    for flip in found:
        assert (flip.ours == "Yes") == (flip.present == flip.ours_right)


def test_gallery_shows_both_directions(demo, truth):
    pairs = read_pairs(demo.folders("ours"), demo.folders("stock"), truth)
    gallery = cards(pairs, truth, demo.data / "images", limit=4)
    assert {kind: len(group) for kind, group in gallery.items()} == {"gone": 4, "new": 4}
    for kind, group in gallery.items():
        assert len({card.image for card in group}) == 4
        for card in group:
            assert {flip.kind for flip in card.flips} == {kind}
            assert card.source.startswith("data:image/png;base64,")
            assert card.captions["ours"].startswith("a &lt;b&gt; &amp;")


def test_the_folder_of_one_benchmark_and_a_pair_given_twice_are_refused(demo, truth):
    ours, stock = demo.folders("ours")[0], demo.folders("stock")[0]
    with pytest.raises(DataFormatError, match=f"is the folder of one benchmark; give {ours}"):
        read_pairs([ours / "pope"], [stock / "pope"], truth)
    with pytest.raises(DataFormatError, match="a pair of folders is one seed"):
        read_pairs([ours, ours], [stock, stock], truth)


def test_models_that_answered_otherwise_are_not_compared(demo, truth, broken):
    path = broken / "pope" / "results.json"
    record = read_json(path)
    write_json(path, record | {"model": (record["model"] or {}) | {"bits": 4}})
    with pytest.raises(DataFormatError, match="model's bits is 4 and None"):
        read_pairs([broken], demo.folders("stock"), truth)
