"""The word rules of CHAIR: own cases, and the wordnet rule's shortcuts against NLTK on whole texts."""

import sys
from pathlib import Path

import pytest

from llava_ohd.errors import LlavaOhdError, MissingDependency
from llava_ohd.evals.chair_words import RULES, finder, read_synonyms, tokens
from llava_ohd.files import read_json

DATA = Path(__file__).resolve().parents[2].parent / "shared/data/nltk_data"
CASES = read_json(Path(__file__).parent / "cases" / "chair_rules.json")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("chair") / "synonyms.txt"
    path.write_text("\n".join(CASES["synonyms"]) + "\n")
    return read_synonyms(path)


@pytest.fixture(scope="module")
def by_wordnet(vocabulary):
    pytest.importorskip("nltk")
    return finder("wordnet", vocabulary, DATA)


@pytest.mark.parametrize("rule", ["exact", "pattern"])
@pytest.mark.parametrize("case", CASES["rows"], ids=lambda case: case["text"])
def test_own_cases(rule, case, vocabulary):
    assert list(finder(rule, vocabulary)(case["text"]).objects) == case[rule]


@needs_data
@pytest.mark.parametrize("case", CASES["rows"], ids=lambda case: case["text"])
def test_own_cases_by_wordnet(case, by_wordnet):
    assert list(by_wordnet(case["text"]).objects) == case["wordnet"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog's ball. A cat's.", "the dog 's ball . a cat 's ."),
        ("Dogs' bowls, 3,000 of them!", "dogs ' bowls , 3,000 of them !"),
        ("It isn't 9 o'clock...", "it is n't 9 o'clock ..."),
        ('(a "man/woman")--two', '( a " man/woman " ) -- two'),
        ("a 'dog' on no.5", "a 'dog ' on no.5"),
        ("3 p.m. at 10:15: go", "3 p.m . at 10:15 : go"),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected.split()


def test_lengths_as_papers_print_them(vocabulary):
    assert (
        finder("pattern", vocabulary)("two  dogs and\ta cat ").length == 6
    )  # pieces between blanks, two of them empty
    assert finder("exact", vocabulary)("two dogs").length is None


@needs_data
def test_length_by_wordnet_counts_tokens_after_joining(by_wordnet):
    assert by_wordnet("A hot dog, a wine glass.").length == 6


@needs_data
def test_shortcuts_of_the_wordnet_rule_change_nothing(vocabulary):
    """Every lemma that matters is that of tagging the text as a whole."""
    nltk = pytest.importorskip("nltk")
    from llava_ohd.evals.chair_wordnet import lemmatizer

    texts = [case["text"].lower() for case in CASES["rows"]]
    texts += [
        " ".join(texts),
        "dogs dogs dogs and buses; people bus the dogs, tying ties to boats they boat in.",
        "i cannot see sofas -- gonna couch it, there are 1,000 dogs. the 3 seats (of the train) seat 9.",
        "several dogs, , cats ,birds. benches. one of the children's toilets. ",
        "geese, sofas and buses are parked. a woman benches the bears; bearing bows she bows",
    ]
    wanted = {"dog", "bus", "sofa", "seat", "boat", "tie", "bear", "bow", "goose", "bench", "toilet", "child", "people"}
    lemmas, whole = lemmatizer(wanted, DATA), nltk.stem.WordNetLemmatizer().lemmatize
    parts = {"J": "a", "V": "v", "N": "n", "R": "r"}
    for text in texts:
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        expected = [whole(word, parts.get(tag[0], "n")) for word, tag in tagged]
        found = lemmas(text)
        assert len(found) == len(expected)
        assert [word for word in found if word in wanted] == [word for word in expected if word in wanted]


def test_what_is_missing_is_said(vocabulary, tmp_path, monkeypatch):
    with pytest.raises(LlavaOhdError, match="CHAIR rule 'nouns' is unknown; choose exact, pattern, wordnet"):
        finder("nouns", vocabulary)
    assert set(RULES) == {"exact", "pattern", "wordnet"}
    with pytest.raises(MissingDependency, match="is not a folder; give one with NLTK's"):
        finder("wordnet", vocabulary, tmp_path / "none")
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.delenv("LLAVA_OHD_DATA", raising=False)
    with pytest.raises(MissingDependency, match=r"NLTK has no '[a-z_]+'; set NLTK_DATA"):
        finder("wordnet", vocabulary, tmp_path)
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(MissingDependency, match="CHAIR's rule wordnet needs NLTK; pip install"):
        finder("wordnet", vocabulary)
