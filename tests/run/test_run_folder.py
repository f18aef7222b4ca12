"""Every name in a run folder is in one place, and what is in it is read as it was written, torn lines left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.files import append_line, read_json, read_lines, write_text
from launcher.run.checkpoints import committed_steps
from launcher.run.folder import RunFolder, SweepFolder
from launcher.run.ledger import JobEvent, Ledger, append_event, read_events, read_phases
from launcher.run.metrics import (
    MetricsFile,
    StepMetrics,
    describe_sample,
    read_steps,
    summarise_steps,
    with_earlier,
)
from launcher.run.node_state import NodeState, node_states

ROOT = Path(__file__).resolve().parents[2]
OWNERS = {"folder.py", "checkpoints.py"}  # in launcher/run
PREFIXES = r"(?:step-|rank-|node-|plan-round-|slurm-|\.saving-|\.deleting-)"


def names() -> set[str]:
    """Every file and folder name that a run's folder, or a sweep's, gives out as a property."""
    found = set()
    for folder in (RunFolder(Path("x")), SweepFolder(Path("x"))):
        kind = type(folder)
        values = [getattr(folder, name) for name in vars(kind) if isinstance(vars(kind)[name], property)]
        found |= {value.name for value in values}
    return found - {"config.yaml"}  # configs/ has one too


def literals(path: Path) -> Iterator[tuple[str, int]]:
    """String constants of a file that are no docstring; of an f-string its first piece."""
    tree = ast.parse(path.read_text())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value, node.lineno


def test_each_name_in_the_run_folder_is_written_once() -> None:
    folders = {"checkpoints", "code", "logs", "nodes", "spans"}
    words = folders | {"wandb", "tensorboard", "jsonl"}  # of messages, commands and choices
    wanted = names() - words  # paths of them are found below
    assert {"plan.json", "metrics.jsonl", "result.json", "ledger.jsonl", "setup.sh", "sweep.json"} <= wanted
    pattern = re.compile(
        rf"(?:^|/)(?:{'|'.join(map(re.escape, wanted))})$|(?:^|/){PREFIXES}(?:$|\*)|(?:^|/)(?:{'|'.join(folders)})/"
    )
    others = [p for room in ("launcher", "recipes") for p in (ROOT / room).rglob("*.py")]
    others = [p for p in others if not (p.parent.name == "run" and p.name in OWNERS)]
    found = [f"{p.relative_to(ROOT)}:{line}: {text}" for p in others for text, line in literals(p)
             if pattern.search(text)]  # fmt: skip
    assert found == []


def test_paths_are_joined_with_no_name_but_the_run_folders() -> None:
    """`folder / "checkpoints"` and its like: joined literals that are names in a run folder."""
    found = []
    for room in ("launcher", "recipes"):
        for path in (ROOT / room).rglob("*.py"):
            if path.parent.name == "run" and path.name in OWNERS:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.BinOp)
                    and isinstance(node.op, ast.Div)
                    and isinstance(node.right, ast.Constant)
                ):
                    found += [f"{path.name}:{node.lineno}"] if node.right.value in names() else []
    assert found == []


def test_the_batch_script_sources_the_run_folders_setup() -> None:
    assert f"$run_folder/{RunFolder(Path()).setup.name}" in (ROOT / "slurm" / "train.sbatch").read_text()


def test_a_step_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).metrics
    whole = StepMetrics(1, 2.5, 1.0, 1e-3, 0.2, 8192.0, 0.4, 2**30, {"data_s": 0.01}, {"validation_loss": 2.6})
    file = MetricsFile(path)
    file.log(whole)
    file.log(StepMetrics(2))
    file.close()
    assert read_steps(path) == [whole, StepMetrics(2)]


def test_steps_that_are_run_again_replace_their_lines_and_torn_ones_go(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).metrics
    first = MetricsFile(path)
    for step in range(1, 6):
        first.log(StepMetrics(step, loss=float(step)))
    first.close()
    path.write_text(path.read_text() + '{"step": 6, "lo')
    again = MetricsFile(path)
    again.log(StepMetrics(4, loss=40.0))
    again.close()
    assert [(line["step"], line["loss"]) for line in read_lines(path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_the_measured_time_leaves_the_first_steps_out_and_few_steps_count_all() -> None:
    seconds = [9.0, 8.0, 7.0, 1.0, 2.0, 3.0]
    steps = [StepMetrics(i + 1, step_s=s, memory_bytes=10 - i) for i, s in enumerate(seconds)]
    assert (summarise_steps(steps).step_s, summarise_steps(steps).memory_bytes) == (2.0, 10)
    assert summarise_steps(steps[:2]).step_s == 8.5
    assert summarise_steps([]).step_s is None
    assert describe_sample(steps) == "median after step 3"
    assert describe_sample(steps[:2]) == "median of 2 steps, warm-up included"


def test_each_start_of_a_resumed_run_has_a_warm_up(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).metrics
    starts = ([9.0, 8.0, 7.0, 1.0, 2.0], [9.0, 8.0, 7.0, 3.0], [9.0, 8.0])
    done = 0
    for seconds in starts:
        file, own = MetricsFile(path), []
        for step, step_s in enumerate(seconds, done + 1):
            own.append(StepMetrics(step, loss=1.0, step_s=step_s))
            file.log(own[-1])
        file.close()
        steps = read_steps(path)
        assert with_earlier(path, own) == steps  # a recipe's result is of the same steps
        done += len(seconds)
    assert summarise_steps(steps).step_s == 2.0
    assert describe_sample(steps) == "median without the first 3 steps of each start"
    assert [step.step for step in steps if step.first] == [6, 10]
    assert "first" not in steps[5].to_line()  # it is no metric
    (rerun := MetricsFile(path)).log(StepMetrics(8, step_s=6.0))
    rerun.close()
    assert [step.step for step in read_steps(path) if step.first] == [6, 8]


TORN = ['{"step": 3, "lo', "", "null", "[1, 2]", '{"step": "three"}', "\x00\x00\x00", "[" * 100_000]


@pytest.mark.parametrize("torn", TORN, ids=lambda text: text[:12])
def test_every_reader_of_lines_passes_over_what_is_torn(torn: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    metrics = MetricsFile(folder.metrics)
    metrics.log(StepMetrics(1, loss=1.0))
    metrics.close()
    Ledger(folder.ledger, node=0, began=0.0).note("met")
    append_event(folder.ledger, JobEvent("slurm_start", "17", 0.0))
    for path in (folder.metrics, folder.ledger):
        path.write_text(path.read_text() + torn)
    assert [step.step for step in read_steps(folder.metrics)] == [1]
    assert [line.phase for line in read_phases(folder.ledger)] == ["met"]
    assert [event.job_id for event in read_events(folder.ledger)] == ["17"]


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).ledger
    path.write_text('{"phase": "met", "no')
    append_line(path, {"n": 1})
    append_line(path, {"n": 2})
    assert list(read_lines(path)) == [{"n": 1}, {"n": 2}]


def test_what_an_agent_writes_is_what_status_reads(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.nodes.mkdir()
    states = [NodeState(n, f"n{n}", 10 + n, 1.5, "running", 1, 0, 7, "", "now", {n: 100 + n}) for n in range(11)]
    for state in reversed(states):
        state.write(folder)
    assert node_states(folder) == states


def test_only_committed_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step-00000007", "step-00000120", ".saving-step-00000200", ".deleting-step-00000003", "step-12"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000300").write_text("a file")
    assert committed_steps(tmp_path) == [120, 7]


@pytest.mark.parametrize(("text", "content"), [("é \udcff", b"\xc3\xa9 \xff"), ("\ud800 é", b"? \xc3\xa9")])
def test_a_file_takes_the_name_of_one_that_is_no_utf_8(text: str, content: bytes, tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", text)
    assert (tmp_path / "page.html").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_whole_or_absent_also_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()  # a folder in the file's place: the last step of writing fails
    with pytest.raises(OSError, match="folder"):
        write_text(path, "text")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_object_is_refused_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    from launcher.errors import InputError

    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="plan again"):
        read_json(tmp_path / "x", remedy="plan again")
