"""Edits captions by rule: inserts objects that are not there, removes or alters those that are.

The places are those where English takes an object without further change: inside an enumeration, after a noun phrase,
at the end; phrases are removed only where the rest stays grammatical. The paper used a large language model for this;
its three intents (add, remove, alter) are kept.

Source: arXiv 2410.03176 section 3 and table 13, for the three intents.
"""

import random
import re
from collections.abc import Sequence

from llava_ohd.ohd_caps.editing import (
    can_grow,
    cut_phrase,
    fitting,
    in_place_of,
    in_the_manner_of,
    is_modified,
    link_places,
    shorten_list,
    splice,
    takes_articles,
    uncapitalised,
)
from llava_ohd.ohd_caps.grammar import with_article
from llava_ohd.ohd_caps.lexicon import Lexicon, Mention, split_words
from llava_ohd.ohd_caps.style import LIST, Style, runs
from llava_ohd.ohd_caps.words import (
    COLOURS,
    NUMBERS,
    OPPOSITES,
)

__all__ = ["Rewriter"]

INSTEAD = 0.25  # share of insertions that take the place of an object: a negative is then no longer than the caption


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
            if fitting(objects[:1], caption, run)
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
        lists = [run for run in runs(caption, mentions) if can_grow(caption, run, objects)]
        ways = {way: count for way, count in self.style.ways.items() if count and (lists or way != LIST)}
        ways = {way: count for way, count in ways.items() if f" {way} " not in caption} or ways
        way = rng.choices(list(ways), list(ways.values()))[0] if ways else "with"
        if way == LIST:
            return self._add_to_list(caption, rng.choice(lists), objects, like, rng)
        article = takes_articles(mentions)
        phrases = [self.style.phrase(name, like, False, article, rng) for name in objects]
        place = rng.choice(link_places(caption, mentions))
        return splice(caption, place, place, f" {way} {in_the_manner_of(caption, phrases)}")

    def _add_to_list(
        self, caption: str, run: list[Mention], objects: Sequence[str], like: Mention | None, rng: random.Random
    ) -> str:
        phrases = [uncapitalised(caption, mention) for mention in run]
        article = takes_articles(self.lexicon.mentions(caption))
        # Where sizes are given, captions begin with the largest object: a new one in front would give itself away.
        foremost = int(any(not OPPOSITES.keys().isdisjoint(mention.adjectives) for mention in run))
        if is_modified(caption, run[0]):
            foremost = 1
        for name in objects:
            place = rng.randint(foremost, len(phrases))
            phrases.insert(place, self.style.phrase(name, like, place == 0, article, rng))
        return splice(caption, run[0].start, run[-1].end, in_the_manner_of(caption, phrases))

    def _replace(self, caption: str, mention: Mention, name: str, rng: random.Random) -> str:
        """Names another object in place of a mention: same determiner, number and kinds of attribute."""
        first = mention.start == self.lexicon.mentions(caption)[0].start
        noun = self.style.phrase(name, mention, first, False, rng)
        return splice(caption, mention.start, mention.end, in_place_of(mention, noun))

    def _remove_one(self, caption: str, name: str) -> str | None:
        mentions = self.lexicon.mentions(caption)
        run = next((run for run in runs(caption, mentions) for item in run if item.name == name), None)
        if run is None:
            return None
        kept = [item for item in run if item.name != name]
        if len(run) > 1 and kept:
            return shorten_list(caption, run, kept)
        return cut_phrase(caption, run[0].start, run[-1].end, mentions)

    def _alter_one(self, caption: str, mention: Mention, absent: Sequence[str], rng: random.Random) -> str:
        run = next((run for run in runs(caption, self.lexicon.mentions(caption)) if mention in run), None)
        named = self.lexicon.named(caption)
        kinds = fitting([name for name in absent if name not in named], caption, run) if run else []
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
        return splice(caption, begin, word.end, other)
