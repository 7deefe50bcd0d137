"""Rows of both formats, and files of them read row by row."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.llava15 import row_files
from llava_ohd.llava15.row_files import records
from llava_ohd.llava15.rows import FAULTS, REMARKS, examine


def llava(*texts: str, **more: Any) -> dict[str, Any]:
    said = [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)]
    return {"conversations": said} | more


def test_messages_read_as_the_same_row_as_llavas_format() -> None:
    expected = examine(llava("<image>\nA ball?", "Yes", "Red?", "No", image="a.jpg", id=7), "v1")
    texts = ["<image>\nA ball?", "Yes", "Red?", "No"]
    roles = [("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]
    plain = {"id": 7, "images": ["a.jpg"], "messages": [{"role": role, "content": text} for role, text in roles]}
    assert examine(plain, "v1") == expected
    for image in (
        {"type": "image", "path": "a.jpg"},
        {"type": "image", "image": "a.jpg"},
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
    ):
        asked = [image, {"type": "text", "text": "A ball?"}]
        parts = [{"role": "user", "content": asked}, *plain["messages"][1:]]
        assert examine({"id": 7, "messages": parts}, "v1") == expected
    beside = [{"type": "image"}, {"type": "text", "text": "A ball?"}]
    named = {"id": 7, "images": ["a.jpg"], "messages": [{"role": "user", "content": beside}, *plain["messages"][1:]]}
    assert examine(named, "v1") == expected


def test_images_stay_where_they_are_among_several() -> None:
    row, findings = examine(llava("A <image> or <image>?", "A", "And <image> now?", "B", image=["a", "b", "c"]), "v1")
    assert row is not None
    assert not findings
    assert row["turns"] == [["A <image> or <image>?", "A"], ["<image>\nAnd  now?", "B"]]
    assert row["words"] == 4 + 1 + 3 + 1  # LLaVA's modality_lengths: words of the values as they stand in the file


@pytest.mark.parametrize(
    ("record", "template", "kind"),
    [
        ("text", "v1", "format"),
        ({"image": "a"}, "v1", "format"),
        (llava("<image>", "A", image=3), "v1", "format"),
        (llava("<image>", "A", image="http://host/a.jpg"), "v1", "format"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "v1", "format"),
        ({"messages": "hello"}, "v1", "format"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "v1", "speakers"),
        (llava("Hello"), "v1", "speakers"),
        (llava(), "v1", "speakers"),
        (llava("Hello", ""), "v1", "empty_answer"),
        (llava("", "Hello"), "v1", "empty_question"),
        (llava("<image>", "A"), "v1", "unmatched_image"),
        (llava("What?", "A", image="a"), "v1", "unmatched_image"),
        (llava("What?", "<image>", image="a"), "v1", "unmatched_image"),
        (llava("<image>", "A", image=["a", "b"]), "v1", "unmatched_image"),
        (llava("What is </s>?", "An end"), "v1", "control_token"),
        (llava("What?", "A"), "plain", "template"),
        (llava("<image>\nWhat?", "A", "And?", "B", image="a"), "plain", "template"),
    ],
)
def test_every_fault_has_its_name(record: Any, template: str, kind: str) -> None:
    row, findings = examine(record, template)
    assert row is None
    assert [finding.kind for finding in findings] == [kind]
    assert findings[0].is_fault
    assert not FAULTS.keys() & REMARKS.keys()


ROWS = [llava(f'Question {i} with a brace }} and a quote " and ü?', f"Answer {i}", id=i) for i in range(50)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n\n" + json.dumps(ROWS, ensure_ascii=False) + "\n",
        "".join(json.dumps(row) + "\n" for row in ROWS),
        "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
        "\ufeff" + json.dumps(ROWS),
    ],
    ids=["array", "indented", "unicode", "lines", "blank lines", "byte order mark"],
)
@pytest.mark.parametrize("block", [7, 100, 2**22])
def test_files_are_read_row_by_row(text: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_BLOCK", block)
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    assert list(records(tmp_path / "rows.json")) == list(enumerate(ROWS, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": }]', "row 2 is not JSON"),
        ('[{"a": 1} {"a": 2}]', "one comma between two rows"),
        ('[{"a": 1},, {"a": 2}]', "one comma between two rows"),
        ('[{"a": 1},]', "one comma between two rows"),
        ('[{"a": 1}', "ends too early"),
        ('[{"a": 1}] x', "something follows the list"),
        ('{"a": 1}\n{"a": "x}\n', "row 2 is not JSON: Invalid control"),
        ("  \n ", "is empty"),
    ],
)
@pytest.mark.parametrize("block", [3, 2**22])
def test_broken_files_name_the_row(
    text: str, message: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_BLOCK", block)
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataFormatError, match=message):
        list(records(tmp_path / "rows.json"))
    with pytest.raises(DataFormatError, match="does not exist"):
        list(records(tmp_path / "none.json"))


def test_memory_stays_small(tmp_path: Path) -> None:
    import tracemalloc

    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(3000):
            file.write(json.dumps(llava("Question", "word " * 1000, id=number)) + "\n")
    size = (tmp_path / "rows.jsonl").stat().st_size
    tracemalloc.start()
    assert sum(1 for _ in records(tmp_path / "rows.jsonl")) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 15e6
    assert peak < 8e6  # a few blocks of 1 MiB
