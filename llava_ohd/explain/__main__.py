"""Word by word: which words of a caption does an encoder not find in the image?

Inputs:  IMAGE and "caption"; or --captions FILE (JSON Lines with image and caption or text, such as answers.jsonl of
         eval/chair.py) with --images DIR.
Outputs: the words with their scores; with --out a PNG and a page (explanation.png, explanation.html). Of a file:
         OUT/words.jsonl, and with --chair what CHAIR says of the same words, and OUT/chair.svg.
Command: python -m llava_ohd.explain photo.jpg "a cup of coke" --encoder ours
         python -m llava_ohd.explain --captions runs/eval/ours/chair/answers.jsonl --images runs/world/images --out DIR
Cost:    a second beside loading; 500 captions of the embedded world a few seconds.

A score is the word's share in the cosine of image and caption (CLIP4DM, arXiv 2412.18404): below zero it speaks against
the image. The default threshold is the paper's for ViT-H/14; on an encoder of another scale a note says how to find
one (docs/diagnostics.md).
"""

import argparse
import os
import sys
from pathlib import Path

from llava_ohd import tower
from llava_ohd.command_line import require, require_between
from llava_ohd.errors import DataFormatError, exit_on_error
from llava_ohd.explain.explainer import THRESHOLD, ExplainConfig, is_published_scale
from llava_ohd.explain.words import TEMPLATE
from llava_ohd.files import read_json
from llava_ohd.training.launch import quiet


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m llava_ohd.explain", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("image", type=Path, nargs="?", help="image file")
    add("caption", nargs="?", help="what is said about it")
    add("--captions", type=Path, metavar="FILE", help="many captions instead of one")
    add("--images", type=Path, metavar="DIR", help="folder of their images")
    add("--chair", metavar="SET", help="compare with CHAIR: world, coco, or a folder with annotations/")
    add("--split", default="test", help="of the annotations of --chair")
    add("--encoder", default="ours", help="name or folder of the encoder (default: ours)")
    add("--by", choices=("sentence", "caption"), default="sentence", help="what is read at once, with --captions")
    add("--layers", type=int, default=3, help="last layers of the text tower that are looked at")
    add("--variant", default="clip4dm", help="clip4dm, relu, relu_mean or rollout")
    add("--template", default=TEMPLATE, help="stands before the caption and is not scored (default: %(default)r)")
    add("--threshold", type=float, help=f"words below it do not fit (default: ={THRESHOLD}, of ViT-H/14)")
    add("--cut", action="store_true", help="leave words beyond the encoder's length without score")
    add("--out", type=Path, metavar="DIR", help="folder for what is written")
    given = parser.parse_args(arguments)
    if bool(given.captions) == (given.image is not None and given.caption is not None):
        parser.error("give IMAGE and a caption, or --captions FILE")
    if given.captions and not (given.images and given.out):
        parser.error("--captions needs --images DIR and --out DIR")
    many = {"chair", "images", "split", "by"}
    idle = sorted(name for name in many if not given.captions and getattr(given, name) != parser.get_default(name))
    if idle or (given.captions and not given.chair and given.split != parser.get_default("split")):
        parser.error(f"--{(idle or ['split'])[0]} has no effect here; it goes with --captions, --split with --chair")
    return given


def _check(given: argparse.Namespace) -> None:
    """Refuses, before a model is loaded, what could only fail afterwards."""
    require_between(-1, 1, "threshold", given.threshold)
    if given.image is not None:
        require(not given.image.is_dir(), "image", given.image, "an image file", "check the path")
    if given.out is not None:
        require(given.out.is_dir() or not given.out.exists(), "out", given.out, "a folder", "leave it out")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    given = parse(arguments)
    quiet()
    with exit_on_error():
        _check(given)
        threshold = THRESHOLD if given.threshold is None else given.threshold
        config = ExplainConfig(given.layers, given.variant, given.template, threshold, given.cut)
        encoder = tower.check(tower.resolve(given.encoder)).path
        if given.captions:
            _many(given, encoder, config)
        else:
            _one(given, encoder, config)
        if given.threshold is None and not is_published_scale(read_json(encoder / "config.json")):
            print(
                f"note: the threshold {THRESHOLD:g} was found for ViT-H/14, {given.encoder} has another scale. "
                f"`python eval/dense.py --encoder {given.encoder} --flag 0.05 --out DIR` finds one; "
                "give it as --threshold=VALUE"
            )


def _one(given: argparse.Namespace, encoder: Path, config: ExplainConfig) -> None:
    from llava_ohd.clip.embedding import Images, embed_captions, embed_images
    from llava_ohd.explain.explainer import explain
    from llava_ohd.explain.image_map import image_maps
    from llava_ohd.explain.page import draw, seen_image, terminal, write_html

    model, processor = tower.load(encoder).eval().requires_grad_(False), tower.load_processor(encoder)
    tokenizer, images = tower.load_tokenizer(encoder), Images(given.image.parent, [given.image.name], processor)
    [found] = explain(model, tokenizer, embed_images(model, images), [(0, given.caption)], config)
    print(terminal(found, sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    if given.out:
        pixels = images.pixels([0])
        texts, _ = embed_captions(model, tokenizer, [config.template + given.caption])
        picture = given.out / "explanation.png"
        draw(seen_image(pixels[0], processor), found, image_maps(model, pixels, texts.clone())[0], picture)
        write_html([(picture, found)], given.out / "explanation.html")
        print(f"page: {given.out / 'explanation.html'}")


def _many(given: argparse.Namespace, encoder: Path, config: ExplainConfig) -> None:
    from llava_ohd.evals.chair_data import open_set, read_captions
    from llava_ohd.evals.dense import is_word
    from llava_ohd.explain.captions import crosscheck, explain_captions
    from llava_ohd.explain.page import draw_mentions
    from llava_ohd.files import write_jsonl

    captions = read_captions(given.captions)
    if sum(len(caption.text.split()) > 1 for caption in captions) * 2 <= len(captions):
        raise DataFormatError(
            f"{given.captions}: most of its {len(captions)} texts are single words or empty; give captions, not answers"
        )
    found = explain_captions(encoder, captions, given.images, config, given.by)
    write_jsonl(given.out / "words.jsonl", [one.record() for one in found])
    words = [word for one in found for _, part in one.parts for word in part.words if is_word(word.text)]
    wrong = sum(len(part.wrong) for one in found for _, part in one.parts)
    print(f"{len(found)} captions, {len(words)} words, {wrong} do not fit (threshold {config.threshold:g})")
    if unread := sum(word.score is None for word in words):
        print(f"{unread} words have no score: beyond the encoder's length")
    if given.chair:
        data = open_set(given.chair, given.split)
        check = crosscheck(found, data.truth("exact"), data.vocabulary)
        area = "none" if check.area is None else f"{check.area:.3f}"
        print(
            f"CHAIR (rule exact): {check.mentions} objects mentioned, {check.hallucinated} hallucinated; chance that a "
            f"hallucinated one scores lower than a true one: {area}"
        )
        if all(check.scores):
            draw_mentions(*check.scores, given.out / "chair.svg")
    print(f"results: {given.out / 'words.jsonl'}")


if __name__ == "__main__":
    main()
