"""Many clients at once on `vlp app`: each steps through rows and moves the rule's threshold, like a fast reviewer.

    vlp app --tables web --port 7860 &
    python scripts/bench/app_clients.py http://127.0.0.1:7860/ $! --clients 50 --seconds 60

Prints failed events, the median and the 95th percentile of the seconds of an event, and the memory of the process in
MiB at the start, after a quarter of the time, and at the end.
"""

import argparse
import json
import random
import statistics
import threading
import time
import urllib.request
from typing import Any

import psutil


class Page:
    """The events of a page, from its configuration."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        with urllib.request.urlopen(f"{self.address}/config", timeout=60) as answer:
            config = json.load(answer)
        self.components = {one["id"]: one for one in config["components"]}
        self.events = config["dependencies"]

    def event(self, elem_id: str) -> dict[str, Any]:
        """The event of a component."""
        number = next(key for key, one in self.components.items() if one["props"].get("elem_id") == elem_id)
        return next(one for one in self.events if any(target[0] == number for target in one["targets"]))

    def values(self, event: dict[str, Any]) -> list[Any]:
        """The first values of an event's inputs."""
        return [self.components[one]["props"].get("value") for one in event["inputs"]]

    def call(self, event: dict[str, Any], values: list[Any], session: str) -> list[Any]:
        """Run an event through the queue; returns its outputs, or raises."""
        body = {"data": values, "fn_index": event["id"], "session_hash": session, "trigger_id": None}
        request = urllib.request.Request(
            f"{self.address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
        stream = f"{self.address}/gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(stream, timeout=60) as answer:
            for line in answer:
                message = json.loads(line[6:]) if line.startswith(b"data: ") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(message)
                    return message["output"]["data"]
        raise RuntimeError("The stream ended without a result.")


def review(page: Page, until: float, number: int, seconds: list[float], failures: list[str]) -> None:
    """One client."""
    rng, turn = random.Random(number), 0
    step, slider = page.event("vlp-next"), page.event("vlp-slider-itm")
    values = page.values(step)
    values[0] = f"{number}:-1:0"
    while time.monotonic() < until:
        start, turn = time.monotonic(), turn + 1
        try:
            if turn % 4:
                values[0] = page.call(step, values, f"{number}-{turn}")[3]
            else:
                page.call(slider, [round(rng.random(), 3), "itm >= 0.5"], f"{number}-{turn}")
        except Exception as error:
            failures.append(repr(error)[:200])
        seconds.append(time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("process", type=int)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    page, process = Page(given.address), psutil.Process(given.process)
    seconds: list[float] = []
    failures: list[str] = []
    memory = [process.memory_info().rss >> 20]
    until = time.monotonic() + given.seconds
    clients = [
        threading.Thread(target=review, args=(page, until, number, seconds, failures))
        for number in range(given.clients)
    ]
    for client in clients:
        client.start()
    time.sleep(given.seconds / 4)
    memory.append(process.memory_info().rss >> 20)
    for client in clients:
        client.join()
    memory.append(process.memory_info().rss >> 20)
    print(f"events      {len(seconds)}, {len(failures)} failed {failures[:1] or ''}")
    print(f"seconds     {statistics.median(seconds):.3f} median, {statistics.quantiles(seconds, n=20)[-1]:.3f} 95%")
    print(f"memory      {' -> '.join(map(str, memory))} MiB")


if __name__ == "__main__":
    main()
