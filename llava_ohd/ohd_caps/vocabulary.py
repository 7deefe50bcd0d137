"""What photographs show: the names that captions are searched for where no objects are given.

COCO's 80 categories, and the kinds of scenery of its panoptic annotations in plain words. The authors' segmenter
(SEEM) knows these; `cardboard`, `banner` and `pavement` in their files come from there.

Source: https://cocodataset.org/#panoptic-2020
"""

from collections.abc import Iterable

from llava_ohd.ohd_caps.coco import CocoImage

__all__ = ["PHOTO_VOCABULARY", "vocabulary_for"]

_THINGS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)
_SCENERY = (
    "banner, blanket, bridge, cardboard, counter, curtain, door, flower, fruit, gravel, house, light, mirror, net, "
    "pillow, platform, playing field, railroad, river, road, roof, sand, sea, shelf, snow, stairs, tent, towel, "
    "wall, water, window blind, window, tree, fence, ceiling, sky, cabinet, floor, pavement, mountain, grass, dirt, "
    "paper, food, building, rock, rug"
)

PHOTO_VOCABULARY = tuple(f"{_THINGS}, {_SCENERY}".split(", "))


def vocabulary_for(images: Iterable[CocoImage]) -> tuple[str, ...]:
    """Returns the names to look for in captions beside those annotated: none where any image has annotations."""
    return () if any(image.instances for image in images) else PHOTO_VOCABULARY
