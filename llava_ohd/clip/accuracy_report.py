"""One encoder on one set of OHD-Caps: results.json, and the table: accuracy first, beside it what needs no image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_ohd import tower
from llava_ohd.clip.accuracy import metrics, predictions, score
from llava_ohd.clip.batching import image_names
from llava_ohd.clip.embedding import Images
from llava_ohd.clip.scorers import cost_settings, make_scorer
from llava_ohd.files import write_jsonl
from llava_ohd.home import from_home
from llava_ohd.ohd_caps.blind import TITLES
from llava_ohd.ohd_caps.records import OhdRow
from llava_ohd.ohd_caps.vocabulary import PHOTO_VOCABULARY
from llava_ohd.records import Metric
from llava_ohd.results import write_results

__all__ = ["Measurement", "measure", "table"]

RULE = "argmax of float32 cosines, ties wrong (arXiv 2410.03176; Yufang-Liu/clip_hallucination@8a748e6 aro_datasets.py)"

_STRATEGIES = {
    "random": "random objects inserted",
    "popular": "popular objects inserted",
    "adversarial": "adversarial objects inserted",
    "removal": "objects removed",
    "alteration": "objects or attributes altered",
    "unknown": "edited in ways not stated",
}
_WRONG_IMAGE = {
    "accuracy_shuffled": "the encoder, another row's image",
    "accuracy_mean_image": "the encoder, mean image",
}


@dataclass(frozen=True)
class Measurement:
    """What is measured, and with what.

    Attributes:
        encoder: Name or folder.
        images: Folder that the rows' images lie in.
        data: What the rows were read from.
        fitted_on: What fitted controls were fitted on.
        seed: Of the shuffled images.
        scorer: How a caption is compared with an image, of `scorers.SCORERS`.
    """

    encoder: str
    images: Path
    data: Path
    fitted_on: str
    seed: int = 0
    scorer: str = "whole"


def measure(given: Measurement, rows: Sequence[OhdRow], controls: Mapping[str, float], out: Path) -> list[Metric]:
    """Measures an encoder on a set and writes `results.json` and `predictions.jsonl`.

    Args:
        given: What is measured.
        rows: The set.
        controls: Accuracy of each control, as a fraction.
        out: Folder of the two files.

    Returns:
        The metrics, those of the controls as `control_NAME`.
    """
    encoder = tower.check(tower.resolve(given.encoder))
    scorer = make_scorer(given.scorer, _vocabulary(rows))
    images = Images(given.images, image_names(rows), tower.load_processor(encoder.path))
    model, tokenizer = tower.load(encoder.path), tower.load_tokenizer(encoder.path)
    scores = score(model, tokenizer, images, rows, given.seed, scorer)
    found = metrics(scores)
    found += [Metric(f"control_{name}", value, len(rows), "none") for name, value in controls.items()]
    write_jsonl(out / "predictions.jsonl", predictions(scores))
    write_results(
        out / "results.json",
        found,
        evaluation="ohd_caps",
        rule=RULE,
        data_set=from_home(given.data),
        n=len(rows),
        encoder={"name": given.encoder, "digest": encoder.digest},
        settings={"shuffle_seed": given.seed, "controls_fitted_on": given.fitted_on, "interval": "Wilson, 95 %"}
        | cost_settings(scorer, scores.cost),
    )
    return found


def _vocabulary(rows: Sequence[OhdRow]) -> list[str]:
    """The objects that captions are searched for: those that the rows name, and those of photographs."""
    named = (name for row in rows for name in (*row.objects, *(n for neg in row.negatives for n in neg.objects)))
    return list(dict.fromkeys([*PHOTO_VOCABULARY, *(name.lower() for name in named)]))


def table(metrics: Iterable[Metric], fitted_on: str) -> str:
    """Returns the table, numbers in percent.

    Args:
        metrics: Of `accuracy.metrics`, and `control_NAME` of the controls.
        fitted_on: What fitted controls were fitted on.
    """
    found = {metric.name: metric for metric in metrics}
    lines = [f"  {'':36}{'accuracy':>9}   {'95 % (Wilson)':15}{'chance':>7}{'n':>8}"]
    for name in [key for key in found if f"{key}_low95" in found]:
        low, high, chance = (100 * found[f"{name}_{end}"].value for end in ("low95", "high95", "chance"))
        ends = f"[{low:.1f}, {high:.1f}]"
        lines.append(f"  {_title(name):36}{100 * found[name].value:9.1f}   {ends:15}{chance:7.1f}{found[name].n:8,}")
    lines += ["", "  without seeing the image"]
    lines += [f"  {title:36}{100 * value:9.1f}" for title, value in _controls(found).items()]
    return "\n".join([*lines, f"  (fitted controls: on {fitted_on})"])


def _controls(found: Mapping[str, Metric]) -> dict[str, float]:
    blind = {TITLES[key]: found[f"control_{key}"].value for key in TITLES if f"control_{key}" in found}
    return blind | {title: found[name].value for name, title in _WRONG_IMAGE.items() if name in found}


def _title(name: str) -> str:
    group = name.partition("/")[2]
    if not group:
        return "above all negatives"
    if group in _STRATEGIES:
        return f"  {_STRATEGIES[group]}"
    family, _, number = group.partition("_")
    where = "edited" if family == "edited" else "in the image"
    return f"  {number.replace('_', ' ')} {'object' if number == '1' else 'objects'} {where}"
