"""The language of the embedded world: what its mini Llama reads before it ever meets an image.

Three sorts of conversations, all in LLaVA's v1 form: about a scene told in words (reading comprehension), about a
scene of which only the largest object is told, and about nothing at all. The last two teach the prior from which a
language model hallucinates: objects of one theme go together, popular ones are a good guess.
"""

import random
from collections.abc import Iterator

from llava_ohd.evals.pope_questions import question_text
from llava_ohd.world.captions import captions, describe
from llava_ohd.world.kinds import KINDS, THEMES, theme_of
from llava_ohd.world.scenes import IMAGE_SIZE, Scene, sample_scene

__all__ = ["DESCRIBE_PROMPTS", "conversations", "first_lessons"]

DESCRIBE_PROMPTS = ("Describe this image.", "What is in the image?", "Describe the image briefly.")
TOLD_FULLY, TOLD_PARTLY = 0.75, 0.15  # shares; the rest is told nothing
QUESTIONS = (3, 6)  # yes/no questions per conversation
_GRID = 4  # the scene may be told square by square, as the tower's patches will tell it


def _phrases(scene: Scene, rng: random.Random) -> str:
    """Tells the scene as bare phrases, in any order."""
    items = rng.sample(scene.objects, len(scene.objects))
    return rng.choice((" ", ", ", " . ")).join(f"{item.colour} {item.kind}" for item in items)


def _grid(scene: Scene, rng: random.Random) -> str:
    """Tells the scene square by square from the upper left; an object is told where its middle lies."""
    cell = IMAGE_SIZE / _GRID
    told: dict[int, list[str]] = {}
    for item in scene.objects:
        middle = item.size / 2
        place = int((item.top + middle) // cell) * _GRID + int((item.left + middle) // cell)
        told.setdefault(place, []).append(rng.choice((f"{item.colour} {item.kind}", f"{item.kind} {item.colour}")))
    return " ".join(" ".join(told.get(place, ["."])) for place in range(_GRID**2))


def _context(scene: Scene, rng: random.Random) -> str:
    share = rng.random()
    if share < TOLD_FULLY:
        return rng.choice((_phrases, _grid, lambda s, _: describe(s)))(scene, rng)
    if share < TOLD_FULLY + TOLD_PARTLY:
        return rng.choice(captions(scene, rng))
    return ""


def _asked(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Draws one yes/no question: half yes, a third of the absent kinds from a theme of the scene."""
    present = [item.kind for item in scene.objects]
    if rng.random() < 0.5:
        return question_text(rng.choice(present)), "Yes"
    pool = THEMES[theme_of(rng.choice(present))] if rng.random() < 0.5 else KINDS
    absent = [kind for kind in pool if kind not in present] or [kind for kind in KINDS if kind not in present]
    return question_text(rng.choice(absent)), "No"


def first_lessons(seed: int) -> Iterator[tuple[str, str]]:
    """Yields, without end, one question about a scene told fully, and its answer: the easiest reading there is.

    Args:
        seed: Of the scenes and of the questions about them.
    """
    rng = random.Random(f"first lessons {seed}")
    while True:
        scene = sample_scene(rng)
        if rng.random() < 0.25:
            yield f"{describe(scene)}\n{rng.choice(DESCRIBE_PROMPTS)}", describe(scene)
        else:
            asked, answer = _asked(scene, rng)
            yield f"{rng.choice((_phrases, _grid))(scene, rng)}\n{asked}", answer


def conversations(seed: int) -> Iterator[list[tuple[str, str]]]:
    """Yields conversations without end, each a list of (what the human says, what the assistant answers).

    Args:
        seed: Of the scenes and of the questions about them.
    """
    rng = random.Random(f"language {seed}")
    while True:
        scene = sample_scene(rng)
        turns = [_asked(scene, rng) for _ in range(rng.randint(*QUESTIONS))]
        if rng.random() < 0.5:
            turns.insert(rng.randrange(len(turns) + 1), (rng.choice(DESCRIBE_PROMPTS), describe(scene)))
        context = _context(scene, rng)
        first, answer = turns[0]
        yield [(f"{context}\n{first}" if context else first, answer), *turns[1:]]
