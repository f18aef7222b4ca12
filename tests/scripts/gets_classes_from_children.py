"""Habit: objects of the script's own classes that come back from spawned and forkserver children and from pools."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sample:
    value: int
    module: str


def double(value: int) -> Sample:
    return Sample(2 * value, __name__)


def send(queue) -> None:
    queue.put(double(21))


def main() -> None:
    found = {}
    for method in ("spawn", "forkserver", "fork"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=send, args=(queue,))
        child.start()
        found[method] = queue.get().value
        child.join()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        back = pool.submit(double, 4).result()
        found["pool"] = [back.value, isinstance(back, Sample), type(back).__module__]
    Path(f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
