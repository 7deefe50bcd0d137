"""The page of diagnostics: its correlations by hand, its examples, what it refuses, and all of it on tiny results."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_ohd import tower
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.chair import read_captions
from llava_ohd.files import read_json, read_jsonl, write_json, write_jsonl
from llava_ohd.probes.estimates import wilson
from llava_ohd.probes.evaluate import Evaluation, evaluate
from llava_ohd.records import Metric
from llava_ohd.report import benchmarks
from llava_ohd.report.diagnostics import Sources, _hit, coloured, diagnose, write
from llava_ohd.report.diagnostics_by_object import _nearest, chances, change, correlations, hallucinated, of_encoders
from llava_ohd.report.diagnostics_terms import read_alike
from llava_ohd.results import write_results
from llava_ohd.world import MINI_CLIP
from llava_ohd.world.multi_object import SceneSetConfig, write_scene_set


def test_correlations_are_over_the_objects_that_both_know() -> None:
    probes = {"probe": {name: value for value, name in enumerate("abcdef")}}
    said = {"POPE": dict(zip("abcdez", [5.0, 4.0, 3.0, 2.0, 1.0, 9.0], strict=True)), "CHAIR": {"a": 1.0, "b": 0.0}}
    pope, chair = correlations(probes, said)
    assert (pope["n"], pope["rho"]) == (5, pytest.approx(-1.0))
    assert pope["p"] < 0.01
    assert (chair["n"], chair["rho"], chair["p"]) == (2, None, None)
    assert correlations(probes, {"POPE": dict.fromkeys("abcdef", 0.5)})[0]["rho"] is None


def test_changes_are_ours_minus_stock() -> None:
    assert change({"a": 0.5, "b": 1.0}, {"a": 0.75, "c": 0.0}) == {"a": 0.25}


def test_nearest_by_object_leaves_the_first_place_out_and_weighs_by_number() -> None:
    """Of four objects: 0.2 of 10 trials and 0.5 of 30; a place where the object never stood says nothing."""
    places = [{"value": 0.9, "n": 50}, {"value": 0.2, "n": 10}, {"value": 0.5, "n": 30}, {"value": None, "n": 0}]
    by_count = {"2": {"by_class": [["cup", [{"value": 1.0, "n": 5}] * 2]]}, "4": {"by_class": [["cup", places]]}}
    assert _nearest(by_count) == {"cup": pytest.approx(0.425)}
    assert _nearest({"2": by_count["2"]}) == {"cup": 1.0}


def test_words_are_coloured_by_sign_and_escaped() -> None:
    text = coloured([["a<b", -2e-5], ["cup", 1e-5]])
    assert "a&lt;b" in text
    assert text.index("178,24,43") < text.index("33,102,172")
    assert "0.70" in text
    assert "0.35" in text


def test_a_hit_is_the_lowest_word() -> None:
    row = {"words": [["a", 0.1], ["Cup", -0.3], ["tree", -0.2]], "wrong": ["cup"]}
    assert _hit(row)
    assert not _hit(row | {"wrong": ["tree"]})


def test_nothing_to_show_names_the_commands(tmp_path: Path) -> None:
    sources = Sources(("openai", "ours"), (tmp_path / "a", tmp_path / "b"), tmp_path, tmp_path, tmp_path)
    with pytest.raises(DataFormatError, match=r"python eval/multi_object\.py --encoder openai .*eval/dense\.py"):
        diagnose(sources)


def test_the_page_holds_what_there_is(tmp_path: Path) -> None:
    record = {
        "names": ["openai", "ours"],
        "missing": ["eval/x; run: python eval/dense.py"],
        "correlations": [{"encoder": "probe", "llava": "POPE", "n": 20, "rho": -0.25, "p": 0.3}],
        "scatter": "",
        "drift": ["A < B"],
    }
    write(record, tmp_path)
    page = (tmp_path / "diagnostics.html").read_text()
    assert "Missing:" in page
    assert "-0.25" in page
    assert "A &lt; B" in page
    assert "Several objects" not in page
    assert "http" not in page


# --- on tiny results of every evaluation


def _dense(folder: Path, encoder: dict[str, str], lowest: list[str], images: list[str]) -> None:
    """Foils "a cup and a KIND", one per image; `lowest` is the word that the encoder puts lowest in each."""
    rows = [
        {
            "id": f"{number}/foil",
            "image": image,
            "caption": "a cup and a tree",
            "wrong": ["tree"],
            "cosine": 0.2,
            "words": [[word, -0.2 if word == low else 0.1] for word in ("cup", "tree")],
        }
        for number, (image, low) in enumerate(zip(images, lowest, strict=True))
    ]
    write_jsonl(folder / "words.jsonl", rows)
    share = lowest.count("tree") / len(lowest)
    metrics = [Metric("localisation", share, len(rows), "higher"), Metric("base_rate", 0.5, len(rows), "none")]
    terms: dict[str, Any] = {"settings": {"set": "foil", "layers": 3}, "encoder": encoder}
    write_results(folder / "results.json", metrics, evaluation="dense", rule="r", data_set="s", n=len(rows), **terms)


def _scenes(encoder: str, data: Path, out: Path) -> None:
    much: dict[str, Any] = {"pictures": 8, "text_captions": 40, "absent": 1, "form": "list", "probe_form": "list"}
    where: dict[str, Any] = {"instances": None, "images": None, "single": None, "caption_file": None, "beside": ()}
    evaluate(Evaluation(encoder, data, seed=0, out=out, **much, **where))


@pytest.fixture(scope="module")
def measured(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Results of all four evaluations for two encoders with the same weights; the LLaVAs are those of `demo`."""
    root = tmp_path_factory.mktemp("measured")
    shutil.copytree(MINI_CLIP, root / "ours")
    names = (str(MINI_CLIP), str(root / "ours"))
    write_scene_set(root / "set", SceneSetConfig(rounds=1))
    for layout in (path for path in (root / "set").glob("*Big") if not path.name.startswith("Four")):
        shutil.rmtree(layout)
    images = [f"test/{number:06d}.png" for number in range(4)]
    folders = []
    for name, side, lowest in zip(names, ("stock", "ours"), (["cup"] * 3 + ["tree"], ["tree"] * 4), strict=True):
        folder, encoder = root / "eval" / side, {"name": name, "digest": tower.check(tower.resolve(name)).digest}
        if side == "stock":
            _scenes(name, root / "set", folder / "multi_object")
        else:  # the same weights: the same numbers
            shutil.copytree(folders[0] / "multi_object", folder / "multi_object")
            details = read_json(folder / "multi_object/details.json")
            write_json(folder / "multi_object/details.json", details | {"encoder": name})
        _dense(folder / "dense", encoder, lowest, images)
        for evaluation in ("pope", "chair"):
            shutil.copytree(demo.folders(side)[0] / evaluation, folder / evaluation)
            _change(folder / evaluation, encoder=encoder)
        folders.append(folder)
    return Sources(names, tuple(folders), demo.data, demo.data / "images", root / "set")


def _change(folder: Path, **values: Any) -> None:
    write_json(folder / "results.json", read_json(folder / "results.json") | values)


@pytest.fixture
def copied(measured: Sources, tmp_path: Path) -> Sources:
    """The same, to be changed."""
    folders = tuple(Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in measured.folders)
    return replace(measured, folders=folders)


def test_the_whole_page(measured: Sources, tmp_path: Path) -> None:
    record = diagnose(measured)
    write(record, tmp_path)
    page = (tmp_path / "diagnostics.html").read_text()
    assert record["missing"] == []
    assert {"tor", "ior", "i2t", "density", "crossed", "mitigation"} == record["pictures"].keys()
    assert [len(scene["maps"]) for scene in record["attention"]] == [2, 2, 2, 2]
    low, high = wilson(0.25, 4)
    stock, ours = record["dense"]["localisation"]
    assert (stock, ours["value"]) == ({"value": 0.25, "low": low, "high": high}, 1.0)
    assert f"25.0 % [{100 * low:.1f}, {100 * high:.1f}]" in page
    assert record["counts"] == {"ours finds it, stock does not": 3, "stock finds it, ours does not": 0}
    assert len(record["words"]["ours finds it, stock does not"]) == 3
    assert record["drift"]
    encoder, llava = ({row[key] for row in record["correlations"]} for key in ("encoder", "llava"))
    assert len(encoder) == 4
    assert {name.split(":")[0] for name in llava} == {"POPE", "CHAIR"}
    assert "ours minus stock (percentage points)" in page
    for name, axis in (("by_object", "POPE: images hallucinated in,"), ("localisation", "foils found, %")):
        assert axis in (tmp_path / f"{name}.svg").read_text()
    assert not (tmp_path / "scores.svg").exists()  # no average precision in these results
    numbers = json.loads((tmp_path / "diagnostics.json").read_text())
    assert numbers["correlations"] == record["correlations"]
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []  # nothing is loaded from elsewhere


def test_equal_weights_change_nothing_by_object(measured: Sources) -> None:
    changed = of_encoders(measured.folders)
    assert all(set(values.values()) == {0.0} for name, values in changed.items() if "lowest" not in name)
    assert changed["it is the lowest word where it is wrong"] == {"tree": 0.75}


def test_shares_of_chair_are_by_hand(measured: Sources) -> None:
    """Ground truth has every image under two names; captions are of the forty images, each once."""
    truth = benchmarks.read_truth(measured.data, "test")
    captions = read_captions(measured.folders[0] / "chair/answers.jsonl")
    possible = chances("chair", [one.image for one in captions], truth)
    assert truth.objects is not None
    assert len(truth.objects) == 2 * len(captions) == 80
    without = [one for one in captions if "boat" not in truth.objects[one.image]]
    assert possible["boat"] == len(without)
    found, missing = hallucinated(measured.names, measured.folders, measured.data)
    assert missing == []
    sides = []
    for folder in measured.folders:
        said = {row["image"]: row["text"] for row in read_jsonl(folder / "chair/answers.jsonl")}
        sides.append(sum("boat" in said[one.image] for one in without) / len(without))
    [shares] = [values for name, values in found.items() if name.startswith("CHAIR")]
    assert shares["boat"] == pytest.approx(sides[1] - sides[0])


def test_more_hallucinations_than_chances_are_refused(measured: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    read = benchmarks.read_chair

    def everywhere(folder: Path, truth: benchmarks.Truth) -> benchmarks.Run:
        run = read(folder, truth)
        return replace(run, invented=dict.fromkeys(run.images, frozenset({"boat"})))

    monkeypatch.setattr(benchmarks, "read_chair", everywhere)
    with pytest.raises(DataFormatError, match=r"boat is hallucinated in 40 of \d+ images without it"):
        hallucinated(measured.names, measured.folders, measured.data)


def test_chances_are_counted_by_the_rule_of_the_captions() -> None:
    by_rule = {
        "exact": {"1": frozenset({"cup"}), "2": frozenset()},
        "pattern": {"1": frozenset({"cup"}), "2": frozenset({"cup"})},
    }
    truth = benchmarks.Truth(objects=by_rule["exact"], objects_by=by_rule.__getitem__)
    assert chances("chair", ["1", "2"], truth) == {"cup": 1}
    assert chances("chair", ["1", "2"], truth, "pattern") == {"cup": 0}


def test_what_is_missing_is_said_with_its_command(copied: Sources) -> None:
    shutil.rmtree(copied.folders[1] / "pope")
    (copied.folders[0] / "chair/answers.jsonl").unlink()
    found, (pope, chair) = hallucinated(copied.names, copied.folders, copied.data)
    assert found == {}
    assert pope == f"{copied.folders[1] / 'pope'}; run: python eval/pope.py --encoder {copied.names[1]}"
    assert chair.startswith("CHAIR by object: it needs answers.jsonl")


@pytest.mark.parametrize("evaluation", ["multi_object", "dense", "pope", "chair"])
def test_results_of_unlike_terms_are_refused(evaluation: str, copied: Sources) -> None:
    folder = copied.folders[1] / evaluation
    kept = read_json(folder / "results.json")
    for changed, message in (
        ({"encoder": {"name": "ours", "digest": "00"}}, "measured on an encoder of digest 00"),
        ({"set": "other"}, "; set was .*, is 'other'|: set was .*, is 'other'"),
        ({"settings": kept["settings"] | {"seed": 7, "layers": 2}}, "cannot stand on one page: "),
        ({"versions": {}}, "versions was"),
        ({"rule": "other"}, "rule was"),
        ({"complete": False}, "is incomplete"),
    ):
        _change(folder, **changed)
        with pytest.raises(DataFormatError, match=message):
            read_alike(copied.names, copied.folders, evaluation)
        write_json(folder / "results.json", kept)


def test_thresholds_of_one_share_may_differ(copied: Sources) -> None:
    for folder, threshold in zip(copied.folders, (-1e-4, -2e-4), strict=True):
        settings = read_json(folder / "dense/results.json")["settings"]
        _change(folder / "dense", settings=settings | {"flag": 0.05, "threshold": threshold})
    assert len(read_alike(copied.names, copied.folders, "dense")) == 2


def test_the_page_of_unlike_results_is_refused(copied: Sources) -> None:
    _change(copied.folders[1] / "multi_object", set="other")
    with pytest.raises(DataFormatError, match="cannot stand on one page"):
        diagnose(copied)
