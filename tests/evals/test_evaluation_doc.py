"""The table "why your number differs": its answers are made as the page says, and its numbers come out of them."""

import re
from pathlib import Path

import pytest

from llava_ohd.errors import AnswersMismatch
from llava_ohd.evals import hallusionbench, pope, pope_sets
from llava_ohd.evals.answers import RecordedAnswer, read_answers
from llava_ohd.evals.yes_no import RULES, Confusion

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared/data"
PAGE = (REPOSITORY / "docs/evaluation.md").read_text()
YES_NO, NO_YES = ("yes", "no"), ("no", "yes")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Runs the page's code, and scores what it wrote."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LLAVA_OHD_DATA", str(DATA))
    patch.chdir(tmp_path_factory.mktemp("page"))
    exec(PAGE.split("```python")[1].split("```")[0], {})
    sets = {}
    for name in ("coco", "coco-2910"):
        answers = read_answers(Path(f"{name}.jsonl"))
        scored = pope.evaluate(pope_sets.read_set(name), answers, name, all_rules=True)
        sets[name] = {metric.name: 100 * metric.value for metric in scored.metrics}
    patch.undo()
    return sets


def row(start: str) -> str:
    return next(line for line in PAGE.splitlines() if line.startswith(f"| {start}")).split("|")[2]


@pytest.mark.parametrize(("start", "part"), [("the rule that", "f1_macro"), ("the same, accuracy", "accuracy_macro")])
def test_rules(found, start, part):
    shown = dict(re.findall(r"([\w-]+) ([\d.]+)", row(start)))
    values = {name: found["coco"][("" if name == "official" else f"by_{name}/") + part] for name in RULES}
    assert shown == {name: f"{value:.1f}" for name, value in values.items()}


def test_other_rows(found):
    coco, old = found["coco"], found["coco-2910"]
    assert row("F1 or accuracy") == f" F1 {coco['f1_macro']:.1f}, accuracy {coco['accuracy_macro']:.1f} "
    counts = [Confusion(1183, wrong, right, 317) for wrong, right in ((31, 1379), (59, 1441), (117, 1383))]
    macro, pooled = sum(part.f1 for part in counts) / 3, sum(counts, Confusion()).f1
    assert row("mean of three") == f" macro {100 * macro:.2f}, pooled {100 * pooled:.2f} "
    assert row("3000 or 2910") == f" coco {coco['random/f1']:.1f}, coco-2910 {old['random/f1']:.1f} "
    assert row("RePOPE's labels") == f" POPE {coco['f1_macro']:.1f}, RePOPE {coco['repope/f1_macro']:.1f} "
    constant = [coco[f"always_{name}"] for name in ("yes/f1_macro", "yes/accuracy_macro", "no/f1_macro")]
    shown = [float(value) for value in re.findall(r"\d+\.\d", row("one constant answer, POPE"))]
    assert shown == [round(value, 1) for value in constant]
    for name in ("unparsed", "not_bare"):
        assert f"`{name}` ({coco[name]:.1f} here)" in PAGE
    undecided = {name: coco["undecided" if name == "official" else f"by_{name}/undecided"] for name in RULES}
    assert f"({', '.join(f'{name} {value:.1f}' for name, value in undecided.items())})" in PAGE


def test_what_repope_changes(monkeypatch):
    monkeypatch.setenv("LLAVA_OHD_DATA", str(DATA))
    labels = {(q.split, q.image, q.prompt): q.label for q in pope_sets.read_set("coco")}
    corrected = pope_sets.read_set("repope")
    changes = [(labels[q.split, q.image, q.prompt], q.label, q.split) for q in corrected]
    away, to = (
        [sum(row == (*way, split) for row in changes) for split in pope_sets.SPLITS] for way in (YES_NO, NO_YES)
    )
    text = " ".join(PAGE.split())
    assert set(away) == {139}
    assert f"changes {sum(away)} yes to no (139 in each split) and {sum(to)} no to yes" in text
    assert f"({to[0]} random, {to[1]} popular, {to[2]} adversarial)" in text
    assert f"leaves out {len(labels) - len(corrected)} of 9,000 questions" in text


def test_questions_of_hallusionbench_without_an_image():
    questions = hallusionbench.read_questions(DATA / "hallusionbench/HallusionBench.json")
    unseen = [question for question in questions if not question.shown]
    assert f"the {len(unseen)} questions without an image may be missing" in PAGE
    shown = [RecordedAnswer(question.id, "No") for question in questions if question.shown]
    spare = [RecordedAnswer(question.id, "No") for question in unseen]
    assert hallusionbench.score(questions, shown) == hallusionbench.score(questions, [*shown, *spare])
    with pytest.raises(AnswersMismatch, match="1 answered more than once"):
        hallusionbench.score(questions, [*shown, spare[0], spare[0]])


def test_constant_answers_to_hallusionbench():
    questions = hallusionbench.read_questions(DATA / "hallusionbench/HallusionBench.json")
    said = [RecordedAnswer(question.id, "No") for question in questions]
    values = {metric.name: 100 * metric.value for metric in hallusionbench.score(questions, said)}
    shown = f"aAcc {values['a_acc']:.1f}, fAcc {values['f_acc']:.1f}, qAcc {values['q_acc']:.1f}"
    assert row("one constant answer, HallusionBench") == f" always no {shown} "
