"""Scenes of one large and several small objects: balanced, apart, with areas that are what the picture shows."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_ohd.probes.pictures import ObjectSet, read_set
from llava_ohd.world.kinds import COLOURS, KINDS
from llava_ohd.world.multi_object import SLOTS, SceneSetConfig, design, is_current, places, write_scene_set
from llava_ohd.world.scenes import CELL, IMAGE_SIZE


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> ObjectSet:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    write_scene_set(folder, SceneSetConfig(rounds=2))
    return read_set(folder)


def test_every_class_is_equally_often_in_every_slot_and_size(drawn: ObjectSet) -> None:
    assert drawn.classes == tuple(sorted(KINDS))
    seen: Counter[tuple[int, str, str, bool]] = Counter()
    for layout in drawn.layouts:
        assert len(layout.pictures) == 40
        seen += Counter(
            (len(layout.slots), item.name, item.slot, item.large)
            for picture in layout.pictures
            for item in picture.objects
        )
    for count, slots in SLOTS.items():
        for name in KINDS:
            for slot in slots:
                assert seen[count, name, slot, True] == 2
                assert seen[count, name, slot, False] == 2 * (count - 1)


def test_no_two_pictures_of_a_layout_show_the_same_in_the_same_slots() -> None:
    rows = design(KINDS, 3, 50, random.Random(0))
    assert len(set(rows)) == len(rows) == 1000
    pairs = design(KINDS, 2, 50, random.Random(0))  # there are only 20 x 19
    assert len(set(pairs)) == len(pairs) == 380
    assert all(len(set(row)) == len(row) for row in [*rows, *pairs])


@pytest.mark.parametrize(("count", "large"), [(n, k) for n in SLOTS for k in (None, *range(n))])
def test_objects_are_apart_and_small_ones_in_one_cell(count: int, large: int | None) -> None:
    taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=int)
    squares = places(count, large)
    for index, (left, top, size) in enumerate(squares):
        assert (size == 28) == (index == large)
        taken[top : top + size, left : left + size] += 1
        if index != large:
            assert (left // CELL, top // CELL) == ((left + size - 1) // CELL, (top + size - 1) // CELL)
    assert len(squares) == count
    assert taken.shape == (64, 64)
    assert taken.max() == 1


def test_slots_are_where_their_names_say() -> None:
    for count in (3, 4, 5):
        for large in range(count):
            middles = {
                s: (x + n / 2, y + n / 2) for s, (x, y, n) in zip(SLOTS[count], places(count, large), strict=True)
            }
            assert max(middles["UL"]) < 32 < min(middles["BR"])
    (left, _, _), (right, _, _) = places(2, 0)
    assert left < right


def test_areas_are_those_of_the_picture(drawn: ObjectSet) -> None:
    picture = next(layout for layout in drawn.layouts if layout.name == "ThreeObject-MiddleBig").pictures[0]
    pixels = np.asarray(Image.open(drawn.folder / picture.image)).astype(float)
    floor, blue = np.array((212.0, 210.0, 206.0)), np.array(COLOURS["blue"], dtype=float)
    covered = ((pixels - floor) @ (blue - floor)) / ((blue - floor) @ (blue - floor))  # 0 floor, 1 object
    for item in picture.objects:
        assert item.box is not None
        assert item.area is not None
        left, top, width, height = (int(value) for value in item.box)
        assert covered[top : top + height, left : left + width].sum() == pytest.approx(item.area, rel=0.02)
    large, *small = (item.area or 0.0 for item in picture.by_size)
    assert picture.by_size[0].slot == "Middle"
    assert large > max(small)


def test_there_is_one_single_picture_per_class_in_both_sizes(drawn: ObjectSet) -> None:
    assert set(drawn.single) == set(drawn.single_small) == set(KINDS)
    for names in (drawn.single, drawn.single_small):
        assert all((drawn.folder / name).is_file() for name in names.values())


def test_a_set_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    write_scene_set(tmp_path / "a", SceneSetConfig(rounds=1))
    assert is_current(tmp_path / "a", SceneSetConfig(rounds=1))
    assert not is_current(tmp_path / "a", SceneSetConfig(rounds=2))
    assert not is_current(tmp_path / "b", SceneSetConfig(rounds=1))
    record = json.loads((tmp_path / "a" / "objects.json").read_text())
    (tmp_path / "a" / "objects.json").write_text(json.dumps(record | {"drawn_as": "older"}))
    assert not is_current(tmp_path / "a", SceneSetConfig(rounds=1))


def test_comco_style_varies_colours(tmp_path: Path) -> None:
    write_scene_set(tmp_path / "a", SceneSetConfig(style="comco", rounds=1))
    found = read_set(tmp_path / "a")
    pixels = np.asarray(Image.open(found.folder / found.layouts[-1].pictures[0].image)).reshape(-1, 3)
    present = {tuple(int(v) for v in row) for row in pixels}
    assert len(present & set(COLOURS.values())) > 1
