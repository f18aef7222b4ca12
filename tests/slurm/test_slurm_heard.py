"""Which node a check blames, and when it blames none. The words of srun are recorded from Slurm 22.05."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from launcher.preflight.findings import Finding, Level, hosts_to_exclude
from launcher.slurm import nodecheck
from launcher.slurm.heard import Heard, HeardLine, judge, marked

HOSTS = ("node1", "node2", "node3")
BAD, GOOD = Level.PROBLEM, Level.OK


def report(task: int, host: str, *findings: Finding, at: float = 0.0, came: float = 0.0) -> HeardLine:
    found = [Finding(f.level, f.check, f.message, host) for f in findings]
    return HeardLine(f"{task}: {marked(host, found, at=at)}", came)


def fine(*tasks: int) -> tuple[HeardLine, ...]:
    return tuple(report(task, HOSTS[task], Finding(GOOD, "port", "free")) for task in tasks)


def problems(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.host, finding.message) for finding in found if finding.level is BAD]


def words(*lines: str) -> tuple[HeardLine, ...]:
    return tuple(HeardLine(line, 0.0) for line in lines)


def test_a_node_with_a_problem_of_its_own_is_named() -> None:
    sick = report(1, "node2", Finding(BAD, "gpu count", "7 GPUs, expected: 8"))
    assert hosts_to_exclude(judge(Heard((*fine(0, 2), sick), (), 0), HOSTS)) == ("node2",)


def test_one_problem_on_all_nodes_is_no_node_s() -> None:
    lines = [report(i, h, Finding(BAD, "gpu count", f"{h}: 4 GPUs, expected: 8")) for i, h in enumerate(HOSTS)]
    found = judge(Heard(tuple(lines), (), 0), HOSTS)
    [(host, message)] = problems(found)
    assert (host, hosts_to_exclude(found)) == ("", ())
    assert "all 3 nodes" in message


@pytest.mark.parametrize("hosts", [HOSTS, HOSTS[:1]])
def test_a_step_that_cannot_be_created_is_the_request_s(hosts: tuple[str, ...]) -> None:
    err = words("srun: error: Unable to create step for job 8: More processors requested than permitted")
    found = judge(Heard((), err, 1), hosts)
    [(host, message)] = problems(found)
    assert host == ""
    assert "More processors requested" in message


def test_a_silent_node_is_named_with_what_srun_says() -> None:
    err = words("srun: error: Task launch for StepId=9.0 failed on node node3: Communication connection failure")
    assert hosts_to_exclude(judge(Heard(fine(0, 1), err, 1), HOSTS)) == ("node3",)


MISSING = "slurmstepd-{0}: error: couldn't chdir to `/scratch/me': No such file or directory: going to /tmp instead"


def test_a_folder_that_one_node_does_not_see_is_that_node_s_mount() -> None:
    err = words(f"1: {MISSING.format('node2')}")
    found = judge(Heard(fine(0, 1, 2), err, 0), HOSTS)
    [(host, message)] = problems(found)
    assert host == "node2"
    assert "is it mounted?" in message


def test_a_folder_that_only_one_node_sees_is_not_shared_and_no_node_is_blamed() -> None:
    err = words(
        "1: /usr/bin/python3: can't open file '/tmp/x.py': [Errno 2] No such file or directory",
        "2: slurmstepd-node3: error: execve(): /tmp/venv/bin/python: No such file or directory",
        "srun: error: node[2-3]: tasks 1-2: Exited with exit code 2",
    )
    found = judge(Heard(fine(0), err, 2), HOSTS)
    [(host, message)] = problems(found)
    assert (host, hosts_to_exclude(found)) == ("", ())
    assert "not shared: only node1 sees it" in message


def test_a_complaint_of_a_node_that_could_report_is_no_missing_folder() -> None:
    err = words("1: warning: /etc/nothing: No such file or directory")
    assert problems(judge(Heard(fine(0, 1, 2), err, 0), HOSTS)) == []


def test_a_clock_that_is_off_is_reported_although_lines_come_late() -> None:
    delayed = [report(i, h, at=100.0, came=100.0 + delay) for i, h in enumerate(HOSTS) for delay in (30.0, 0.1)]
    assert judge(Heard((*fine(0, 1, 2), *delayed), (), 0), HOSTS)[-1].check == "port"
    ahead = [report(i, h, at=107.0 if h == "node3" else 100.0, came=100.1) for i, h in enumerate(HOSTS)]
    [clock] = [f for f in judge(Heard(tuple(ahead), (), 0), HOSTS) if f.check == "clock"]
    assert (clock.host, clock.level) == ("node3", Level.WARNING)
    assert "+7.0 s" in clock.message


def test_a_step_is_heard_line_by_line_with_the_time_of_each(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(
        "import sys, time\n"
        "from launcher.slurm.heard import marked\n"
        "for task, skew in enumerate((0.0, -60.0)):\n"
        "    print(f'{task}: ' + marked(f'node{task + 1}', (), at=time.time() + skew), flush=True)\n"
        "print('x' * 200_000, file=sys.stderr)\n"
    )
    heard = nodecheck._hear([sys.executable, str(script)], {"PYTHONPATH": ":".join(sys.path)}, ended=lambda: False)
    assert len(heard.err[0].text) <= nodecheck.LONGEST_LINE
    assert [(f.check, f.host) for f in judge(heard, HOSTS[:2]) if f.level is Level.WARNING] == [("clock", "node2")]


def test_a_step_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodecheck, "PREFLIGHT_LIMIT_S", 0.2)
    heard = nodecheck._hear(["sleep", "60"], {"PATH": "/bin:/usr/bin"}, ended=lambda: False)
    assert [line.text for line in heard.err] == ["it did not end within 0 s"]


def test_a_check_ends_with_its_job() -> None:
    asked = iter([False, True])
    heard = nodecheck._hear(["sleep", "600"], {"PATH": "/bin:/usr/bin"}, ended=lambda: next(asked))
    assert heard.code == -signal.SIGTERM
