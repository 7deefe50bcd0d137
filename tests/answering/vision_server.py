"""A server that sees for tests, a process of its own: `vision_server.py LOG [--faults] [--refuse N] [--says JSON]`.

Speaks OpenAI's protocol; prints its port. Its answer is the colour of the image's first pixel and the last word of the
question, or what --says gives. With --faults every request fails the first time, in a way that follows from its digest.
Each is logged.
"""

import argparse
import base64
import hashlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

SEEN: set[str] = set()
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    in_flight = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        picture, question = body["messages"][0]["content"]
        with LOCK:
            Handler.in_flight += 1
            first = digest not in SEEN
            SEEN.add(digest)
            line = {"question": question["text"], "in_flight": Handler.in_flight, "path": self.path}
            with open(options.log, "a") as log:
                log.write(
                    json.dumps(line | {name: body[name] for name in ("model", "max_tokens", "temperature")}) + "\n"
                )
        time.sleep(0.02)
        with LOCK:
            Handler.in_flight -= 1
        if options.refuse:
            return self.send(options.refuse, "not for you")
        if options.faults and first:
            return self.send(*[(429, "slow down"), (500, "oh dear"), (200, '{"choices": [')][int(digest[:8], 16) % 3])
        head, _, data = picture["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        color = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((0, 0))
        text: str | None = f" {'red' if color == (255, 0, 0) else 'blue'} {question['text'].split()[-1]}\n"
        if options.says:
            text = json.loads(options.says)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.send(200, json.dumps({"choices": [choice]}))

    def send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--refuse", type=int, default=0)
    parser.add_argument("--says", default="")
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
