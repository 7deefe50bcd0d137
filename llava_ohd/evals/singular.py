"""Singulars as CHAIR's original takes them: what `pattern.en.singularize` returns, damage included.

"bus" becomes "bu" and "glass" becomes "glas", so the published metric never counts the word "bus". That package cannot
be installed on a current Python; what it knows is the tables below (clips/pattern @ d25511f, BSD-3-Clause, release 2.6
has the same; text/en/inflect.py), which are consulted from top to bottom.
"""

import re
from functools import cache

__all__ = ["singular"]

_HEADS_BEFORE = frozenset(  # "mothers-in-law": only what stands before such a word changes
    "about above across after among around at athwart before behind below beneath beside besides between betwixt "
    "beyond but by during except for from in into near of off on onto out over since till to under until unto upon with".split()
)
_UNCHANGED = tuple(  # so are endings of these words: "s", "on", "ion"
    "bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn eland "
    "elk flounder gallows georgia graffiti headquarters herpes high-jinks homework innings jackanapes mackerel measles "
    "mews mumps news pincers pliers proceedings rabies salmon scissors series shears species swine swiss trout tuna "
    "whiting wildebeest "
    "advice bread butter cheese electricity equipment fruit furniture garbage gravel happiness information ketchup "
    "knowledge love luggage mathematics mayonnaise meat mustard news progress research rice sand software "
    "understanding water".split()
)
_IN_IE = tuple(  # with an s they are left as they stand, as is any word that ends so: "cookies", "collies"
    f"{word}s"
    for word in "alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie "
    "hankie hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie quickie "
    "reverie rookie softie sortie stoolie sweetie techie toughie valkyrie veggie weenie yuppie zombie".split()
)
_IRREGULAR = dict(  # of the end of a word: "snowmen"
    pair.split(">")
    for pair in "atlantes>atlas atlases>atlas axes>axe beeves>beef brethren>brother children>child corpora>corpus "
    "corpuses>corpus ephemerides>ephemeris feet>foot ganglia>ganglion geese>goose genera>genus genii>genie "
    "graffiti>graffito helves>helve kine>cow leaves>leaf loaves>loaf men>man mongooses>mongoose monies>money "
    "moves>move mythoi>mythos numena>numen occipita>occiput octopodes>octopus opera>opus opuses>opus our>my oxen>ox "
    "penes>penis penises>penis people>person sexes>sex soliloquies>soliloquy teeth>tooth testes>testis trilbys>trilby "
    "turves>turf zoa>zoon".split()
)
_RULES = tuple(  # what stands before / the ending / what takes its place
    (re.compile(f"(?:{before})({ending}){'' if before == '^ox' else '$'}"), new)
    for before, ending, new in (
        row.split("/")
        for row in """./ae/a  ./itis/itis  ./eaux/eau  quiz/zes/  matr/ices/ix  ap|vert|ind/ices/ex  ^ox/en/
        alias|status/es/  [octp|vir]/i/us  cris|ax|test/es/is  shoe/s/  o/es/  bus/es/  [m|l]/ice/ouse  x|ch|ss|sh/es/  movie/s/
        .ombie/s/  series//  [^aeiouy]|qu/ies/y  [aeo]l/ves/f  [^d]ea/ves/f  ar/ves/f  erve/s/  [nlw]i/ves/fe
        [lr]/ves/f  [aeo]ve/s/  sive/s/  tive/s/  hive/s/  [^f]/ves/fe  ^analy/ses/sis  analy/ses/asis
        ba|diagno|parenthe|progno|synop|the/ses/sis  .op/ses/sis  .y/ses/sis  (?:h|d|r|o|n|b|cl|p)ose/s/
        (?:fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose//  .o/ses/sis  [ti]/a/um  news//  /s/""".split()
    )
)


@cache
def singular(word: str) -> str:
    """Returns the singular of a word in lower case."""
    head, _, rest = word.partition("-")
    if rest.split("-")[0] in _HEADS_BEFORE:
        return f"{singular(head)}-{rest}"
    if word.endswith("'"):
        return f"{singular(word[:-1])}'s"
    if any(kept.endswith(word) for kept in _UNCHANGED) or word.endswith(_IN_IE):
        return word
    for plural, one in _IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + one
    for pattern, new in _RULES:
        if found := pattern.search(word):
            return word[: found.start(1)] + new + word[found.end(1) :]
    return word
