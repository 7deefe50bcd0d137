"""Edits captions by rule: inserts objects that are not there, removes or alters those that are.

The places are those where English takes an object without further change: inside an enumeration, after a noun phrase,
at the end; phrases are removed only where the rest stays grammatical. The paper used a large language model for this;
its three intents (add, remove, alter) are kept.

Source: arXiv 2410.03176 section 3 and table 13, for the three intents.
"""

import random
import re
from collections.abc import Sequence

from llava_ohd.ohd_caps.grammar import enumerate_phrases, is_mass, is_plural, plural, with_article
from llava_ohd.ohd_caps.lexicon import Lexicon, Mention, Word, split_words
from llava_ohd.ohd_caps.style import LIST, Style, runs
from llava_ohd.ohd_caps.words import (
    ANIMATE,
    AUXILIARIES,
    COLOURS,
    NUMBERS,
    OPPOSITES,
    PREPOSITIONS,
    ends_phrase,
    is_finite,
    is_participle,
)

__all__ = ["Rewriter"]

INSTEAD = 0.25  # share of insertions that take the place of an object: a negative is then no longer than the caption
_TAIL = re.compile(r"[\s.,;:!?\"']*$")
_LINK = re.compile(r"\s+(?:next to|with|beside|near|behind|under|above|in front of|on top of|on|in|by)\s+")
_SINGULAR = {"are": "is", "were": "was", "have": "has"}
_RELATIVES = {"that", "which", "who"}
_ANY_NUMBER = {"a", "an", "the", "some", "his", "her", "its", "their", "our", "my", "your", "this", "that", "no", "any"}
_CHAINED = PREPOSITIONS | {"top"}
_PARTICLES = {"up", "down", "out", "off", "over"}  # "holding up a cup": they belong to the verb


class Rewriter:
    """Edits captions in the style of their corpus.

    Args:
        lexicon: The objects that can be recognised.
        style: How the corpus enumerates, links and colours.
    """

    def __init__(self, lexicon: Lexicon, style: Style) -> None:
        self.lexicon, self.style = lexicon, style

    def insert(self, caption: str, objects: Sequence[str], rng: random.Random) -> str:
        """Returns the caption with these objects named as well (now and then one takes the place of another)."""
        places = [
            item
            for run in runs(caption, self.lexicon.mentions(caption))
            for item in run
            if _fitting(objects[:1], caption, run)
        ]
        if places and rng.random() < INSTEAD:
            text = self._replace(caption, rng.choice(places), objects[0], rng)
            return self._add(text, objects[1:], rng) if objects[1:] else text
        return self._add(caption, objects, rng)

    def remove(self, caption: str, objects: Sequence[str]) -> str | None:
        """Returns the caption without the phrases that name these objects, or None where no clean cut exists."""
        text = caption
        for name in objects:
            if name not in self.lexicon.named(text):
                return None
            while name in self.lexicon.named(text):
                shorter = self._remove_one(text, name)
                if shorter is None:
                    return None
                text = shorter
        return text if self.lexicon.named(text) else None

    def alter(self, caption: str, objects: Sequence[str], absent: Sequence[str], rng: random.Random) -> str | None:
        """Returns the caption with these objects, or one of their attributes, turned into others.

        Args:
            caption: The caption.
            objects: What to alter where the caption names it; if it names none, something else is altered.
            absent: Objects that may be put in their place, none of them in the image.
            rng: Source of randomness.

        Returns:
            The altered caption, or None where it has nothing that these rules can alter.
        """
        text = caption
        for name in objects:
            named = [mention for mention in self.lexicon.mentions(text) if mention.name == name]
            text = self._alter_one(text, rng.choice(named), absent, rng) if named else text
        if text != caption:
            return text
        clean = [mention for mention in self.lexicon.mentions(caption) if mention.clean]
        if clean:
            text = self._alter_one(caption, rng.choice(clean), absent, rng)
        return text if text != caption else self._alter_word(caption, 0, len(caption), rng)

    def _add(self, caption: str, objects: Sequence[str], rng: random.Random) -> str:
        mentions = self.lexicon.mentions(caption)
        like = rng.choice(mentions) if mentions else None
        lists = [run for run in runs(caption, mentions) if _can_grow(caption, run, objects)]
        ways = {way: count for way, count in self.style.ways.items() if count and (lists or way != LIST)}
        ways = {way: count for way, count in ways.items() if f" {way} " not in caption} or ways
        way = rng.choices(list(ways), list(ways.values()))[0] if ways else "with"
        if way == LIST:
            return self._add_to_list(caption, rng.choice(lists), objects, like, rng)
        article = _takes_articles(mentions)
        phrases = [self.style.phrase(name, like, False, article, rng) for name in objects]
        place = rng.choice(_places(caption, mentions))
        return _splice(caption, place, place, f" {way} {_in_the_manner_of(caption, phrases)}")

    def _add_to_list(
        self, caption: str, run: list[Mention], objects: Sequence[str], like: Mention | None, rng: random.Random
    ) -> str:
        phrases = [_uncapitalised(caption, mention) for mention in run]
        article = _takes_articles(self.lexicon.mentions(caption))
        # Where sizes are given, captions begin with the largest object: a new one in front would give itself away.
        foremost = int(any(not OPPOSITES.keys().isdisjoint(mention.adjectives) for mention in run))
        if _is_modified(caption, run[0]):
            foremost = 1
        for name in objects:
            place = rng.randint(foremost, len(phrases))
            phrases.insert(place, self.style.phrase(name, like, place == 0, article, rng))
        return _splice(caption, run[0].start, run[-1].end, _in_the_manner_of(caption, phrases))

    def _replace(self, caption: str, mention: Mention, name: str, rng: random.Random) -> str:
        """Names another object in place of a mention: same determiner, number and kinds of attribute."""
        first = mention.start == self.lexicon.mentions(caption)[0].start
        noun = self.style.phrase(name, mention, first, False, rng)
        return _splice(caption, mention.start, mention.end, _in_place_of(mention, noun))

    def _remove_one(self, caption: str, name: str) -> str | None:
        mentions = self.lexicon.mentions(caption)
        run = next((run for run in runs(caption, mentions) for item in run if item.name == name), None)
        if run is None:
            return None
        kept = [item for item in run if item.name != name]
        if len(run) > 1 and kept:
            return _shorten_list(caption, run, kept)
        return _cut_phrase(caption, run[0].start, run[-1].end, mentions)

    def _alter_one(self, caption: str, mention: Mention, absent: Sequence[str], rng: random.Random) -> str:
        run = next((run for run in runs(caption, self.lexicon.mentions(caption)) if mention in run), None)
        named = self.lexicon.named(caption)
        kinds = _fitting([name for name in absent if name not in named], caption, run) if run else []
        if not kinds or rng.random() < 0.5:
            altered = self._alter_word(caption, mention.start, mention.end, rng)
            if altered or not kinds:
                return altered or caption
        return self._replace(caption, mention, rng.choice(kinds), rng)

    def _alter_word(self, caption: str, start: int, end: int, rng: random.Random) -> str | None:
        """Turns one colour, size or number between two offsets into another."""
        words = [word for word in split_words(caption) if start <= word.start < end]
        palette = [colour for colour in self.style.palette if colour not in {word.text for word in words}]
        choices = {
            word: [OPPOSITES[word.text]] if word.text in OPPOSITES else palette if word.text in COLOURS else NUMBERS
            for word in words
            if word.text in OPPOSITES or (word.text in COLOURS and palette) or word.text in NUMBERS
        }
        if not choices:
            return None
        word = rng.choice(list(choices))
        other = rng.choice([text for text in choices[word] if text != word.text])
        begin = word.start
        article = re.search(r"\b(an?) $", caption[:begin], re.IGNORECASE)
        if article:
            begin, other = article.start(), with_article(other)
        return _splice(caption, begin, word.end, other)


def _splice(caption: str, start: int, end: int, text: str) -> str:
    """Puts `text` in place of caption[start:end] and repairs blanks, commas and the capital letter."""
    result = " ".join(f"{caption[:start]}{text}{caption[end:]}".split())
    result = re.sub(r"(\s?,)(?:\s?,)+", r"\1", result)
    result = re.sub(r"^[\s,.]+|\s?,(?=\s?[.!?]*$)", "", result)
    first = result[:1].upper() if caption[:1].isupper() else result[:1].lower()
    return first + result[1:]


def _uncapitalised(caption: str, mention: Mention) -> str:
    phrase = caption[mention.start : mention.end]
    return phrase[0].lower() + phrase[1:] if mention.start == 0 else phrase


def _in_the_manner_of(caption: str, phrases: Sequence[str]) -> str:
    """Enumerates as the caption is typed: "a, b and c", "a, b, and c", or with detached marks "a , b and c"."""
    text = enumerate_phrases(phrases)
    if re.search(r",\s+and\b", caption) and len(phrases) > 2:
        text = f"{text.rpartition(' and ')[0]}, and {phrases[-1]}"
    return text.replace(", ", " , ") if re.search(r"\s[.,]", caption) else text


def _takes_articles(mentions: Sequence[Mention]) -> bool:
    singular = [mention for mention in mentions if not mention.is_plural]
    return not singular or any(mention.determiner for mention in singular)


def _in_place_of(mention: Mention, noun: str) -> str:
    """Puts another noun under the determiner of a mention: "two cups" for "two balls", "a cup" for "snow"."""
    if mention.is_plural and not is_mass(mention.noun):
        noun = plural(noun)
    counts = mention.determiner not in _ANY_NUMBER
    if mention.determiner in ("a", "an") or (is_mass(mention.noun) and not mention.determiner):
        return with_article(noun)
    return noun if is_mass(noun) and counts else f"{mention.determiner} {noun}".strip()


def _is_modified(caption: str, mention: Mention) -> bool:
    """Whether a word stands before the phrase that belongs to it, though it is not known to ("other people")."""
    before = [word for word in split_words(caption) if word.end <= mention.start]
    return bool(before) and not mention.determiner and not before[-1].is_mark and not ends_phrase(before[-1].text)


def _next_word(caption: str, place: int) -> str:
    return next((word.text for word in split_words(caption) if word.start >= place), ".")


def _fitting(names: Sequence[str], caption: str, run: Sequence[Mention]) -> list[str]:
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


def _can_grow(caption: str, run: Sequence[Mention], objects: Sequence[str]) -> bool:
    """Whether objects can join: their number must not break the agreement with a verb ("a dog runs")."""
    word = _next_word(caption, run[-1].end)
    agrees = len(run) > 1 or run[0].is_plural or not word.isalpha() or (ends_phrase(word) and not is_finite(word))
    agrees = agrees and (word not in _RELATIVES or len(run) > 1 or run[0].is_plural)
    return agrees and len(_fitting(objects, caption, run)) == len(objects)


def _places(caption: str, mentions: Sequence[Mention]) -> list[int]:
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


def _shorten_list(caption: str, run: Sequence[Mention], kept: Sequence[Mention]) -> str | None:
    end, text = run[-1].end, _in_the_manner_of(caption, [_uncapitalised(caption, item) for item in kept])
    word = _next_word(caption, end)
    if len(kept) == 1 and not kept[0].is_plural and is_finite(word):
        if word not in _SINGULAR:
            return None
        end = caption.index(word, end) + len(word)
        text = f"{text} {_SINGULAR[word]}"
    return _splice(caption, run[0].start, end, text)


def _cut_phrase(caption: str, start: int, end: int, mentions: Sequence[Mention]) -> str | None:
    """Removes a noun phrase together with what ties it to the sentence, or gives None.

    Tied by a preposition ("a man [on a horse]"), by a participle ("a man [holding a cup]") or by "and"; a first phrase
    goes with the link to the next ("[a ball next to] a cup").
    """
    before = [word for word in split_words(caption) if word.end <= start]
    after = _next_word(caption, end)
    tie = _first_tied(before)
    free = not ends_phrase(after) or after in PREPOSITIONS - {"of"} or is_participle(after) or is_finite(after)
    if tie is not None and free and not (before[tie].text == "and" and is_finite(after)):
        return _splice(caption, before[tie].start, end, "")
    link = _LINK.match(caption, end)
    following = next((item for item in mentions if link and item.start == link.end()), None)
    cut = next(item for item in mentions if item.start == start)
    if following is None or cut.is_plural != following.is_plural:
        return None
    return _splice(caption, start, following.start, "")


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
