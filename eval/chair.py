"""CHAIR: how many of the objects that the model mentions are not in the image?

Paper:    Rohrbach et al., EMNLP 2018, arXiv 1809.02156.
Rule:     pattern (LisaAnne/Hallucination@6e4d33c utils/chair.py), wordnet (shikiw/OPERA@61426ef chair.py), exact.
Metrics:  chair_i (share of mentioned objects that are not there), chair_s (share of captions with such a one): lower is
          better; recall: higher; length (words) describes.
Quirks:   a model that says little hallucinates little: read recall and length, too. docs/evaluation_chair.md has more.
Inputs:   --encoder ours|openai|NAME|PATH (its LLaVA model, or --model) on --set world|DIR; or --captions FILE, which
          scores captions that are there, on --set coco (2014, under $LLAVA_OHD_DATA; for pattern and wordnet), world
          (for exact), a file of objects, or DIR with annotations/{instances,captions}_SPLIT.json.
Outputs:  OUT/answers.jsonl (of a model, or the captions that were given), OUT/results.json.
Command:  python eval/chair.py --captions captions.jsonl --rule pattern --out runs/chair
Cost:     half a minute on the embedded world; scoring alone needs no torch and a second, wordnet several and NLTK.
"""

import argparse
from pathlib import Path

from llava_ohd.answering.options import add_flags, ask_with, settle_encoder
from llava_ohd.errors import exit_on_error
from llava_ohd.evals import chair, chair_run
from llava_ohd.evals.chair_protocol import Protocol
from llava_ohd.evals.given_answers import flags_of, out_beside, refuse_idle, stated
from llava_ohd.home import evaluation_folder
from llava_ohd.records import Question


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_flags(parser, max_new_tokens=64)
    add("--set", help="world, coco, a file of objects, or a folder (default: world; with --captions by rule)")
    add("--split", default="test", help="of annotations/{instances,captions}_SPLIT.json")
    add("--limit", type=int, default=500, help="number of images that a model describes, the first ones")
    add("--prompt", default="Describe this image.", help="what is asked about every image")
    add("--captions", "--answers", type=Path, metavar="FILE", help="score these captions instead of making them")
    add("--rule", choices=list(chair.RULES), help="how objects are found (default: exact; coco: pattern)")
    add("--all-rules", action="store_true", help="print what the other rules say of the same captions")
    add("--objects", action="store_true", help="print the counts by object")
    add("--nltk_data", type=Path, help="folder of NLTK's data (default: its own places, nltk_data/ of $LLAVA_OHD_DATA)")
    add("--image_list", type=Path, help="ids of the COCO images that count; each must have a caption")
    add("--max_tokens", type=int, help="cut captions that are there at this many tokens (protocols: 64, 512)")
    add("--tokenizer", type=Path, help="SentencePiece file that counts them (default: Llama's, under $LLAVA_OHD_DATA)")
    add("--drop_unfinished", action="store_true", help="drop what follows the last full stop, as 64-token papers do")
    add("--out", type=Path, help="default: eval/ENCODER/chair in the home folder; with --captions FILE, FILE_scored/")
    given = parser.parse_args()
    with exit_on_error():
        flags, idle = stated(parser, given), {*flags_of(add_flags), "prompt"} if given.captions else ()
        refuse_idle(flags, idle, "with --captions, where no model is asked")
        chair_run.check_flags(given.set, given.rule, given.captions is not None, given.limit, flags)
    return given


def main() -> None:
    """Runs the command."""
    given = parse()
    with exit_on_error():
        if given.captions is None:
            settle_encoder(given)  # what is wrong with it is said first
        data, rule = chair_run.choose(given.set, given.rule, given.split, given.captions is not None, given.nltk_data)
        beside = out_beside(given.captions) if given.captions else None
        out = given.out or beside or evaluation_folder(given.encoder, "chair", given.set not in (None, "world"))
        asked, source = {}, {}  # how captions of others came about is not known
        if given.captions is None:
            questions = [Question(*row, given.prompt) for row in data.images()[: given.limit]]
            source = ask_with(given, data.folder / "images", questions, out)
            asked = {"prompt": given.prompt, "max_new_tokens": given.max_new_tokens}
        protocol = Protocol(given.image_list, given.max_tokens, given.tokenizer, given.drop_unfinished)
        said = chair.read_captions(given.captions or out / "answers.jsonl")
        scored = chair_run.evaluate(said, data, rule, protocol, given.limit, given.all_rules, given.nltk_data)
        scored.write(out / "results.json", asked, given.captions, **source)
        print(f"CHAIR, {given.captions or given.encoder}, {data.name}, rule {rule}, {len(scored.rows)} captions")
        scored.show(given.objects)
        print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    main()
