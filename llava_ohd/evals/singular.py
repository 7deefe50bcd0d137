"""Singulars as CHAIR's original takes them: what `pattern.en.singularize` returns, damage included.

"bus" becomes "bu" and "glass" becomes "glas", so the published metric never counts the word "bus". That package cannot
be installed on a current Python; what it knows is the tables below (clips/pattern @ d25511f, BSD-3-Clause, release 2.6
has the same; text/en/inflect.py), which are consulted from top to bottom.
"""

import re
from functools import cache

__all__ = ["singular"]

# "mothers-in-law": only what stands before such a word changes
_HEADS_BEFORE = """
about above across after among around at athwart before behind below beneath beside besides between betwixt beyond but
by during except for from in into near of off on onto out over since till to under until unto upon with
"""
# so do endings of these words: "s", "on", "ion"
_UNCHANGED = """
bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn eland elk
flounder gallows georgia graffiti headquarters herpes high-jinks homework innings jackanapes mackerel measles mews mumps
news pincers pliers proceedings rabies salmon scissors series shears species swine swiss trout tuna whiting wildebeest
advice bread butter cheese electricity equipment fruit furniture garbage gravel happiness information ketchup knowledge
love luggage mathematics mayonnaise meat mustard news progress research rice sand software understanding water
"""
# the plurals of these, and what ends like one, are left as they stand: "cookies", "collies"
_IN_IE = """
alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie hippie hoagie
hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie quickie reverie rookie softie sortie
stoolie sweetie techie toughie valkyrie veggie weenie yuppie zombie
"""
# of the end of a word: "snowmen"
_IRREGULAR = """
atlantes>atlas atlases>atlas axes>axe beeves>beef brethren>brother children>child corpora>corpus corpuses>corpus
ephemerides>ephemeris feet>foot ganglia>ganglion geese>goose genera>genus genii>genie graffiti>graffito helves>helve
kine>cow leaves>leaf loaves>loaf men>man mongooses>mongoose monies>money moves>move mythoi>mythos numena>numen
occipita>occiput octopodes>octopus opera>opus opuses>opus our>my oxen>ox penes>penis penises>penis people>person
sexes>sex soliloquies>soliloquy teeth>tooth testes>testis trilbys>trilby turves>turf zoa>zoon
"""
# what stands before / the ending / what takes its place
_RULES = """
./ae/a  ./itis/itis  ./eaux/eau  quiz/zes/  matr/ices/ix  ap|vert|ind/ices/ex  ^ox/en/  alias|status/es/
[octp|vir]/i/us  cris|ax|test/es/is  shoe/s/  o/es/  bus/es/  [m|l]/ice/ouse  x|ch|ss|sh/es/  movie/s/  .ombie/s/
series//  [^aeiouy]|qu/ies/y  [aeo]l/ves/f  [^d]ea/ves/f  ar/ves/f  erve/s/  [nlw]i/ves/fe  [lr]/ves/f  [aeo]ve/s/
sive/s/  tive/s/  hive/s/  [^f]/ves/fe  ^analy/ses/sis  analy/ses/asis  ba|diagno|parenthe|progno|synop|the/ses/sis
.op/ses/sis  .y/ses/sis  (?:h|d|r|o|n|b|cl|p)ose/s/
(?:fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose//  .o/ses/sis  [ti]/a/um  news//  /s/
"""


def _pattern(before: str, ending: str) -> re.Pattern[str]:
    return re.compile(f"(?:{before})({ending}){'' if before == '^ox' else '$'}")


_heads_before = frozenset(_HEADS_BEFORE.split())
_unchanged = tuple(_UNCHANGED.split())
_in_ie = tuple(f"{word}s" for word in _IN_IE.split())
_irregular = [(plural, one) for plural, _, one in (pair.partition(">") for pair in _IRREGULAR.split())]
_rules = [(_pattern(before, ending), new) for before, ending, new in (row.split("/") for row in _RULES.split())]


@cache
def singular(word: str) -> str:
    """Returns the singular of a word in lower case."""
    head, _, rest = word.partition("-")
    if rest.split("-")[0] in _heads_before:
        return f"{singular(head)}-{rest}"
    if word.endswith("'"):
        return f"{singular(word[:-1])}'s"
    if any(kept.endswith(word) for kept in _unchanged) or word.endswith(_in_ie):
        return word
    for plural, one in _irregular:
        if word.endswith(plural):
            return word.removesuffix(plural) + one
    for pattern, new in _rules:
        if found := pattern.search(word):
            return word[: found.start(1)] + new + word[found.end(1) :]
    return word
