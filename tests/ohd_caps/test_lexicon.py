"""Which objects a caption names, and where the phrase begins and ends."""

import pytest

from llava_ohd.ohd_caps.grammar import counted, enumerate_phrases, plural, with_article
from llava_ohd.ohd_caps.lexicon import Lexicon

LEXICON = Lexicon(
    ["person", "dog", "hot dog", "orange", "cup", "dining table", "sports ball", "fish", "scissors", "bus"]
)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A small red cup on the table .", [("cup", "A small red cup"), ("dining table", "the table")]),
        ("a hot dog and two dogs", [("hot dog", "a hot dog"), ("dog", "two dogs")]),
        ("White dog leaving blue-striped tent .", [("dog", "White dog")]),
        ("A black and white dog jumps", [("dog", "A black and white dog")]),
        ("his waiting dog", [("dog", "his waiting dog")]),
        ("A man holding scissors", [("person", "A man"), ("scissors", "scissors")]),
        ("people stare at the orange fish .", [("person", "people"), ("fish", "the orange fish")]),
        ("an orange on a plate", [("orange", "an orange")]),
        ("three buses", [("bus", "three buses")]),
        ("nothing of that kind", []),
    ],
)
def test_phrases(caption: str, expected: list[tuple[str, str]]) -> None:
    found = [(mention.name, caption[mention.start : mention.end]) for mention in LEXICON.mentions(caption)]
    assert found == expected


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("a dog on a mat", True),
        ("a dog running", True),
        ("A dog retrieves a stick", True),
        ("a dog house", False),
        ("the cup holders on a wall", False),
        ("a dog", True),
        ("a dog, a tree", True),
    ],
)
def test_clean_mentions(caption: str, clean: bool) -> None:
    assert LEXICON.mentions(caption)[0].clean is clean


def test_parts_of_a_mention() -> None:
    (mention,) = LEXICON.mentions("two small red cups")
    assert (mention.determiner, mention.adjectives, mention.noun, mention.is_plural) == (
        "two",
        ("small", "red"),
        "cups",
        True,
    )


def test_articles_plurals_and_numbers() -> None:
    assert [with_article(noun) for noun in ("umbrella", "hot dog", "scissors", "fish", "people")] == [
        "an umbrella",
        "a hot dog",
        "scissors",
        "a fish",
        "people",
    ]
    assert [plural(noun) for noun in ("person", "wine glass", "leaf", "skis")] == [
        "people",
        "wine glasses",
        "leaves",
        "skis",
    ]
    assert [counted("bus", count) for count in (1, 2, 11)] == ["a bus", "two buses", "many buses"]
    assert counted("person", 1, several=True) == "several people"
    assert [enumerate_phrases(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
