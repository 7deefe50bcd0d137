"""A chat server for tests, a process of its own: `chat_server.py LOG [--faults] [--delay SECONDS] [--refuse STATUS]`.

Speaks the part of OpenAI's protocol that the builder uses; prints its port. Its "language model" edits enumerations,
and cannot write the word "umbrella". With --faults a request fails or goes wrong the first time, in a way that follows
from its digest. Each request is appended to LOG.
"""

import argparse
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW = 2.0  # seconds, longer than the tests' timeout


def edit(messages: list[dict[str, str]]) -> str:
    request = messages[1]["content"]
    caption, names = (re.search(rf"^{field}: (.*)$", request, re.MULTILINE)[1] for field in ("Caption", "Objects"))
    objects = names.split("; ")
    if "None of these objects" in request:
        text = f"{caption} with {' and '.join(f'a {name}' for name in objects if name != 'umbrella')}"
    elif "neither names nor implies" in request:
        kept = [part for part in re.split(", | and ", caption) if not any(name in part for name in objects)]
        text = " and ".join(kept)
    else:
        text = f"{caption} drawn over {' and '.join(objects)}"
    earlier = re.search(r"^It must differ from: (.*)$", request, re.MULTILINE)
    return f"{text}, again {earlier[1].count(' / ') + 1}" if earlier else text


SEEN: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    in_flight = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        digest = hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
        with self.lock:
            Handler.in_flight += 1
            first = digest not in SEEN
            SEEN.add(digest)
            line = {"digest": digest, "in_flight": Handler.in_flight, "key": self.headers.get("Authorization")}
            with open(options.log, "a") as log:
                log.write(json.dumps({**line, "path": self.path, "model": body["model"]}) + "\n")
        time.sleep(options.delay)
        with self.lock:  # before the answer is out: the client may send the next request as soon as it has it
            Handler.in_flight -= 1
        fault = int(digest[:8], 16) % 12 if options.faults and first and len(body["messages"]) == 2 else 99
        self.answer(body, fault)

    def answer(self, body: dict, fault: int) -> None:
        text = edit(body["messages"])
        if options.refuse:
            return self.send(options.refuse, '{"error": {"message": "not for you"}}')
        if fault == 0:
            return self.send(429, '{"error": {"message": "slow down"}}', {"Retry-After": "0"})
        if fault == 1:
            return self.send(500, "oh dear")
        if fault == 2:
            return self.send(200, '{"choices": [{"mess')
        if fault == 3:
            return self.send(200, '{"error": "no model loaded"}')
        if fault == 4:
            time.sleep(SLOW)
        text = {
            5: f"Sure! Here is the caption you asked for:\n{text}",
            6: f'"{text}"',
            7: "",
            8: "a wall",
            9: f"<think>What would be fun?\nThis.</think>\n{text}",
        }.get(fault, text)
        message = {"role": "assistant", "content": text}
        self.send(200, json.dumps({"choices": [{"message": message}], "usage": {"total_tokens": 10}}))

    def send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        data = text.encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client did not wait
            pass

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--refuse", type=int, default=0)
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
