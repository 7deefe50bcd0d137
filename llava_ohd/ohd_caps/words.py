"""Word classes by which a caption is read without a tagger: what can and what cannot stand in a noun phrase."""

__all__ = [
    "ADJECTIVES",
    "ANIMATE",
    "AUXILIARIES",
    "COLLECTIVES",
    "COLOURS",
    "DETERMINERS",
    "NUMBERS",
    "OPPOSITES",
    "PREPOSITIONS",
    "SYNONYMS",
    "ends_phrase",
    "is_finite",
    "is_participle",
]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


COLOURS = _set("red green blue yellow purple black white brown orange pink gray grey silver golden tan beige cyan teal")
OPPOSITES = {"large": "small", "big": "little", "huge": "tiny", "tall": "short", "long": "short"}
OPPOSITES |= {small: large for large, small in OPPOSITES.items() if small != "short"} | {"short": "tall"}
DETERMINERS = _set(
    "a an the some several many few two three four five six seven eight nine ten his her its their our my your "
    "this that these those another each every no any both one"
)
COLLECTIVES = _set(
    "herd flock group pair couple number bunch row lot pack crowd pile stack variety line team family set plenty"
)
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight")
PREPOSITIONS = _set(
    "in on at with near beside by next under over behind above below of to from into onto through across along "
    "around between among against inside outside for during while without off up down toward towards past atop "
    "front underneath beneath amongst alongside out after before as via"
)
AUXILIARIES = _set("is are was were be been being has have had can could will would does do did may might")
VERBS = _set(
    "sit stand run walk play hold look ride lie jump pose eat carry wear watch wait swim catch rest smile talk "
    "sleep use drink climb throw hit kick surf ski skate cross travel bark chew lean hang move "
    "leap enjoy gather make take try get go come perform prepare touch pull push read drive appear "
    "show fill work dance sing laugh stare roll slide grab reach follow chase bite lick fight "
    "cut cook share seem turn pass"
)
_OTHER_BOUNDARIES = _set(
    "and or but who which that where when it he she they them him there here each other together while"
)
ADJECTIVES = (
    COLOURS | OPPOSITES.keys() | _set("young old wooden striped fluffy furry dirty wet older younger dark light")
)
_NOT_PARTICIPLES = _set(
    "building ceiling clothing evening morning painting string swing railing wedding king wing thing"
)

ANIMATE = _set("person man woman boy girl child people bird cat dog horse sheep cow elephant bear zebra giraffe")
SYNONYMS = {
    "person": "man men woman women boy boys girl girls child children kid kids people guy guys lady ladies toddler "
    "toddlers baby babies adult adults player players skier skiers surfer surfers snowboarder skateboarder rider biker",
    "dining table": "table tables",
    "bicycle": "bike bikes",
    "motorcycle": "motorbike motorbikes",
    "airplane": "plane planes jet aeroplane",
    "couch": "sofa sofas",
    "tv": "television televisions",
    "cell phone": "phone phones cellphone",
    "potted plant": "plant plants",
    "refrigerator": "fridge",
    "sports ball": "ball balls football basketball",
    "wine glass": "glass wineglass",
    "cup": "mug mugs",
    "handbag": "purse purses",
    "donut": "doughnut doughnuts",
    "dog": "puppy puppies",
    "cat": "kitten kittens",
    "teddy bear": "teddy",
    "baseball bat": "bat bats",
    "sheep": "lamb lambs",
    "skis": "ski",
}


def is_finite(word: str) -> bool:
    """Says whether a word looks like a verb that agrees with its subject in number ("is", "runs", "run")."""
    stems = {word, word.removesuffix("s"), word.removesuffix("es"), f"{word.removesuffix('ies')}y"}
    return word in AUXILIARIES or not stems.isdisjoint(VERBS)


def is_participle(word: str) -> bool:
    """Says whether a word looks like "running"."""
    return word.endswith("ing") and len(word) > 4 and word not in _NOT_PARTICIPLES


def ends_phrase(word: str) -> bool:
    """Says whether a word can stand directly behind a noun phrase, but not inside one."""
    return (
        word in PREPOSITIONS
        or word in DETERMINERS
        or word in _OTHER_BOUNDARIES
        or is_finite(word)
        or is_participle(word)
    )
