"""An explanation to look at: a line for a terminal, a PNG, a page of html."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, tensor

from llava_ohd.explain.explainer import Explanation, ScoredWord
from llava_ohd.files import atomic_path, write_text

__all__ = ["draw", "draw_mentions", "seen_image", "summary", "terminal", "write_html"]

_RED, _GREEN, _END = "\033[31m", "\033[32m", "\033[0m"
_ROWS = 24  # words in a picture of the usual height
_LONGEST = 28  # characters of a word in it


def terminal(found: Explanation, colour: bool) -> str:
    """Returns a line per word, its score in units of 1e-5 and a bar, and a last line with the caption's scores."""
    largest, wrong = _largest(found), set(found.wrong)
    width = max(len(word.text) for word in found.words)
    lines = []
    for word in found.words:
        if word.score is None:
            lines.append(f"{word.text:{width}}    not read: beyond the encoder's length")
            continue
        bar = ("-" if word.score < 0 else "+") * round(20 * abs(word.score) / largest)
        flag = "  does not fit" if word in wrong else ""
        begin, end = (_RED if word.score < 0 else _GREEN, _END) if colour else ("", "")
        lines.append(f"{begin}{word.text:{width}} {word.score * 1e5:+9.2f}  {bar}{flag}{end}")
    return "\n".join([*lines, summary(found)])


def summary(found: Explanation) -> str:
    """Returns the scores of a caption in words."""
    return (
        f"cosine {found.cosine:.4f}, CLIPScore {found.clip_score:.4f}, F-CLIPScore (Nam et al.) "
        f"{found.f_clip_score:.3e}; words in 1e-5, threshold {found.threshold * 1e5:g}"
    )


def draw(image: Image.Image, found: Explanation, relevance: Tensor, path: Path) -> None:
    """Writes a PNG: the image as the encoder sees it, where the caption is found in it, the words.

    Args:
        image: As the encoder sees it, a square.
        found: The caption.
        relevance: (P, P), from `image_maps`.
        path: Of the PNG.
    """
    from matplotlib.figure import Figure

    rows = [(word.text, word.score * 1e5) for word in found.words if word.score is not None]
    figure = Figure(figsize=(9, 3.2 * max(1, len(rows) / _ROWS)), layout="constrained")
    seen, where, words = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    seen.imshow(image)
    seen.set_title("image as the encoder sees it", fontsize=9)
    limit = float(relevance.abs().max()) * 1e5 or 1.0
    shown = image.convert("L")
    where.imshow(shown, cmap="gray", extent=(0, 1, 0, 1))
    drawn = where.imshow(relevance * 1e5, cmap="RdBu", vmin=-limit, vmax=limit, alpha=0.6, extent=(0, 1, 0, 1))
    where.set_title("where it finds the caption (1e-5)", fontsize=9)
    figure.colorbar(drawn, ax=where, shrink=0.8)
    for axes in (seen, where):
        axes.set_axis_off()
    heights = [score for _, score in rows]
    words.barh(range(len(rows)), heights, color=["#b2182b" if height < 0 else "#2166ac" for height in heights])
    words.axvline(found.threshold * 1e5, color="black", linewidth=0.8, linestyle=":")
    labels = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for text, _ in rows]
    words.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)  # a $ is a $
    words.invert_yaxis()
    words.set_xlabel("attribution (1e-5); dotted: threshold", fontsize=8)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=110)


def draw_mentions(hallucinated: Sequence[float], true: Sequence[float], path: Path) -> None:
    """Writes an SVG: how the scores of hallucinated and of true mentions are spread; what they share cannot be told."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.subplots()
    every = [1e5 * score for score in (*hallucinated, *true)]
    bins = [min(every) + (max(every) - min(every)) * step / 40 for step in range(41)]
    for scores, colour, label in ((true, "#2166ac", "true"), (hallucinated, "#b2182b", "hallucinated")):
        shares = [100 / len(scores)] * len(scores)
        name = f"{label} ({len(scores):,} mentions)"
        axes.hist([1e5 * score for score in scores], bins, weights=shares, color=colour, alpha=0.55, label=name)
    axes.set_xlabel("attribution of the mentioned object, lowest word (1e-5)")
    axes.set_ylabel("mentions of its kind, %")
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as part, rc_context({"svg.fonttype": "none", "svg.hashsalt": "llava_ohd"}):
        figure.savefig(part, format="svg", facecolor="white", metadata={"Date": None})


def write_html(rows: Sequence[tuple[Path, Explanation]], path: Path) -> None:
    """Writes a page that needs no other file: for each PNG its caption, words coloured by their score."""
    parts = []
    for picture, found in rows:
        largest, wrong = _largest(found), set(found.wrong)
        spans = " ".join(_span(word, largest, word in wrong) for word in found.words)
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<p>{spans}</p><p><small>{summary(found)}</small></p><img src="data:image/png;base64,{data}">')
    head = '<!doctype html><meta charset="utf-8"><title>Word by word</title>'
    style = "<style>body{font-family:sans-serif;max-width:64em;margin:2em auto}img{max-width:100%}</style>"
    write_text(path, "\n".join([head, style, *parts, ""]))


def _largest(found: Explanation) -> float:
    """Returns the largest score of either sign, punctuation included, which is drawn, too."""
    return max((abs(word.score) for word in found.words if word.score is not None), default=1.0) or 1.0


def _span(word: ScoredWord, largest: float, wrong: bool) -> str:
    if word.score is None:
        return f'<span style="color:#888" title="not read">{html.escape(word.text)}</span>'
    colour = "178,24,43" if word.score < 0 else "33,102,172"
    line = ";text-decoration:underline" if wrong else ""
    style = f"background:rgba({colour},{0.6 * abs(word.score) / largest:.2f}){line}"
    return f'<span style="{style}" title="{word.score * 1e5:+.2f}e-5">{html.escape(word.text)}</span>'


def seen_image(pixels_CHW: Tensor, processor: Any) -> Image.Image:
    """Returns what the encoder was given, as an image."""
    mean, std = (tensor(getattr(processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
    shown = (pixels_CHW * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(shown.permute(1, 2, 0).numpy())
