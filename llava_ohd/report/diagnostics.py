"""What two encoders do with several objects and with wrong words, and how that goes with hallucination by object."""

import html
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from llava_ohd import tower
from llava_ohd.clip.embedding import Images
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.dense import is_hit
from llava_ohd.files import read_jsonl, write_json, write_text
from llava_ohd.probes.attention import attention_maps
from llava_ohd.probes.estimates import wilson
from llava_ohd.probes.evaluate import read_rows
from llava_ohd.probes.figures import draw
from llava_ohd.probes.tables import as_table
from llava_ohd.report.diagnostics_by_object import correlations, hallucinated, of_encoders, scatter
from llava_ohd.report.diagnostics_terms import read_alike
from llava_ohd.report.figures import Panel, Point, compared
from llava_ohd.report.gallery import embedded

__all__ = ["Sources", "diagnose", "write"]

_SECTIONS = ("tor", "ior", "i2t", "density", "crossed", "mitigation")
_EXAMPLES, _DRIFT_IMAGES, _MAPS = 6, 64, 4


@dataclass(frozen=True)
class Sources:
    """Where the page comes from.

    Attributes:
        names: Of the encoders, stock and ours.
        folders: Of their results, each with multi_object/, dense/, pope/, chair/.
        data: Labels and annotations.
        images: Images of eval/dense.py.
        scenes: Set of eval/multi_object.py.
    """

    names: tuple[str, ...]
    folders: tuple[Path, ...]
    data: Path
    images: Path
    scenes: Path


def diagnose(sources: Sources) -> dict[str, Any]:
    """Collects everything that is there.

    Returns:
        `names`, `missing` (one sentence each), and where their results are: `table` (Markdown), `pictures` (SVG by
        section), `attention` (maps), `dense` (metrics of both), `words` (examples), `drift` (lines), `correlations` and
        their `scatter` (SVG).

    Raises:
        DataFormatError: there is nothing, a file is of another evaluation, the two encoders were not measured on the
            same terms, or results are of another encoder than the one that bears the name today.
    """
    record: dict[str, Any] = {"names": list(sources.names), "missing": []}
    for name, part in (("multi_object", _objects), ("dense", _words)):
        results = read_alike(sources.names, sources.folders, name)
        if isinstance(results, str):
            record["missing"].append(results)
        else:
            record |= part(sources, results)
    if len(record["missing"]) == 2:
        raise DataFormatError("there is nothing to show. " + " ".join(record["missing"]))
    record["drift"] = _drift(sources)
    probes = of_encoders(sources.folders)
    said, missing = hallucinated(sources.names, sources.folders, sources.data)
    record["missing"] += missing
    record["correlations"] = correlations(probes, said)
    record["scatter"] = scatter(probes, said)
    return record


# --- several objects


def _objects(sources: Sources, _: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = (read_rows(folder / "multi_object")[1] for folder in sources.folders)
    encoders = dict(zip(sources.names, found, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        draw(encoders, Path(folder))
        drawn = {name: Path(folder) / f"{name}.svg" for name in _SECTIONS}
        pictures = {name: file.read_text(encoding="utf-8") for name, file in drawn.items() if file.is_file()}
    shown = ("tor", "ior", "matching")
    chosen = {name: [row for row in rows if row.section in shown] for name, rows in encoders.items()}
    return {"pictures": pictures, "table": as_table(chosen), "attention": _attention(sources)}


def _attention(sources: Sources) -> list[dict[str, Any]]:
    """Returns for some scenes the image and each encoder's map, a share of the attention per patch."""
    layouts = sorted(path for path in sources.scenes.glob("*Big") if path.is_dir())
    chosen = [sorted(layout.glob("*.png"))[0] for layout in layouts[:: max(1, len(layouts) // _MAPS)]][:_MAPS]
    if not chosen:
        return []
    names = [str(path.relative_to(sources.scenes)) for path in chosen]
    maps = {}
    for name in sources.names:
        encoder = tower.check(tower.resolve(name)).path
        images = Images(sources.scenes, names, tower.load_processor(encoder))
        maps[name] = attention_maps(tower.load(encoder).eval(), images).tolist()
    return [
        {
            "name": path.stem.replace("_", ", "),
            "image": embedded(path),
            "maps": {n: rows[place] for n, rows in maps.items()},
        }
        for place, path in enumerate(chosen)
    ]


# --- words


def _words(sources: Sources, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    stock, ours = ({row["id"]: row for row in read_jsonl(folder / "dense/words.jsonl")} for folder in sources.folders)
    images = len({row["image"] for row in ours.values() if row["wrong"]})
    metrics = {
        name: [_with_interval(name, one["metrics"][name], images) for one in records]
        for name in records[0]["metrics"]
        if name in records[1]["metrics"]
    }
    foils = [name for name, row in ours.items() if row["wrong"] and name in stock]
    kinds = {
        "ours finds it, stock does not": [n for n in foils if _hit(ours[n]) and not _hit(stock[n])],
        "stock finds it, ours does not": [n for n in foils if _hit(stock[n]) and not _hit(ours[n])],
    }
    examples = {
        kind: [_example(sources, stock[n], ours[n]) for n in found[:: max(1, len(found) // _EXAMPLES)][:_EXAMPLES]]
        for kind, found in kinds.items()
    }
    return {"dense": metrics, "words": examples, "counts": {kind: len(found) for kind, found in kinds.items()}}


def _with_interval(name: str, metric: Mapping[str, Any], images: int) -> dict[str, float | None]:
    """Returns a value, and Wilson's interval where it is a share of foils; foils of one image are not independent."""
    low: float | None = None
    high: float | None = None
    if name.removeprefix("mean_image/").startswith("localisation") and not name.endswith("chance") and metric["n"]:
        low, high = wilson(metric["value"], min(metric["n"], images))
    return {"value": metric["value"], "low": low, "high": high}


_DRAWN = {
    "localisation": ("localisation", "mean_image/localisation"),
    "scores": tuple(
        f"{before}{name}/average_precision"
        for before in ("", "mean_image/")
        for name in ("clip_score", "ref_clip_score", "f_clip_score")
    ),
}
_AXES = {"localisation": "foils found, %", "scores": "average precision, %"}
_REFERENCES = {"localisation": "localisation_chance", "scores": "base_rate"}


def _draw_words(record: Mapping[str, Any], out: Path) -> None:
    """Writes localisation.svg and scores.svg, dotted what is reached by chance."""
    for picture, metrics in _DRAWN.items():
        known = {name: record["dense"][name] for name in metrics if name in record["dense"]}
        if not known:
            continue
        series = {
            encoder: [Point(name.removesuffix("/average_precision"), **values[side]) for name, values in known.items()]
            for side, encoder in enumerate(record["names"])
        }
        chance = record["dense"].get(_REFERENCES[picture], [{"value": None}])[0]["value"]
        compared([Panel("", series, chance)], _AXES[picture], out / f"{picture}.svg")


def _hit(row: Mapping[str, Any]) -> bool:
    return is_hit(row["words"], row["wrong"][0])


def _example(sources: Sources, stock: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    rows = dict(zip(sources.names, (stock["words"], ours["words"]), strict=True))
    return {"image": embedded(sources.images / ours["image"]), "wrong": ours["wrong"], "words": rows}


def coloured(words: Sequence[Sequence[Any]]) -> str:
    """Returns words as html, red where they speak against the image, blue where for it."""
    largest = max((abs(score) for _, score in words), default=1.0) or 1.0
    spans = []
    for word, score in words:
        colour = "178,24,43" if score < 0 else "33,102,172"
        style = f"background:rgba({colour},{0.7 * abs(score) / largest:.2f})"
        spans.append(f'<span style="{style}" title="{score * 1e5:+.1f}e-5">{html.escape(word)}</span>')
    return " ".join(spans)


# --- what LLaVA reads, and what it hallucinates


def _drift(sources: Sources) -> list[str]:
    found = sorted(sources.images.rglob("*.png"))[:_DRIFT_IMAGES]
    stock, ours = sources.names
    return list(tower.compare(stock, ours, images=found or None).lines())


# --- the page


def _cells(markdown: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Yields title and rows of the tables of `as_table`."""
    title = ""
    for part in markdown.split("**")[1:]:
        if part.strip().startswith("|"):
            lines = [line for line in part.strip().splitlines() if line.startswith("|")]
            yield title, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]
        else:
            title = part


def write(record: dict[str, Any], out: Path) -> None:
    """Writes diagnostics.json, diagnostics.html, which needs no other file, and pictures for documents."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(coloured=coloured)
    text = files(__package__).joinpath("diagnostics.html").read_text(encoding="utf-8")
    tables = list(_cells(record.get("table", "")))
    page = environment.from_string(text).render(record=record, tables=tables)
    shown = ("pictures", "attention", "words", "scatter")
    numbers = {key: value for key, value in record.items() if key not in shown}
    write_json(out / "diagnostics.json", numbers)
    write_text(out / "diagnostics.html", page)
    if record["scatter"]:
        write_text(out / "by_object.svg", record["scatter"])
    if "dense" in record:
        _draw_words(record, out)
