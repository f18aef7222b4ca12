"""Readers of what users bring: other tools' files, measurements, hosts; and of what one part of a run sends another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from shapes import cluster, job, model

from launcher.cluster.readers_nccl_tests import read_nccl_tests
from launcher.config.hf import expanded
from launcher.export.readers import read_from
from launcher.export.targets import target
from launcher.layout import Layout
from launcher.planner import Plan
from launcher.rendezvous.messages import Begin, Join, MessageError, decode
from launcher.slurm import jobstate
from launcher.slurm.command import Answer
from launcher.slurm.unstarted import in_words, unstarted
from launcher.ssh.hosts import parse_host, read_hostfile
from tests.cluster.test_calibration import HEAD, RECORDED, devices

# https://huggingface.co/meta-llama/Llama-3.2-1B, config.json
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "rope_scaling": {"factor": 32.0, "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "vocab_size": 128256,
}  # fmt: skip
HOSTFILE = "# two nodes\nnode1 slots=8\nme@node2:4\nnode3 port=2222 user=you max_slots=8\n"
STEP_WORDS = (
    "srun: error: Task launch for StepId=1.0 failed on node fa2: Job credential expired\n"
    "slurmstepd-fa3: error: execve(): /opt/python: No such file or directory\n"
)
JOB_RECORD = "JobId=7 JobName=x Partition=debug NumNodes=2-2 ReqNodeList=(null) ExcNodeList=n[1-2] Features=(null)\n"
JOIN = '{"op": "join", "node": 1, "host": "node2", "round": 0}\n'
BEGIN = '{"op": "begin", "round": 1, "rank": 0, "world": 2, "store_port": 29500, "absent": [3], "moved": {"1": "n9"}}\n'


def sources() -> Iterator[tuple[str, tuple[str, ...], Callable[[str, Path], object], bool]]:
    """Name, texts, reader, and whether it is JSON, of each."""
    nccl = (RECORDED, HEAD.format(name="all_gather_perf", devices=devices(["node1"] * 8)) + RECORDED)
    yield "nccl-tests", nccl, lambda text, _: read_nccl_tests(text, "out.txt"), False
    for tool, text in _exported().items():
        yield f"from {tool}", (text,), _from, text.startswith("{")
    yield "hf config", (json.dumps(HF_CONFIG),), _hf_config, True
    yield "hostfile", (HOSTFILE,), lambda text, _: read_hostfile(text, name="hosts"), False
    yield "host", ("me@node1:8", "[::1]:4", "fe80::1"), _host, False
    yield "words of a step", (STEP_WORDS,), _words_of_a_step, False
    yield "job to exclude from", (JOB_RECORD,), _exclude, False
    yield "message", (JOIN, BEGIN), _message, True


def _exported() -> dict[str, str]:
    """What our exports of one plan are, by tool."""
    plan = Plan(job(on=cluster(nodes=2), of=model(), global_batch=64), Layout(tp=1, pp=1, dp=16, zero_stage=2), {}, ())
    found = {}
    for tool, name in {"deepspeed": "ds_config.json", "accelerate": "accelerate.yaml"}.items():
        found[tool] = dict(target(tool).write(plan).files)[name]
    plain = Plan(plan.job, Layout(tp=8, pp=1, dp=2), {}, ())
    found["megatron"] = dict(target("megatron").write(plain).files)["start.sh"]
    flags = dict(target("torchtitan").write(plain).files)["torchtitan_flags.txt"]
    found["torchtitan"] = "torchrun -m torchtitan.train " + flags
    return found


def _from(text: str, folder: Path) -> object:
    file = folder / "from"
    file.write_bytes(text.encode(errors="surrogatepass"))
    return read_from(file).overrides()


def _hf_config(text: str, folder: Path) -> object:
    file = folder / "config.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    return expanded([f"model=hf:{file}"])


def _host(text: str, folder: Path) -> object:
    try:
        return parse_host(text)
    except ValueError as error:  # which the reader of the key makes an InputError of
        assert len(str(error)) < 10**6
        return None


def _words_of_a_step(text: str, folder: Path) -> None:
    if found := unstarted(text.splitlines()):
        assert all(why.isprintable() for why in found.values())
        in_words(found)


def _exclude(text: str, folder: Path) -> None:
    said: list[str] = []
    with mock.patch.object(jobstate, "ask", lambda argv: Answer(0, text, "")):
        jobstate.requeue("7", without=("n3",), notify=said.append)
    assert len(said) == 1


def _message(text: str, folder: Path) -> None:
    try:
        message = decode(text.encode(errors="surrogatepass"))
        _ = Join.from_message(message), Begin.from_message(message)
    except MessageError:
        return
