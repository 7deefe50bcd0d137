"""All probes of one encoder on one set of pictures, each picture embedded once."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llava_ohd import tower
from llava_ohd.clip.embedding import Images, embed_captions, embed_images
from llava_ohd.clip.scorers import make_scorer, read_captions
from llava_ohd.errors import DataFormatError
from llava_ohd.probes.attention import ObjectAttention, attention_maps, crop_settings, object_attention
from llava_ohd.probes.caption_positions import LargestPosition
from llava_ohd.probes.classification import (
    FEWEST,
    LONG,
    PICTURE,
    TEXT,
    Classification,
    ProbeConfig,
    picture_classification,
    text_classification,
)
from llava_ohd.probes.diagnostics import Diagnostics, Matching, ProbesConfig
from llava_ohd.probes.matching import Trial, captions_of, crossed, judge, scenario, shares, shares_by_object
from llava_ohd.probes.pictures import Layout, ObjectSet, Picture
from llava_ohd.probes.retrieval import Encode, Retrieval, picture_retrieval, text_retrieval, written_retrieval
from llava_ohd.probes.sentences import as_text, name_alone
from llava_ohd.progress import track

__all__ = ["run"]


class _Encoder:
    """A loaded encoder, the pictures of a set as it sees them, and captions as it reads them."""

    def __init__(self, folder: Path, given: ObjectSet) -> None:
        self.model, self.tokenizer = tower.load(folder), tower.load_tokenizer(folder)
        self.processor = tower.load_processor(folder)
        groups = [[picture.image for picture in layout.pictures] for layout in given.layouts]
        names = [*(name for row in groups for name in row), *given.single.values(), *given.single_small.values()]
        self.images = Images(given.folder, names, self.processor)
        self.seen = dict(zip(names, embed_images(self.model, self.images), strict=True))

    def read(self, captions: Sequence[str]) -> Tensor:
        texts, which = embed_captions(self.model, self.tokenizer, captions)
        return texts[which]

    def features(self, names: Sequence[str]) -> Tensor:
        return torch.stack([self.seen[name] for name in names])


def run(
    folder: Path,
    given: ObjectSet,
    config: ProbesConfig,
    written: Sequence[str] = (),
    largest: LargestPosition | None = None,
) -> Diagnostics:
    """Measures an encoder.

    Args:
        folder: Of the encoder, checked.
        given: The pictures.
        config: How much.
        written: Captions that people wrote, for TOR.
        largest: What is known of captions already; it does not depend on the encoder.

    Raises:
        DataFormatError, ImageError, OptionError: as the probes.
    """
    encoder = _Encoder(folder, given)
    by_count = _by_count(given.layouts)
    counts, classes, form = list(by_count), given.classes, config.form
    names = encoder.read([name_alone(name, form) for name in classes])
    trials, matching = _match(encoder, by_count, classes, config)
    asked = (encoder.read, classes)
    attention, attention_slots = _attention(encoder, given)
    return Diagnostics(
        text={n: text_retrieval(*asked, n, form, config.captions, config.seed) for n in counts},
        written=_written(encoder.read, written, classes, counts, form),
        pictures=_by_size(encoder, by_count, given.single, classes),
        pictures_small=_by_size(encoder, by_count, given.single_small, classes),
        names={n: picture_retrieval(_features(encoder, rows), names, classes, rows) for n, rows in by_count.items()},
        slots=_by_slot(encoder, given),
        text_probe=_text_probes(encoder, given, counts, config, TEXT),
        text_probe_long=_text_probes(encoder, given, counts, config, LONG[TEXT]),
        picture_probe=_picture_probes(encoder, given, PICTURE),
        picture_probe_long=_picture_probes(encoder, given, LONG[PICTURE]),
        large_slots={layout.name: layout.large for layout in given.layouts},
        attention=attention,
        attention_slots=attention_slots,
        matching=matching,
        trials=trials,
        largest=largest,
    )


def _by_count(layouts: Sequence[Layout]) -> dict[int, list[Picture]]:
    found: dict[int, list[Picture]] = {}
    for layout in layouts:
        found.setdefault(len(layout.slots), []).extend(layout.pictures)
    return found


def _features(encoder: _Encoder, pictures: Sequence[Picture]) -> Tensor:
    return encoder.features([picture.image for picture in pictures])


def _by_size(
    encoder: _Encoder, by_count: Mapping[int, Sequence[Picture]], single: Mapping[str, str], classes: Sequence[str]
) -> dict[int, Retrieval]:
    if not single:
        return {}
    alone = encoder.features([single[name] for name in classes])
    return {n: picture_retrieval(_features(encoder, rows), alone, classes, rows) for n, rows in by_count.items()}


def _by_slot(encoder: _Encoder, given: ObjectSet) -> dict[str, Retrieval]:
    if not given.single:
        return {}
    alone = encoder.features([given.single[name] for name in given.classes])
    return {
        layout.name: picture_retrieval(_features(encoder, layout.pictures), alone, given.classes, layout.pictures, True)
        for layout in given.layouts
    }


def _written(
    encode: Encode, captions: Sequence[str], classes: Sequence[str], counts: Sequence[int], form: str
) -> dict[int, Retrieval]:
    found = {}
    for count in counts if captions else ():
        try:
            found[count] = written_retrieval(encode, captions, classes, count, form)
        except DataFormatError:  # no caption names so many, which the number of captions behind each share says
            continue
    return found


def _text_probes(
    encoder: _Encoder, given: ObjectSet, counts: Sequence[int], config: ProbesConfig, trained: ProbeConfig
) -> dict[int, Classification]:
    asked = (config.probe_form, config.captions, trained, config.seed)
    return {n: text_classification(encoder.read, given.classes, n, *asked) for n in track(counts, "probing captions")}


def _picture_probes(encoder: _Encoder, given: ObjectSet, trained: ProbeConfig) -> dict[str, Classification]:
    return {
        layout.name: picture_classification(_features(encoder, layout.pictures), given.classes, layout, trained)
        for layout in track(given.layouts, "probing pictures")
        if len(layout.pictures) >= FEWEST
    }


def _attention(encoder: _Encoder, given: ObjectSet) -> tuple[dict[int, ObjectAttention], dict[str, ObjectAttention]]:
    """By number of objects, and by layout; only where every object's box is known."""
    pictures = [picture for layout in given.layouts for picture in layout.pictures]
    if not all(picture.size and all(item.box for item in picture.objects) for picture in pictures):
        return {}, {}
    maps = dict(
        zip((p.image for p in pictures), attention_maps(encoder.model, encoder.images, len(pictures)), strict=True)
    )
    crop = crop_settings(encoder.processor)

    def measured(group: Sequence[Picture], by_slot: bool) -> ObjectAttention:
        return object_attention(torch.stack([maps[p.image] for p in group]), group, *crop, by_slot=by_slot)

    by_count = {n: measured(group, False) for n, group in _by_count(given.layouts).items()}
    return by_count, {layout.name: measured(layout.pictures, True) for layout in given.layouts}


def _match(
    encoder: _Encoder, by_count: Mapping[int, Sequence[Picture]], classes: Sequence[str], config: ProbesConfig
) -> tuple[list[tuple[Trial, tuple[str, ...]]], list[Matching]]:
    trials: list[Trial] = []
    for count, pictures in by_count.items():
        rng = random.Random(f"matching {count} {config.seed}")
        drawn = rng.sample(pictures, min(config.pictures, len(pictures)))
        for number in (1, 2):
            trials += scenario(number, drawn, classes, config.form, config.absent, config.seed)
        trials += crossed(drawn, classes, config.form, config.seed)
    found, winners = [], [[] for _ in trials]  # type: ignore[var-annotated]
    captions = captions_of(trials)
    for name in config.scorers:
        read = read_captions(
            encoder.model, encoder.tokenizer, captions, make_scorer(name, [as_text(word).lower() for word in classes])
        )
        won = judge(trials, encoder.seen, read)
        pairs = [(trial, hit) for trial, hit in zip(trials, won, strict=True) if trial.cell.design == "crossed"]
        by_object = shares_by_object(*map(list, zip(*pairs, strict=True)))
        found.append(Matching(name, *read.cost, shares(trials, won), by_object))
        for ways, hit in zip(winners, won, strict=True):
            ways += [name] if hit else []
    return [(trial, tuple(ways)) for trial, ways in zip(trials, winners, strict=True)], found
