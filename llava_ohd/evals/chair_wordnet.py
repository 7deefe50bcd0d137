"""Lemmas by NLTK's tagger and WordNet, as OPERA's CHAIR takes them (shikiw/OPERA chair.py @ 61426ef), in less time.

The lemma of a word depends on its part of speech, which NLTK's tagger takes from the words and tags around. But the tag
is needed of few words: of those whose lemma depends on it and may be an object. And it is enough to tag from the last
place where two words in a row always have the same tag, to two words after: the tagger looks no further. Sentences of
plain words, commas and a full stop need none of the tokeniser's some thirty substitutions. So the result is that of
nltk.word_tokenize and nltk.pos_tag on the whole text, for a fraction of the work.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path

from llava_ohd.evals.language_data import data_needed, load_nltk

__all__ = ["lemmatizer"]

_PARTS_OF_SPEECH = {"J": "a", "V": "v", "N": "n", "R": "r"}  # by the first letter of a tag; all others are nouns
_NOT_PLAIN = re.compile(r"[^a-z0-9,.\s-]|--|,(?!\s)|\.(?!\s*$)|\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b")
_PLAIN_TOKEN = re.compile(r"[a-z0-9-]+|[,.]")
_LOOKS_AHEAD = 2  # words: a property of NLTK's tagger, as that it looks at two tags and words before


def lemmatizer(wanted: Collection[str], nltk_data: Path | None = None) -> Callable[[str], list[str]]:
    """Returns a function from a text in lower case to the lemmas of its tokens.

    Args:
        wanted: Lemmas that matter: a word none of whose lemmas is among them is left to be a noun.
        nltk_data: Folder with NLTK's data.

    Raises:
        MissingDependency: NLTK or its data.
    """
    nltk = load_nltk("CHAIR's rule wordnet", nltk_data)
    with data_needed():
        tagger = nltk.tag.perceptron.PerceptronTagger()
        lemmatize = cache(nltk.stem.WordNetLemmatizer().lemmatize)
        lemmatize("dogs", "n"), nltk.sent_tokenize("A dog.")  # what is missing is said now
    fixed, treebank = tagger.tagdict, nltk.tokenize.NLTKWordTokenizer()

    def tokens(sentence: str) -> list[str]:
        return treebank.tokenize(sentence) if _NOT_PLAIN.search(sentence) else _PLAIN_TOKEN.findall(sentence)

    @cache
    def tag(window: tuple[str, ...], place: int) -> str:
        return str(tagger.tag(window)[place][1])

    @cache
    def depends(word: str) -> bool:
        lemmas = {lemmatize(word, part) for part in _PARTS_OF_SPEECH.values()}
        return len(lemmas) > 1 and not lemmas.isdisjoint(wanted)

    def part_of_speech(words: Sequence[str], place: int) -> str:
        if words[place] in fixed:
            return _PARTS_OF_SPEECH.get(fixed[words[place]][0], "n")
        start = place
        while start > 0 and not (start <= place - 2 and words[start] in fixed and words[start + 1] in fixed):
            start -= 1
        window = tuple(words[start : place + 1 + _LOOKS_AHEAD])
        return _PARTS_OF_SPEECH.get(tag(window, place - start)[0], "n")

    def lemmas(text: str) -> list[str]:
        words = [token for sentence in nltk.sent_tokenize(text) for token in tokens(sentence)]
        return [
            lemmatize(word, part_of_speech(words, place) if depends(word) else "n") for place, word in enumerate(words)
        ]

    return lemmas
