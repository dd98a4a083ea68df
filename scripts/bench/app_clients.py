"""Many visitors of the page at once: python scripts/bench/app_clients.py --demo demo

Starts `vlp app` with the arguments it is given. As browsers do, 50 clients search, re-rank, open images, caption, step
through rows and move the rule's threshold, in the tabs that the page has. They warm up for 15 seconds and then go on
for a minute (CLIENTS and SECONDS in the environment change that). Prints the number of events, the failures, the
seconds that an event took, and the memory of the server.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

PATIENCE = 300  # seconds that a busy server may take for an event
QUERIES = ("a red circle", "a large blue square above a green star", "two small yellow triangles", "a gray cross")


@dataclass
class Outcome:
    """What the clients saw; `seconds` of each event, `failures` as sentences, `memory` of the server in MiB."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


class Client:
    """One visitor, with a session of its own."""

    def __init__(self, address: str, outcome: Outcome):
        """Read the page's configuration as the browser does."""
        self.address, self.outcome, self.session = address, outcome, uuid4().hex
        self.config = json.loads(self._get("config").read())
        self.names = {
            one["props"].get("elem_id"): one["id"] for one in self.config["components"] if one["props"].get("elem_id")
        }

    def _get(self, path: str, data: bytes | None = None, kind: str = "application/json") -> Any:
        request = urllib.request.Request(self.address + path, data, {"Content-Type": kind})
        return urllib.request.urlopen(request, timeout=PATIENCE)

    def event(self, name: str, event: str, data: list[Any], event_data: Any = None) -> list[Any]:
        """Trigger an event of a component, by its elem_id, and those that follow it; returns the first one's output."""
        first = self._find(lambda one: [self.names[name], event] in one["targets"])
        made = self._run(first, data, event_data)
        for one in self.config["dependencies"]:
            if one.get("trigger_after") == first["id"] and one["backend_fn"]:
                self._run(one, [None] * len(one["inputs"]), None)
        return made

    def values(self, name: str, event: str) -> list[Any]:
        """The first values of an event's inputs."""
        first = self._find(lambda one: [self.names[name], event] in one["targets"])
        known = {one["id"]: one["props"].get("value") for one in self.config["components"]}
        return [known[number] for number in first["inputs"]]

    def _find(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return next(one for one in self.config["dependencies"] if fits(one))

    def _run(self, dependency: dict[str, Any], data: list[Any], event_data: Any) -> list[Any]:
        start = time.perf_counter()
        body = {"data": data, "fn_index": dependency["id"], "session_hash": self.session, "event_data": event_data}
        event_id = json.loads(self._get("gradio_api/queue/join", json.dumps(body).encode()).read())["event_id"]
        with self._get(f"gradio_api/queue/data?session_hash={self.session}") as stream:
            for line in stream:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if message.get("msg") == "process_completed" and message.get("event_id") == event_id:
                    if not message["success"]:
                        raise RuntimeError(str(message["output"]))
                    self.outcome.seconds.append(time.perf_counter() - start)
                    return message["output"]["data"]
        raise RuntimeError("the server ended the connection")

    def upload(self, name: str, picture: bytes) -> dict[str, Any]:
        """Send a file; returns what components take for it."""
        border = uuid4().hex
        head = f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + picture + f"\r\n--{border}--\r\n".encode()
        (path,) = json.loads(self._get("gradio_api/upload", body, f"multipart/form-data; boundary={border}").read())
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def visit(client: Client, number: int, picture: bytes) -> None:
    """One round of a visitor in the tabs that there are: search and open an image, caption an upload, review."""
    if "vlp-query" in client.names:
        shown = client.event("vlp-query", "submit", [QUERIES[number % len(QUERIES)], None, 12, 8 * (number % 4)])[0]
        found = re.search(r'data-number="(\d+)"', shown)
        if found is None:
            raise RuntimeError(shown)
        client.event("vlp-hits", "click", [], {"number": int(found[1])})
    if "vlp-caption" in client.names:
        client.event("vlp-try-file", "upload", [client.upload("picture.png", picture)])
        shown = client.event("vlp-caption", "click", [None, 3, 2, number % 10])[0]
        if "beam 1" not in shown or "sample 2" not in shown:
            raise RuntimeError(shown)
    if "vlp-next" in client.names:
        client.event("vlp-next", "click", [f"{number}:-1:0", *client.values("vlp-next", "click")[1:]])
        client.event("vlp-slider-itm", "input", [number % 100 / 100, "itm >= 0.5"])


def press(address: str, process: int, clients: int, seconds: float, picture: bytes) -> Outcome:
    """Let clients visit the page at once until the time is over, each at least once."""
    outcome, rounds, end = Outcome(), count(), time.monotonic() + seconds

    def work() -> None:
        try:
            client = Client(address, outcome)
            while True:
                visit(client, next(rounds), picture)
                if time.monotonic() > end:
                    break
        except Exception as error:
            outcome.failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        outcome.memory.append(memory_of(process))
        time.sleep(0.5)
    return outcome


def memory_of(process: int) -> float:
    """The resident memory of a process, in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Start the page, press it, and print what happened."""
    from vlp.demo.scenes import make_sample

    picture = make_sample(0, "human", 0.0, 64, 0)[0]
    command = [sys.executable, "-m", "vlp", "app", "--port", "0", *sys.argv[1:]]
    clients, seconds = int(os.environ.get("CLIENTS", "50")), float(os.environ.get("SECONDS", "60"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        try:
            warm = press(address, server.pid, clients, seconds / 4, picture)
            outcome = press(address, server.pid, clients, seconds, picture)
        finally:
            server.terminate()
    times, memory = sorted(outcome.seconds), outcome.memory
    values = {
        "clients": clients,
        "events": len(times),
        "failures": len(warm.failures + outcome.failures),
        "first_failures": (warm.failures + outcome.failures)[:3],
        "median_seconds": times[len(times) // 2],
        "p95_seconds": times[int(0.95 * len(times))],
        "memory_mib": {"after_warmup": memory[0], "middle": memory[len(memory) // 2], "end": memory[-1]},
    }
    print(json.dumps(values, indent=2))


if __name__ == "__main__":
    main()
