"""The report as a user gets it: the command is run, its files are read back."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llava_ohd.errors import DataFormatError
from llava_ohd.files import read_json, write_json
from llava_ohd.report import table
from llava_ohd.report.page import read_curves

REPOSITORY = Path(__file__).resolve().parents[2]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags and cells, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.seen, self.metrics, self.text = [], [], {}, []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.row = []
        if tag == "tr" and "data-metric" in dict(attrs):
            self.metrics.setdefault(dict(attrs)["data-metric"], []).append([])
            self.row = self.metrics[dict(attrs)["data-metric"]][-1]
        if tag == "td":
            self.row.append("")

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open:
            self.row[-1] += data


@pytest.fixture(scope="module")
def out(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    curve = folder / "curve.json"
    write_json(curve, [{"step": step, "loss": 2 / (step + 1)} for step in range(20)])
    (folder / "commands.txt").write_text("python scripts/finetune_clip.py --loss <paper>\n")
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "compare.py"),
        "--data",
        str(demo.data),
        "--out",
        str(folder),
    ]
    command += ["--ours", *map(str, demo.folders("ours", 2)), "--stock", *map(str, demo.folders("stock", 2))]
    command += ["--curves", f"projector/ours={curve}", f"projector/stock={curve}", f"encoder/ours={curve}"]
    command += ["--commands", str(folder / "commands.txt"), "--resamples", "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def page(out):
    parser = Page()
    parser.feed((out / "report.html").read_text())
    parser.close()
    return parser


def test_nothing_is_loaded_from_elsewhere(out, page):
    text = (out / "report.html").read_text()
    assert not re.search(r"(https?:)?//[a-z]|@import|<script|<link", re.sub(r"base64,[^\"]*", "", text))
    for tag, attributes in page.seen:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)


def test_structure(page):
    assert page.open == []
    tags = [tag for tag, _ in page.seen]
    assert [tags.count(tag) for tag in ("html", "h1", "table", "title")] == [1, 1, 2 + 2, 1]
    assert tags.count("svg") == 4 + 2
    assert tags.count("img") == tags.count("figure") > 8
    assert all(attributes.get("alt") for tag, attributes in page.seen if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in page.seen if tag == "svg")
    headings = re.findall(r"Results|Benchmarks|Training|How it was made|went away, which came", "".join(page.text))
    assert headings == ["Results", "Benchmarks", "went away, which came", "Training", "How it was made"]


def test_all_numbers_of_the_page_are_those_of_the_results(out, page):
    record = read_json(out / "results.json")
    expected = {"/".join(row.key): row for row in table.rows(record)}
    assert set(page.metrics) == set(expected)
    for name, shown in page.metrics.items():
        assert len(shown) == 1 + expected[name].headline
        for cells in shown:
            assert tuple(cells) == expected[name].cells[1:]
    benchmark, metric = "pope", "adversarial/accuracy"
    row = record["benchmarks"][benchmark]["metrics"][metric]
    values = [100 * row["difference"][key] for key in ("value", "low", "high")]
    printed = page.metrics["pope/adversarial/accuracy"][0][3].replace("−", "-")
    assert [float(text) for text in re.findall(r"[-+][\d.]+", printed)] == pytest.approx(values, abs=0.051)


def test_charts_print_the_values_of_the_results(out):
    svg = re.findall(r"<svg.*?</svg>", (out / "report.html").read_text(), re.DOTALL)
    record = read_json(out / "results.json")
    for chart, name in zip(svg, record["benchmarks"], strict=False):
        printed = set(re.findall(r"<text[^>]*>([\d.]+)</text>", chart))
        row = next(iter(record["benchmarks"][name]["metrics"].values()))
        assert {f"{100 * row[side]['value']:.1f}" for side in ("ours", "stock")} <= printed


def test_flips_digests_and_commands_are_shown(out, page):
    record, text = read_json(out / "results.json"), " ".join("".join(page.text).split())
    flips = record["flips"]
    for seed in range(2):
        sentence = f"{flips['gone'][seed]} hallucinations went away and {flips['new'][seed]} came"
        assert f"Seed {seed + 1}: Of {flips['absent']} distinct questions about absent objects, {sentence}" in text
    assert "python scripts/finetune_clip.py --loss <paper>" in text
    assert "Encoder oursours0000" in text
    assert "Encoder openaistock000" in text
    assert f"torch {record['versions']['torch']}" in text


def test_the_terminal_and_markdown_say_the_same(out):
    record, printed = read_json(out / "results.json"), (out / "stdout.txt").read_text()
    assert table.headline(record) in printed
    assert table.plain(record) in printed
    assert str(out / "report.html") in printed
    markdown = (out / "table.md").read_text()
    assert markdown == table.markdown(record)
    assert all(row.cells[2] in markdown for row in table.rows(record))


def test_a_refusal_is_one_line(demo, tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "compare.py"), "--data", str(demo.data)]
    command += [
        "--ours",
        str(tmp_path / "nowhere"),
        "--stock",
        str(demo.folders("stock")[0]),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: DataFormatError: .*nowhere is not a folder.*\n", done.stderr)
    assert not (tmp_path / "o").exists()


ROW = {
    "title": "mean F1", "unit": "%", "better": "higher", "by_seed": [0.04], "mcnemar": [], "headline": True, "p": 0.01,
    "ours": {"value": 0.85, "low": 0.8, "high": 0.9}, "stock": {"value": 0.81, "low": 0.8, "high": 0.82},
    "difference": {"value": 0.04, "low": 0.01, "high": 0.07}, "p_holm": 0.02,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "rises from 81.0 % with openai to 85.0 % with ours: +4.0 points, a significant improvement (95 % interval "
             "+1.0 to +7.0, p (Holm) = 0.020)."),
        ({"better": "lower"}, "+4.0 points, a significant loss (95 %"),
        ({"p_holm": 0.06}, "+4.0 points, no significant change (95 % interval +1.0 to +7.0, p (Holm) = 0.060)."),
        ({"p_holm": 0.0004}, "p (Holm) < 0.001)."),
        ({"difference": {"value": 0.04, "low": None, "high": None}}, "(no answers per item, so no interval)."),
    ],
)  # fmt: skip
def test_headline_sentence(changes, sentence):
    names = {"ours": {"names": ["ours"]}, "stock": {"names": ["openai"]}}
    record = {**names, "benchmarks": {"pope": {"title": "POPE", "metrics": {"f1_macro": {**ROW, **changes}}}}}
    text = table.headline(json.loads(json.dumps(record)))
    assert text.startswith("POPE: mean F1 ")
    assert sentence in text.replace("\u00a0", " ")


def test_numbers_keep_their_sign_and_lose_that_of_zero():
    assert [table.number(value, "%", "+") for value in (0.1234, -0.1234, -0.0001, 0.0)] == [
        "+12.3",
        "−12.3",
        "0.0",
        "0.0",
    ]
    assert table.number(7.25, "words") == "7.2"


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("curve.json", "[]", "write PANEL/LABEL=PATH"),
        ("a/ours={}", '{"loss": 1}', "is expected"),
        ("a/ours={}", '[{"loss": 1}]', "is expected"),
    ],
)
def test_curves_that_are_none(tmp_path, entry, content, message):
    (tmp_path / "curve.json").write_text(content)
    with pytest.raises(DataFormatError, match=message):
        read_curves([entry.format(tmp_path / "curve.json")])
