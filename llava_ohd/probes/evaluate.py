"""One encoder on one set: results.json, all estimates in details.json, all trials in trials.jsonl, tables, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.errors import DataFormatError, EncoderNotFound, OptionError
from llava_ohd.files import read_json, write_json, write_jsonl
from llava_ohd.home import from_home
from llava_ohd.probes.caption_positions import LargestPosition, largest_position, read_areas, read_texts
from llava_ohd.probes.coco import read_coco_set
from llava_ohd.probes.diagnostics import Diagnostics, ProbesConfig
from llava_ohd.probes.pictures import ObjectSet, read_set
from llava_ohd.probes.rows import Row, as_metrics, as_record, rows
from llava_ohd.probes.run import run
from llava_ohd.probes.tables import as_table
from llava_ohd.results import differences, read_results, versions, write_results

__all__ = ["Evaluation", "check_digest", "evaluate", "read_rows"]

RULE = "ComCO's probes with balanced orders (arXiv 2502.19842; clip-oscope/clip-oscope@59f5a52)"


@dataclass(frozen=True)
class Evaluation:
    """What is measured.

    Attributes:
        encoder: Name or folder.
        data: A set in the published form.
        instances: COCO instances, or None.
        images: Folder of their images: measure on these in place of `data`.
        single: Folder of one picture per category, or None.
        caption_file: Captions in which the largest object is looked for, or None.
        form: How objects are named.
        probe_form: The same in TOC.
        pictures: Pictures for matching, for each number of objects.
        text_captions: Captions of TOR and TOC, for each number of objects.
        absent: Absent objects per picture in the published scenarios; None: all.
        beside: Result folders of other encoders.
        seed: Of every draw.
        out: Folder of the results.
        scenes: Draw the embedded world's set where `data` does not hold it.
    """

    encoder: str
    data: Path
    instances: Path | None
    images: Path | None
    single: Path | None
    caption_file: Path | None
    form: str
    probe_form: str
    pictures: int
    text_captions: int
    absent: int | None
    beside: Sequence[Path]
    seed: int
    out: Path
    scenes: bool = False


def evaluate(asked: Evaluation) -> str:
    """Measures an encoder and writes everything.

    Returns:
        The tables, Markdown.

    Raises:
        LlavaOhdError: an encoder, data or an option that cannot be used; nothing is written then.
    """
    encoder = tower.check(tower.resolve(asked.encoder))
    config = ProbesConfig(
        asked.form, asked.probe_form, asked.text_captions, asked.pictures, asked.absent, seed=asked.seed
    )
    terms = _terms(asked, config)
    others = {name: found for folder in asked.beside for name, found in [_beside(folder, terms)]}
    if asked.encoder in others:
        raise OptionError(
            f"--beside has results of {asked.encoder}, which is measured now; give those of other encoders"
        )
    given = _pictures(asked)
    written, largest = _captions(asked)
    found = run(encoder.path, given, config, written, largest)
    own = rows(found)
    write_json(asked.out / "details.json", _details(asked.encoder, found, own))
    write_jsonl(asked.out / "trials.jsonl", (as_record(trial) | {"won_by": list(ways)} for trial, ways in found.trials))
    write_results(
        asked.out / "results.json",
        as_metrics(own),
        evaluation="multi_object",
        rule=terms["rule"],
        data_set=terms["set"],
        n=sum(len(layout.pictures) for layout in given.layouts),
        encoder={"name": asked.encoder, "digest": encoder.digest},
        settings=terms["settings"],
    )
    both = {**others, asked.encoder: own}
    _draw(both, asked.out)
    return as_table(both)


def _terms(asked: Evaluation, config: ProbesConfig) -> dict[str, Any]:
    """Returns what two encoders' results must agree in."""
    captions = asked.caption_file and from_home(asked.caption_file)
    settings = {**asdict(config), "caption_file": captions, "interval": "Wilson or Student, 95 %"}
    return {
        "rule": RULE, "set": from_home(asked.images or asked.data), "settings": settings, "versions": versions()
    }  # fmt: skip


def _beside(folder: Path, terms: dict[str, Any]) -> tuple[str, list[Row]]:
    """Reads others' results, which must be of the same terms, and of the encoder that bears their name today."""
    name, found = read_rows(folder)
    record = read_results(folder / "results.json")
    if unlike := differences({key: record.get(key) for key in terms}, terms):
        raise DataFormatError(
            f"{folder} cannot stand beside: {'; '.join(unlike)}. Measure {name} again in the same way"
        )
    check_digest(folder, record, name)
    return name, found


def check_digest(folder: Path, record: Mapping[str, Any], name: str) -> None:
    """Refuses results of another encoder than the one that bears the name today; a name that is gone proves nothing.

    Raises:
        DataFormatError: the digests differ.
    """
    try:
        today = tower.check(tower.resolve(name)).digest
    except EncoderNotFound:
        return
    measured = (record.get("encoder") or {}).get("digest")
    if measured != today:
        raise DataFormatError(
            f"{folder} was measured on an encoder of digest {str(measured)[:12]}, {name} is {today[:12]} today; "
            "measure it again"
        )


def read_rows(folder: Path) -> tuple[str, list[Row]]:
    """Reads the rows of results that are there.

    Returns:
        The name of the encoder, and the rows.

    Raises:
        DataFormatError: no details.json of this evaluation.
    """
    from llava_ohd.probes.estimates import Estimate

    record = read_json(folder / "details.json")
    try:
        found = [Row(**{**row, "estimate": Estimate(**row["estimate"])}) for row in record["rows"]]
        return str(record["encoder"]), found
    except (KeyError, TypeError) as error:
        raise DataFormatError(f"{folder}/details.json was not written by eval/multi_object.py ({error!r})") from None


def _details(encoder: str, found: Diagnostics, own: Sequence[Row]) -> dict[str, object]:
    record = as_record(found)
    record.pop("trials")  # in a file of their own
    return {"encoder": encoder, "rows": as_record(own), "probes": record}


def _pictures(asked: Evaluation) -> ObjectSet:
    if asked.images is not None:
        if asked.instances is None:
            raise OptionError("--images go with --instances, which say what they show; give both")
        return read_coco_set(asked.instances, asked.images, asked.single)
    if asked.scenes:
        from llava_ohd.world.multi_object import SceneSetConfig, is_current, write_scene_set

        if not is_current(asked.data, SceneSetConfig()):
            write_scene_set(asked.data, SceneSetConfig())
    return read_set(asked.data)


def _captions(asked: Evaluation) -> tuple[list[str], LargestPosition | None]:
    if asked.caption_file is None:
        return [], None
    if asked.instances is None:
        raise OptionError("--caption_file goes with --instances, which say how large objects are; give both")
    if asked.scenes and not asked.caption_file.exists():  # the embedded world has not been made: the rest needs it not
        return [], None
    texts = read_texts(asked.caption_file)
    return [text for group in texts.values() for text in group], largest_position(texts, *read_areas(asked.instances))


def _draw(encoders: dict[str, list[Row]], out: Path) -> None:
    from llava_ohd.probes.figures import draw

    draw(encoders, out)
