"""What two encoders do with several objects and with wrong words, and how that goes with hallucination by object."""

import html
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from llava_ohd import tower
from llava_ohd.clip.embedding import Images
from llava_ohd.errors import DataFormatError
from llava_ohd.evals.dense import is_hit
from llava_ohd.evals.pope import object_of
from llava_ohd.files import read_json, read_jsonl, write_json, write_text
from llava_ohd.probes.attention import attention_maps
from llava_ohd.probes.evaluate import read_rows
from llava_ohd.probes.figures import draw
from llava_ohd.probes.tables import as_table
from llava_ohd.report import benchmarks
from llava_ohd.report.gallery import embedded

__all__ = ["Sources", "correlations", "diagnose", "write"]

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
        section), `attention` (maps), `dense` (metrics of both), `words` (examples), `drift` (lines), `correlations`.

    Raises:
        DataFormatError: there is nothing, or a file is of another evaluation.
    """
    record: dict[str, Any] = {"names": list(sources.names), "missing": []}
    for name, part in (("multi_object", _objects), ("dense", _words)):
        absent = [folder for folder in sources.folders if not (folder / name / "results.json").is_file()]
        if absent:
            which = sources.names[sources.folders.index(absent[0])]
            record["missing"].append(f"{absent[0] / name}; run: python eval/{name}.py --encoder {which}")
        else:
            record |= part(sources)
    if len(record["missing"]) == 2:
        raise DataFormatError("there is nothing to show. " + " ".join(record["missing"]))
    record["drift"] = _drift(sources)
    record["correlations"] = correlations(*_by_object(sources))
    return record


# --- several objects


def _objects(sources: Sources) -> dict[str, Any]:
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


def _words(sources: Sources) -> dict[str, Any]:
    records = [read_json(folder / "dense/results.json") for folder in sources.folders]
    if records[0]["set"] != records[1]["set"] or records[0]["settings"]["set"] != records[1]["settings"]["set"]:
        raise DataFormatError(
            f"eval/dense.py was run on {records[0]['set']!r} and {records[1]['set']!r}; measure both on one set"
        )
    stock, ours = ({row["id"]: row for row in read_jsonl(folder / "dense/words.jsonl")} for folder in sources.folders)
    metrics = {
        name: [one["metrics"][name]["value"] for one in records]
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


Numbers = dict[str, dict[str, float]]


def _by_object(sources: Sources) -> tuple[Numbers, Numbers]:
    """Returns by object what changed in the encoder, and what changed in the LLaVA: ours minus stock."""
    return _matching(sources) | _localised(sources), _hallucinated(sources)


def _matching(sources: Sources) -> Numbers:
    sides: list[dict[str, float]] = []
    for folder in sources.folders:
        file = folder / "multi_object/details.json"
        if not file.is_file():
            return {}
        whole = next(one for one in read_json(file)["probes"]["matching"] if one["scorer"] == "whole")
        sides.append({row["object"]: row["value"] for row in whole["by_object"] if row["size"] == "small"})
    return {"exchange of it, small, is noticed": _change(*sides)}


def _localised(sources: Sources) -> Numbers:
    sides = []
    for folder in sources.folders:
        file = folder / "dense/words.jsonl"
        if not file.is_file():
            return {}
        hits: dict[str, list[bool]] = defaultdict(list)
        for row in read_jsonl(file):
            if row["wrong"]:
                hits[row["wrong"][0]].append(_hit(row))
        sides.append({name: sum(found) / len(found) for name, found in hits.items()})
    return {"it is the lowest word where it is wrong": _change(*sides)}


def _hallucinated(sources: Sources) -> Numbers:
    truth = benchmarks.read_truth(sources.data, "test")
    found: Numbers = {}
    for name, read in (("pope", benchmarks.read_pope), ("chair", benchmarks.read_chair)):
        if not all((folder / name / "results.json").is_file() for folder in sources.folders):
            continue
        chances = _chances(name, truth)
        sides = []
        for folder in sources.folders:
            counts: dict[str, int] = dict.fromkeys(chances, 0)
            for names in read(folder / name, truth).invented.values():
                for one in names & chances.keys():
                    counts[one] += 1
            sides.append({one: counts[one] / chances[one] for one in chances})
        found[f"{name.upper()}: share of images without it in which it is hallucinated"] = _change(*sides)
    return found


def _chances(name: str, truth: benchmarks.Truth) -> dict[str, int]:
    """Returns by object in how many images without it a hallucination could have been counted."""
    if name == "pope":
        asked = {(q.image, object_of(q.prompt)) for q in truth.questions or () if q.label == "no"}
        return {one: sum(name == one for _, name in asked) for one in {name for _, name in asked}}
    objects = truth.objects or {}
    everything = {name for names in objects.values() for name in names}
    return {one: sum(one not in names for names in objects.values()) for one in everything}


def _change(stock: Mapping[str, float], ours: Mapping[str, float]) -> dict[str, float]:
    return {name: ours[name] - stock[name] for name in sorted(stock.keys() & ours.keys())}


def correlations(probes: Numbers, hallucinations: Numbers) -> list[dict[str, Any]]:
    """Correlates by rank what changed in the encoder with what changed in the LLaVA, over objects.

    Returns:
        Rows `encoder`, `llava`, `n` objects, `rho` and its two-sided `p`; both None where one does not vary or there
        are fewer than 5 objects. No correction for the number of rows.
    """
    rows = []
    for one, changed in probes.items():
        for other, said in hallucinations.items():
            names = sorted(changed.keys() & said.keys())
            left, right = [changed[name] for name in names], [said[name] for name in names]
            row: dict[str, Any] = {"encoder": one, "llava": other, "n": len(names), "rho": None, "p": None}
            if len(names) >= 5 and len(set(left)) > 1 and len(set(right)) > 1:
                found = spearmanr(left, right)
                row |= {"rho": float(found.statistic), "p": float(found.pvalue)}
            rows.append(row)
    return rows


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
    """Writes diagnostics.json and diagnostics.html, which needs no other file."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(coloured=coloured)
    text = files(__package__).joinpath("diagnostics.html").read_text(encoding="utf-8")
    tables = list(_cells(record.get("table", "")))
    page = environment.from_string(text).render(record=record, tables=tables)
    numbers = {key: value for key, value in record.items() if key not in ("pictures", "attention", "words")}
    write_json(out / "diagnostics.json", numbers)
    write_text(out / "diagnostics.html", page)
