"""Real ranks for tests: fork N processes that join one gloo group, run a function in each, return what they return."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor.parallel

from launcher.cluster import Cluster, Gpu, Node
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.model import Model, Training
from launcher.planner.record import Plan, RunOptions
from launcher.worker.parallel.worlds import Worlds

torch.set_num_threads(1)  # a parent that computed with more could leave a forked rank hanging

STACKS_S = 20.0  # what busy ranks may take to write where they are

TINY = Model(
    "tiny",
    hidden=32,
    layers=4,
    heads=4,
    kv_heads=4,
    ffn_hidden=64,
    gated_mlp=False,
    vocab=67,
    seq_len=16,
    tied_embeddings=True,
)
SHALLOW = replace(TINY, layers=2)  # half the collectives, where no layout divides four layers
LLAMA = Model(
    "tiny_llama", hidden=32, layers=4, heads=4, kv_heads=2, ffn_hidden=48, gated_mlp=True, vocab=64, seq_len=16,
    tied_embeddings=False, norm="rmsnorm", positions="rotary", bias=False,
)  # fmt: skip


def cpu_cluster(num_gpus: int, *, num_nodes: int = 1, domain: int | None = None) -> Cluster:
    size = domain or num_gpus
    domains = tuple(tuple(range(i, i + size)) for i in range(0, num_gpus, size))
    gpu = Gpu(name="cpu", kind="cpu", memory_bytes=2 * 2**30, hbm_bytes_per_s=1e10, num_sms=1)
    return Cluster("cpu", num_nodes, node=Node(gpu, num_gpus, domains=domains, nvlink="nvswitch"))


def make_plan(layout: Layout, *, model: Model = TINY, options: RunOptions | None = None, **training: Any) -> Plan:
    settings = Training(**{"global_batch": 8, "dtype": "fp32", **training})
    job = Job(cpu_cluster(layout.world_size), model, settings)
    return Plan(job, layout, {"step_time_s": 1.0}, (), options or RunOptions())


def run_ranks(world_size: int, body: Callable[[int], Any], *, timeout_s: float = 240.0) -> list[Any]:
    """body(rank) in `world_size` forked processes with a gloo group; its JSON-able results in rank order.

    A rank that fails fails the test with its traceback; no process is left behind.
    """
    return [found["body"] for found in run_each(world_size, {"body": body}, timeout_s=timeout_s)]


def run_each(
    world_size: int, bodies: Mapping[str, Callable[[int], Any]], *, timeout_s: float = 240.0
) -> list[dict[str, Any]]:
    """As `run_ranks` for many bodies, one after the other in the same processes, each with groups of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        # Ranks must not collect what this process has left: a store that waits for its thread, which no child has.
        gc.freeze()
        children = [_fork(rank, world_size, store, bodies) for rank in range(world_size)]
        gc.unfreeze()
        try:
            return _collect(children, time.monotonic() + timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {_stacks([pid for pid, _ in children], Path(folder))}") from None
        finally:
            for pid, pipe in children:
                os.close(pipe)
                _end(pid)


def _fork(rank: int, world_size: int, store: Path, bodies: Mapping[str, Callable[[int], Any]]) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    code = 1
    try:
        gc.disable()  # each world ends with a collection
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, (store.parent / f"{os.getpid()}.stacks").open("w"))
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
        worlds = Worlds(dist.FileStore(str(store), world_size), rank, world_size, "gloo", timedelta(minutes=30))
        answer: dict[str, Any] = {"result": {name: _in_world(worlds, name, body) for name, body in bodies.items()}}
        code = 0
    except BaseException:
        answer = {"error": f"rank {rank}: {traceback.format_exc()}"}
    with os.fdopen(writer, "w") as pipe:
        json.dump(answer, pipe)
    os._exit(code)


def _in_world(worlds: Worlds, name: str, body: Callable[[int], Any]) -> Any:
    with worlds.world(name):
        found = body(worlds.rank)
        if dist.is_initialized():  # which a body may end itself
            dist.barrier()
    return found


def _stacks(pids: list[int], folder: Path) -> str:
    """Where every thread of these ranks is: it is all that tells a hang from a slow machine."""
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    files, before, end = [folder / f"{pid}.stacks" for pid in pids], [-1], time.monotonic() + STACKS_S
    while (sizes := [f.stat().st_size if f.exists() else 0 for f in files]) != before or not all(sizes):
        if time.monotonic() > end:
            break
        before = sizes
        time.sleep(0.5)  # without a word more, they are whole
    return "\n".join(f"rank {r}:\n{file.read_text() if file.exists() else None}" for r, file in enumerate(files))


def _collect(children: list[tuple[int, int]], deadline: float) -> list[Any]:
    texts = {pipe: b"" for _, pipe in children}
    waiting = set(texts)
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"{len(waiting)} of {len(children)} ranks did not answer in time")
        for pipe in ready:
            chunk = os.read(pipe, 1 << 16)
            texts[pipe] += chunk
            if not chunk:
                waiting.discard(pipe)
                answer = json.loads(texts[pipe] or b'{"error": "a rank died without output"}')
                if "error" in answer:
                    raise AssertionError(answer["error"])
    return [json.loads(texts[pipe])["result"] for _, pipe in children]


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    os.waitpid(pid, 0)
