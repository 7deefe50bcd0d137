"""Has a server that speaks OpenAI's protocol answer questions about images; score the file with eval/*.py --answers.

Inputs:  --server URL, up to and with /v1 (vLLM, sglang, `transformers serve`); --model as the server names it;
         --questions: a folder with POPE's three files, or LLaVA's question file (JSON Lines: question_id, image, text);
         --images. The key, where one is needed, is read from $LLAVA_OHD_API_KEY.
Outputs: OUT: answers.jsonl, the server's replies beside it. The same command goes on where it stopped; answers of
         another server, model or setting at OUT are never overwritten.
Command: python scripts/ask_server.py --server http://localhost:8000/v1 --model llava --questions DIR --images DIR \
             --out runs/answers.jsonl
Cost:    the server's; --concurrency requests at a time, those of one image one after another.

Servers pad or crop images and put the prompt into a template in ways of their own, so the answers are those of the
server, not those of the same weights here. How to start vLLM, sglang and `transformers serve`, what differs, and which
of them was run: docs/serving.md.
"""

import argparse
import json
from pathlib import Path

from llava_ohd.errors import DataFormatError, exit_on_error
from llava_ohd.evals.pope import SUFFIX, read_questions
from llava_ohd.files import read_jsonl
from llava_ohd.records import Question


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="URL", help="address of the server, up to and with /v1")
    parser.add_argument("--model", required=True, help="the model as the server names it")
    parser.add_argument("--questions", type=Path, required=True, help="POPE's folder, or a question file of LLaVA")
    parser.add_argument("--images", type=Path, required=True, help="folder that image names are relative to")
    parser.add_argument("--suffix", action="store_true", help="append LLaVA's demand for a single word or phrase")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="tokens at which an answer is cut")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time")
    parser.add_argument("--retries", type=int, default=6, help="how often a request is sent again")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds until a request counts as failed")
    parser.add_argument("--sampling", type=json.loads, default={}, metavar="JSON", help="more fields of a request")
    parser.add_argument("--out", type=Path, required=True, help="the answers file")
    given = parser.parse_args()
    if not isinstance(given.sampling, dict):
        parser.error('--sampling takes a JSON object, such as {"add_special_tokens": true}')
    if given.max_new_tokens < 1:
        parser.error("--max_new_tokens is at least 1")
    with exit_on_error():
        from llava_ohd.answering.session import ask_server
        from llava_ohd.ohd_caps.endpoint import EndpointConfig

        manner = {"concurrency": given.concurrency, "retries": given.retries, "timeout": given.timeout}
        server = EndpointConfig(given.server.rstrip("/"), given.model, given.sampling, **manner)
        questions = _questions(given.questions)
        suffix = SUFFIX if given.suffix else ""
        ask_server(server, given.images, given.max_new_tokens, questions, given.out, suffix)
        print(f"answers: {given.out}")


def _questions(place: Path) -> list[Question]:
    if place.is_dir():
        return list(read_questions(place))
    questions = []
    for number, row in enumerate(read_jsonl(place), 1):
        try:
            questions.append(Question(str(row["question_id"]), str(row["image"]), str(row["text"])))
        except KeyError as error:
            raise DataFormatError(
                f"{place} row {number} lacks {error}; question_id, image and text are expected"
            ) from None
    if len({question.id for question in questions}) < len(questions):
        raise DataFormatError(f"{place}: a question_id occurs twice; answers could not be told apart")
    return questions


if __name__ == "__main__":
    main()
