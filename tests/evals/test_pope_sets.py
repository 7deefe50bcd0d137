"""The published sets, the forms of answer files, and the rules side by side."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError, LlavaOhdError
from llava_ohd.evals import pope, pope_sets
from llava_ohd.evals.answers import RecordedAnswer, read_answers
from llava_ohd.evals.yes_no import RULES, confusion
from llava_ohd.files import read_json, write_jsonl
from llava_ohd.records import Answer

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
DATA = SHARED / "data"
PARSERS = SHARED / "cases/pope_parser/cases.json"
needs_shared = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
SIZES = {"coco": 9000, "coco-2910": 8910, "aokvqa": 9000, "gqa": 9000, "flickr": 9000, "nocaps": 9000}
SIZES |= {"repope": 8185, "popev2": 1000, "coco128": None}
VERDICTS = {"yes": True, "no": False, "Yes": True, "No": False}


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setenv("LLAVA_OHD_DATA", str(DATA))


def values(scored):
    return {metric.name: metric.value for metric in scored.metrics}


def right(question):
    return question.label.capitalize()


@pytest.mark.parametrize(
    ("rule", "key"),
    [("official", "llava_eval_pope"), ("lmms-eval", "lmms_eval_exact"), ("vlmevalkit",) * 2, ("repope",) * 2],
)
@pytest.mark.skipif(not PARSERS.is_file(), reason=f"{PARSERS} is not there")
def test_every_rule_reads_as_its_source(rule, key):
    rows = read_json(PARSERS)
    assert {row["text"]: RULES[rule].read(row["text"]) for row in rows} == {
        row["text"]: VERDICTS.get(row[key]) for row in rows
    }


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", True),
        ("**No**", False),
        (" no.\n", False),
        ("YES, there is a ball", True),
        ("yes or no", None),
        ("Nope", None),
        ("There isn't.", None),
        ("", None),
    ],
)
def test_strict(text, verdict):
    assert RULES["strict"].read(text) is verdict


def test_what_becomes_of_answers_without_a_verdict():
    """One right yes, one right no, then "Hm" to a yes question and to a no question."""
    texts, labels = ["yes", "no", "Hm", "Hm"], ["yes", "no", "yes", "no"]
    counts = {name: confusion(texts, labels, rule) for name, rule in RULES.items()}
    shown = {name: (c.accuracy, c.precision, c.recall, c.yes_ratio) for name, c in counts.items()}
    assert shown == {
        "official": (0.75, 2 / 3, 1.0, 0.75),  # both are a yes
        "strict": (0.5, 1.0, 0.5, 0.25),
        "vlmevalkit": (0.5, 1.0, 0.5, 0.25),
        "lmms-eval": (0.5, 1.0, 1.0, 0.25),
        "repope": (1.0, 1.0, 1.0, 0.5),
    }


@needs_shared
@pytest.mark.parametrize("name", SIZES)
def test_published_sets(name, data):
    questions = pope_sets.read_set(name)
    assert SIZES[name] is None or len(questions) == SIZES[name]
    scored = pope.evaluate(questions, [Answer(question.id, right(question)) for question in questions], name)
    found = values(scored)
    assert scored.complete
    assert found["f1_macro"] == found["accuracy_pooled"] == 1.0
    assert found["always_yes/accuracy_pooled"] == found["label_yes_ratio"]
    assert found["always_no/f1_macro"] == 0.0


@needs_shared
def test_the_numbers_of_llava_issue_626(data):
    """haotian-liu/LLaVA#626: counts per split, and the mean of F1 that LLaVA's paper calls POPE."""
    counts = {"random": (1183, 31, 1379, 317), "popular": (1183, 59, 1441, 317), "adversarial": (1183, 117, 1383, 317)}
    left = {(split, label): counts[split][label == "no"] for split in counts for label in ("yes", "no")}
    answers = []
    questions = pope_sets.read_set("coco-2910")
    for question in questions:
        left[question.split, question.label] -= 1
        answers.append(Answer(question.id, "Yes" if left[question.split, question.label] >= 0 else "No"))
    found = values(pope.evaluate(questions, answers, "coco-2910"))
    assert found["random/f1"] == pytest.approx(0.8717759764185703, abs=1e-15)
    assert found["popular/f1"] == pytest.approx(0.8628738147337709, abs=1e-15)
    assert found["adversarial/f1"] == pytest.approx(0.845, abs=1e-15)
    assert found["random/accuracy"] == 0.8804123711340206
    assert found["random/precision"] == 0.9744645799011532
    assert found["f1_macro"] == pytest.approx(0.859883263717447, abs=1e-15)


@needs_shared
def test_a_set_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAVA_OHD_DATA", str(tmp_path))
    with pytest.raises(DataFormatError, match=r"download_benchmarks.py pope/gqa_seem` brings it"):
        pope_sets.read_set("gqa")
    monkeypatch.delenv("LLAVA_OHD_DATA")
    with pytest.raises(LlavaOhdError, match="LLAVA_OHD_DATA, which is not set"):
        pope_sets.read_set("gqa")


# --- forms of answer files


def test_what_each_rule_cannot_read_is_said():
    """ "Yes." and "NO": plain answers, which rules part over; "Hm" is none."""
    questions = small()
    said = ["Yes.", "NO", "Hm", "no"]
    answers = [Answer(question.id, text) for question, text in zip(questions, said, strict=True)]
    scored = pope.evaluate(questions, answers, all_rules=True)
    found = values(scored)
    assert (found["unparsed"], found["not_bare"], found["undecided"]) == (0.25, 0.75, 0.0)
    assert {name: found[f"by_{name}/undecided"] for name in RULES if name != "official"} == {
        "strict": 0.25,
        "vlmevalkit": 0.25,
        "lmms-eval": 0.5,
        "repope": 0.25,
    }
    table = {line.split()[0]: line.split()[-1] for line in str(scored).splitlines()[-5:]}
    assert table == {"official": "0.0", "strict": "25.0", "vlmevalkit": "25.0", "lmms-eval": "50.0", "repope": "25.0"}


def test_all_rules_read_the_bare_word_alike():
    for text, verdict in (("Yes", True), ("yes", True), ("No", False), ("no", False)):
        assert {rule.read(text) for rule in RULES.values()} == {verdict}
        (question, *_) = small()
        assert values(pope.evaluate([question], [Answer(question.id, text)]))["not_bare"] == 0


@pytest.mark.parametrize(
    ("rule", "meaning"),
    [
        ("official", 'all without "No", "no" or "not" in the first sentence count as a yes'),
        ("strict", "by the rule strict those that it cannot read are wrong"),
        ("lmms-eval", "are wrong and in no other count"),
        ("repope", "are in no count"),
    ],
)
def test_answers_that_are_no_yes_or_no_are_said_aloud(rule, meaning):
    """Answers in another language get F1 66.7 by the official rule, and nothing else would say why."""
    questions = [pope.PopeQuestion(f"random/{n}", "1.png", f"{n}?", "random", "yes") for n in range(20)]
    texts = ["Ja, da ist einer."] * 2 + ["Yes"] * 18
    answers = [Answer(question.id, text) for question, text in zip(questions, texts, strict=True)]
    shown = str(pope.evaluate(questions, answers, rule=rule))
    assert "UNREAD: 2 of 20 answers (10.0 %) are no plain yes or no, first: random/0: 'Ja, da ist einer.'" in shown
    assert meaning in shown
    answers[0] = Answer("random/0", "Yes")
    assert "UNREAD" not in str(pope.evaluate(questions, answers, rule=rule))  # 5 % and no more


def test_plain_answers_that_a_rule_reads_otherwise_are_said_aloud():
    """ "NO" is a yes by the official rule: F1 66.7 in place of 100, and no answer is unparsed."""
    questions = small()
    said = {"yes": "Yes.", "no": "NO"}
    answers = [Answer(question.id, said[question.label]) for question in questions]
    notes = {rule: pope.evaluate(questions, answers, rule=rule).notes for rule in RULES}
    kind = "are a plain yes or no that the rule {} does not read as such, first: random/{}: {!r}"
    assert notes == {
        "official": ["MISREAD: 2 of 4 answers (50.0 %) " + kind.format("official", 1, "NO")],
        "strict": [],
        "vlmevalkit": [],
        "lmms-eval": ["MISREAD: 2 of 4 answers (50.0 %) " + kind.format("lmms-eval", 0, "Yes.")],
        "repope": [],
    }
    assert f"  {notes['official'][0]}" in str(pope.evaluate(questions, answers)).splitlines()


def ohd_rows(questions):
    """OHD-Caps' evaluate_llava: the question's row, the image with its folder, and the answer."""
    return [
        {
            "question_id": int(q.id.partition("/")[2]),
            "image": f"/data/coco/{q.image}",
            "text": q.prompt,
            "label": q.label,
            "answer": right(q),
        }
        for q in questions
    ]


@needs_shared
@pytest.mark.parametrize("name", ["coco", "gqa", "popev2"])
def test_by_image_and_question(name, data, tmp_path):
    questions = pope_sets.read_set(name)
    write_jsonl(tmp_path / "a.jsonl", ohd_rows(questions))
    rows = read_answers(tmp_path / "a.jsonl")
    assert values(pope.evaluate(questions, rows[::-1], name))["f1_macro"] == 1.0
    with pytest.raises(AnswersMismatch, match=r"missing"):
        pope.evaluate(questions, rows[:-1], name)
    with pytest.raises(AnswersMismatch, match="more than once"):
        pope.evaluate(questions, [*rows, rows[1]], name)


@needs_shared
def test_one_answer_to_each_distinct_question_is_enough(data):
    questions = pope_sets.read_set("coco")
    rows = {(q.image, q.prompt): RecordedAnswer("", right(q), q.image, q.prompt) for q in questions}
    assert len(rows) == 5127
    assert values(pope.evaluate(questions, list(rows.values()), "coco"))["accuracy_pooled"] == 1.0


@needs_shared
def test_one_split_alone_has_no_mean(data, tmp_path):
    questions = pope_sets.read_set("coco")
    popular = [question for question in questions if question.split == "popular"]
    write_jsonl(tmp_path / "a.jsonl", ohd_rows(popular))
    scored = pope.evaluate(questions, read_answers(tmp_path / "a.jsonl"), "coco")
    assert scored.answered == {"random": (0, 3000), "popular": (3000, 3000), "adversarial": (0, 3000)}
    assert not scored.complete
    assert "popular/f1" in values(scored)
    assert not {"f1_macro", "f1_pooled", "random/f1", "repope/f1_macro", "repope/random/f1"} & values(scored).keys()
    assert values(scored)["always_yes/popular/f1"] == pytest.approx(2 / 3)
    assert values(scored)["always_no/popular/accuracy"] == 0.5
    assert "always_yes/popular/f1 " in str(scored)
    relabelled = [question for question in pope_sets.read_set("repope") if question.split == "popular"]
    assert values(scored)["repope/popular/accuracy"] == 1 - (139 + 39) / len(relabelled)


def small(prompts="abcd"):
    """Two splits of which the yes question is the same."""
    rows = [("random", "a", "yes"), ("random", "b", "no"), ("popular", "a", "yes"), ("popular", "c", "no")]
    return [
        pope.PopeQuestion(f"{split}/{number}", "1.png", f"Is there {letter}?", split, label)
        for number, (split, letter, label) in enumerate(rows)
    ]


def test_questions_alone_are_joined_by_order():
    questions = small()
    rows = [RecordedAnswer("", right(q), None, q.prompt) for q in questions]
    assert pope.answers_for(questions, rows) == ["Yes", "No", "Yes", "No"]
    assert pope.answers_for(questions, [*rows[2:], *rows[:2]]) == ["Yes", "No", "Yes", "No"]
    for bad in (rows[::-1], rows[:-1], [*rows, rows[0]], rows[1:]):
        with pytest.raises(AnswersMismatch, match="Nothing was scored"):
            pope.answers_for(questions, bad)


def test_answers_that_differ_between_splits_need_ids():
    questions = small()
    rows = [RecordedAnswer("", right(q), q.image, q.prompt) for q in questions]
    assert pope.answers_for(questions, rows) == ["Yes", "No", "Yes", "No"]
    rows[2] = RecordedAnswer("", "No", "1.png", questions[2].prompt)
    with pytest.raises(AnswersMismatch, match="different answers"):
        pope.answers_for(questions, rows)


@pytest.mark.parametrize("form", ["ids", "images", "order"])
def test_which_suffix_a_prompt_may_have_is_said(form):
    questions = small()
    for suffix, accepted in ((pope.SUFFIX, True), (" Please answer yes or no.", False)):
        rows = {
            "ids": [RecordedAnswer(q.id, right(q), None, q.prompt + suffix) for q in questions],
            "images": [RecordedAnswer("", right(q), q.image, q.prompt + suffix) for q in questions],
            "order": [RecordedAnswer("", right(q), None, q.prompt + suffix) for q in questions],
        }[form]
        if accepted:
            assert pope.answers_for(questions, rows) == ["Yes", "No", "Yes", "No"]
        else:
            with pytest.raises(AnswersMismatch, match=r"After a question only .*single word or phrase.* may follow"):
                pope.answers_for(questions, rows)


def test_answers_that_end_too_early():
    questions = small()
    for rows in (
        [RecordedAnswer(q.id, right(q)) for q in questions[:3]],
        [RecordedAnswer("", right(q), None, q.prompt) for q in questions[:3]],
    ):
        with pytest.raises(AnswersMismatch, match=r"1 missing, first: 'popular/3'.*as in a file that was cut off"):
            pope.answers_for(questions, rows)


def test_a_set_that_is_misspelt_is_answered_with_all_names():
    with pytest.raises(DataFormatError, match=r"^Coco is neither a folder nor one of the sets coco, coco-2910, aokvqa"):
        pope_sets.read_set("Coco")


def test_a_part_of_a_split_is_shown_as_missing():
    questions = small()
    rows = [RecordedAnswer("", right(q), q.image, q.prompt) for q in questions]
    assert set(pope.evaluate(questions, rows[:2]).answers) == {"random/0", "random/1"}
    del rows[0], rows[1]
    with pytest.raises(AnswersMismatch, match="missing"):
        pope.evaluate(questions, rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "Yes"}, "question and answer"),
        ({"question": "?", "answer": None}, "question and answer"),
        ({"question_id": True, "text": "Yes"}, "must be a number or text"),
        ({"question_id": 1.5, "text": "Yes"}, "must be a number or text"),
        ({"question_id": 1, "text": "Yes", "image": 5}, "image and prompt must be text"),
        ({"question_id": 1, "text": "\ud800"}, "half a character"),
    ],
)
def test_rows_that_are_refused(tmp_path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataFormatError, match=message):
        read_answers(tmp_path / "a.jsonl")


def test_a_key_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "text": "Yes", "text": "No"}')
    with pytest.raises(DataFormatError, match="a key occurs twice"):
        read_answers(tmp_path / "a.jsonl")


# --- RePOPE


@needs_shared
def test_repope_from_answers_to_pope(data):
    """Every answer right by POPE's labels; what RePOPE changed is wrong then: 139 yes became no, 5 + 39 + 33 no yes."""
    coco, repope = pope_sets.read_set("coco"), pope_sets.read_set("repope")
    answers = [Answer(question.id, right(question)) for question in coco]
    beside = values(pope.evaluate(coco, answers, "coco"))
    alone = pope.evaluate(repope, answers, "repope")
    assert alone.complete
    assert {f"repope/{name}": value for name, value in values(alone).items() if f"repope/{name}" in beside} == {
        name: value for name, value in beside.items() if name.startswith("repope/")
    }
    for split, changed in {"random": 139 + 5, "popular": 139 + 39, "adversarial": 139 + 33}.items():
        n = alone.answered[split][0]
        assert values(alone)[f"{split}/accuracy"] == (n - changed) / n


@needs_shared
def test_answers_to_the_older_random_split_lack_some_of_repope(data):
    old, repope = pope_sets.read_set("coco-2910"), pope_sets.read_set("repope")
    answers = [RecordedAnswer("", right(q), q.image, q.prompt) for q in old]
    with pytest.raises(AnswersMismatch, match=r"87 missing.*--partial"):
        pope.evaluate(repope, answers, "repope")
    scored = pope.evaluate(repope, answers, "repope", partial=True)
    assert scored.answered["random"] == (2774 - 87, 2774)
    assert not scored.complete


# --- the command


def command(*arguments, data=DATA):
    return subprocess.run(
        [sys.executable, "eval/pope.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"LLAVA_OHD_DATA": str(data)},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_shared
def test_command(tmp_path):
    """LLaVA's form; some answers decorated so that the rules part."""
    questions = pope_sets.read_questions(DATA / "pope/coco_llava_e3e39262")
    labels = {(q.split, q.image, q.prompt): q.label for q in questions}
    asked = (DATA / "pope/coco_llava_e3e39262/llava_pope_test.jsonl").read_text().splitlines()
    rows = []
    for number, row in enumerate(map(json.loads, asked)):
        said = labels[row["category"], row["image"], row["text"].removesuffix(pope.SUFFIX)].capitalize()
        said += "." if number % 2 else ""
        rows.append({"question_id": row["question_id"], "prompt": row["text"], "text": said, "answer_id": "x"})
    write_jsonl(tmp_path / "a.jsonl", rows)
    done = command("--set", "coco-2910", "--answers", tmp_path / "a.jsonl", "--all-rules", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = read_json(tmp_path / "out/results.json")
    found = {name: row["value"] for name, row in record["metrics"].items()}
    assert (record["set"], record["n"], record["complete"]) == ("coco-2910", 8910, True)
    assert found["f1_macro"] == found["by_strict/f1_macro"] == 1.0
    assert found["by_lmms-eval/accuracy_macro"] == pytest.approx(0.5)
    assert "lmms-eval" in done.stdout
    done = command("--set", "coco", "--answers", tmp_path / "a.jsonl", "--out", tmp_path / "other")
    assert done.returncode == 2
    assert "to a different question" in done.stderr
    assert not (tmp_path / "other").exists()


@needs_shared
@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_in_the_record(tmp_path, rule):
    questions = pope_sets.read_questions(DATA / "photos/coco128/pope")
    write_jsonl(tmp_path / "a.jsonl", [{"question_id": q.id, "text": right(q)} for q in questions])
    done = command("--set", "coco128", "--answers", tmp_path / "a.jsonl", "--rule", rule, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "results.json")["rule"] == str(RULES[rule])
