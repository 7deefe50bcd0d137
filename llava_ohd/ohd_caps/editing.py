"""The small changes that captions are edited with: where a phrase can be put, cut or exchanged, and how it then reads.

Everything here works on offsets of a caption and its mentions; what is to be edited is decided in `rewriting.py`.
"""

import re
from collections.abc import Sequence

from llava_ohd.ohd_caps.grammar import enumerate_phrases, is_mass, is_plural, plural, with_article
from llava_ohd.ohd_caps.lexicon import Mention, Word, split_words
from llava_ohd.ohd_caps.words import ANIMATE, AUXILIARIES, PREPOSITIONS, ends_phrase, is_finite, is_participle

__all__ = [
    "can_grow",
    "cut_phrase",
    "fitting",
    "in_place_of",
    "in_the_manner_of",
    "is_modified",
    "link_places",
    "shorten_list",
    "splice",
    "takes_articles",
    "uncapitalised",
]

_DETACHED_END = re.compile(r"\s[.!?]+\s*$")
_TAIL = re.compile(r"[\s.,;:!?\"']*$")
_LINK = re.compile(r"\s+(?:next to|with|beside|near|behind|under|above|in front of|on top of|on|in|by)\s+")
_SINGULAR = {"are": "is", "were": "was", "have": "has"}
_RELATIVES = {"that", "which", "who"}
_ANY_NUMBER = {"a", "an", "the", "some", "his", "her", "its", "their", "our", "my", "your", "this", "that", "no", "any"}
_CHAINED = PREPOSITIONS | {"top"}
_PARTICLES = {"up", "down", "out", "off", "over"}  # "holding up a cup": they belong to the verb


def splice(caption: str, start: int, end: int, text: str) -> str:
    """Puts `text` in place of caption[start:end] and repairs blanks, commas and the capital letter."""
    result = " ".join(f"{caption[:start]}{text}{caption[end:]}".split())
    result = re.sub(r"(\s?,)(?:\s?,)+", r"\1", result)
    result = re.sub(r"^[\s,.]+|\s?,(?=\s?[.!?]*$)", "", result)
    if not _DETACHED_END.search(caption):
        result = re.sub(r"\s+(?=[.!?]+$)", "", result)
    first = result[:1].upper() if caption[:1].isupper() else result[:1].lower()
    return first + result[1:]


def uncapitalised(caption: str, mention: Mention) -> str:
    """Returns a mention as it is written inside a sentence."""
    phrase = caption[mention.start : mention.end]
    return phrase[0].lower() + phrase[1:] if mention.start == 0 else phrase


def in_the_manner_of(caption: str, phrases: Sequence[str]) -> str:
    """Enumerates as the caption is typed: "a, b and c", "a, b, and c", or with detached marks "a , b and c"."""
    text = enumerate_phrases(phrases)
    if re.search(r",\s+and\b", caption) and len(phrases) > 2:
        text = f"{text.rpartition(' and ')[0]}, and {phrases[-1]}"
    return text.replace(", ", " , ") if re.search(r"\s[.,]", caption) else text


def takes_articles(mentions: Sequence[Mention]) -> bool:
    """Whether a caption with these mentions writes articles; many are written without any."""
    singular = [mention for mention in mentions if not mention.is_plural]
    return not singular or any(mention.determiner for mention in singular)


def in_place_of(mention: Mention, noun: str) -> str:
    """Puts another noun under the determiner of a mention: "two cups" for "two balls", "a cup" for "snow"."""
    if mention.is_plural and not is_mass(mention.noun):
        noun = plural(noun)
    counts = mention.determiner not in _ANY_NUMBER
    if mention.determiner in ("a", "an") or (is_mass(mention.noun) and not mention.determiner):
        return with_article(noun)
    return noun if is_mass(noun) and counts else f"{mention.determiner} {noun}".strip()


def is_modified(caption: str, mention: Mention) -> bool:
    """Whether a word stands before the phrase that belongs to it, though it is not known to ("other people")."""
    before = next((word for word in reversed(split_words(caption)) if word.end <= mention.start), None)
    if before is None or before.is_mark or mention.determiner:
        return False
    return before.text == "other" or not ends_phrase(before.text)


def _next_word(caption: str, place: int) -> str:
    return next((word.text for word in split_words(caption) if word.start >= place), ".")


def fitting(names: Sequence[str], caption: str, run: Sequence[Mention]) -> list[str]:
    """Which objects can stand in an enumeration: where a person or an animal does something, only such."""
    word = _next_word(caption, run[-1].end)
    acts = word == "who" or is_finite(word) or is_participle(word) or (word.isalpha() and not ends_phrase(word))
    acts = acts or _is_subject(caption, run)
    agrees = len(run) > 1 or run[0].is_plural or word not in _RELATIVES
    return [
        name
        for name in names
        if (not acts or run[0].name not in ANIMATE or name in ANIMATE) and (agrees or not is_plural(name))
    ]


def _is_subject(caption: str, run: Sequence[Mention]) -> bool:
    """Whether a caption that begins with these goes on to say what they do ("A man with a flag stands ...")."""
    words = split_words(caption)
    return run[0].start == words[0].start and any(is_finite(word.text) for word in words if word.start >= run[-1].end)


def can_grow(caption: str, run: Sequence[Mention], objects: Sequence[str]) -> bool:
    """Whether objects can join: their number must not break the agreement with a verb ("a dog runs")."""
    word = _next_word(caption, run[-1].end)
    agrees = len(run) > 1 or run[0].is_plural or not word.isalpha() or (ends_phrase(word) and not is_finite(word))
    agrees = agrees and word != "and" and (word not in _RELATIVES or len(run) > 1 or run[0].is_plural)
    return agrees and len(fitting(objects, caption, run)) == len(objects)


def link_places(caption: str, mentions: Sequence[Mention]) -> list[int]:
    """Where " with a cup" can stand: at the end, and after the first noun phrase if that is followed by no list."""
    tail = _TAIL.search(caption)
    places = [tail.start() if tail else len(caption)]
    first = next((mention for mention in mentions if mention.clean), None)
    if first is not None:
        word = _next_word(caption, first.end)
        with_own = word == "with" or (word == "in" and first.name == "person")  # "a man in a coat"
        if word != "of" and not with_own and (word in PREPOSITIONS or is_finite(word) or is_participle(word)):
            places.append(first.end)
    return places


def shorten_list(caption: str, run: Sequence[Mention], kept: Sequence[Mention]) -> str | None:
    """Removes all but some of an enumeration, with the number of the verb behind it; None where that cannot be told."""
    end, text = run[-1].end, in_the_manner_of(caption, [uncapitalised(caption, item) for item in kept])
    word = _next_word(caption, end)
    if len(kept) == 1 and not kept[0].is_plural and is_finite(word):
        if word not in _SINGULAR:
            return None
        end = caption.index(word, end) + len(word)
        text = f"{text} {_SINGULAR[word]}"
    return splice(caption, run[0].start, end, text)


def cut_phrase(caption: str, start: int, end: int, mentions: Sequence[Mention]) -> str | None:
    """Removes a noun phrase together with what ties it to the sentence, or gives None.

    Tied by a preposition ("a man [on a horse]"), by a participle ("a man [holding a cup]") or by "and"; a first phrase
    goes with the link to the next ("[a ball next to] a cup").
    """
    before = [word for word in split_words(caption) if word.end <= start]
    after = _next_word(caption, end)
    tie = _first_tied(before)
    free = not ends_phrase(after) or after in PREPOSITIONS - {"of"} or is_participle(after) or is_finite(after)
    if tie is not None and free and not (before[tie].text == "and" and is_finite(after)):
        return splice(caption, before[tie].start, end, "")
    link = _LINK.match(caption, end)
    following = next((item for item in mentions if link and item.start == link.end()), None)
    cut = next(item for item in mentions if item.start == start)
    if following is None or cut.is_plural != following.is_plural:
        return None
    return splice(caption, start, following.start, "")


def _first_tied(before: Sequence[Word]) -> int | None:
    """Returns the index of the first word that goes when the phrase after these words goes; None if none may."""
    texts = [word.text for word in before]
    tie = len(texts)
    while tie and texts[tie - 1] in _CHAINED and not (texts[tie - 1] == "of" and texts[tie - 2] not in _CHAINED):
        tie -= 1
    with_particle = tie < len(texts) and texts[-1] in _PARTICLES
    if (tie == len(texts) or with_particle) and tie and is_participle(texts[tie - 1]):
        tie -= 1
    elif with_particle:
        return None
    elif tie == len(texts) and tie and texts[-1] == "and":
        tie -= 1
    return tie if 0 < tie < len(texts) and texts[tie - 1] not in AUXILIARIES else None
