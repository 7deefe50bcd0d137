"""Answers are joined whole or not at all."""

import pytest

from llava_ohd.errors import AnswersMismatch, DataFormatError
from llava_ohd.evals.answers import RecordedAnswer, join, read_answers
from llava_ohd.files import write_jsonl
from llava_ohd.records import Answer, Question

QUESTIONS = [Question("a", "1.png", "Is there a ball?"), Question("b", "2.png", "Is there a cup?")]


def test_order_does_not_matter():
    answers = [RecordedAnswer("b", "No", "2.png", "Is there a cup?"), Answer("a", "Yes")]
    assert join(QUESTIONS, answers) == ["Yes", "No"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [Answer("a", "Yes")],
            r"1 of 2 questions answered. 1 missing, first: 'b' \(2.png: 'Is there a cup\?'\) \(the last ones, as",
        ),
        ([Answer("b", "Yes")], r"1 missing, first: 'a' .* \(answer these, too; if the file was cut off, copy or make"),
        ([Answer(x, "Yes") for x in "abc"], r"2 of 2 questions answered. 1 without a question, first: 'c'"),
        ([Answer(x, "Yes") for x in "aab"], r"1 answered more than once, first: 'a' \(keep one answer to each\)"),
        ([Answer("a", "Yes"), RecordedAnswer("b", "No", "3.png")], r"1 to a different question, first: 'b'.*3.png"),
        ([Answer("a", "Yes"), RecordedAnswer("b", "No", None, "?")], r"1 to a different question, first: 'b'.*'\?'"),
    ],
)
def test_anything_else_is_refused(answers, message):
    with pytest.raises(AnswersMismatch, match=message):
        join(QUESTIONS, answers)


def test_nothing_is_said_of_prompts_where_these_are_right():
    with pytest.raises(AnswersMismatch, match=r"was answered\)\. Only x may follow\. Nothing was scored"):
        join(QUESTIONS, [Answer("a", ""), RecordedAnswer("b", "", None, "?")], allowed="Only x may follow")
    with pytest.raises(AnswersMismatch) as caught:
        join(QUESTIONS, [Answer("a", "Yes")], allowed="Only x may follow")
    assert "Only x" not in str(caught.value)


def test_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "answers.jsonl"
    whole = '{"question_id": 1, "text": "Yes"}\n'
    path.write_text(whole * 3 + whole[:20])
    with pytest.raises(DataFormatError, match=r"line 4 is not JSON: .*the file may have been cut off after 3 rows"):
        read_answers(path)
    path.write_text(whole * 3 + whole[:20] + "\n" + whole)
    with pytest.raises(DataFormatError) as caught:
        read_answers(path)
    assert "line 4 is not JSON" in str(caught.value)
    assert "cut off" not in str(caught.value)


def test_a_prompt_may_be_compared_by_what_it_asks():
    answers = [Answer("a", "Yes"), RecordedAnswer("b", "No", "2.png", "IS THERE A CUP?")]
    assert join(QUESTIONS, answers, same_prompt=str.lower) == ["Yes", "No"]


def test_files_of_llava_and_ours(tmp_path):
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, [{"question_id": 7, "text": "Yes"}, {"question_id": "x/1", "text": "", "image": "1.png"}])
    assert read_answers(path) == [RecordedAnswer("7", "Yes"), RecordedAnswer("x/1", "", "1.png")]


@pytest.mark.parametrize("row", [{"text": "Yes"}, {"question_id": 1}, {"question_id": 1, "text": None}])
def test_a_row_that_is_no_answer(tmp_path, row):
    path = tmp_path / "answers.jsonl"
    write_jsonl(path, [{"question_id": 0, "text": "Yes"}, row])
    with pytest.raises(DataFormatError, match=r"row 2 has the keys .* are expected"):
        read_answers(path)
