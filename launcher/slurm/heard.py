"""Evaluates the check of all nodes: findings by node, and faults of the request. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from launcher.cluster.hostlist import expand_hostlist
from launcher.errors import InputError
from launcher.preflight.findings import Finding, Level
from launcher.slurm.unstarted import unstarted
from launcher.text import printable

MARK = "launcher-preflight "
LONGEST_SAID = 240
LABEL = re.compile(r" *(\d+): (.*)", re.DOTALL)  # srun --label
# srun: error: node[2-3]: tasks 1-2: Exited with exit code 2
EXITED = re.compile(r"srun: error: (\S+): tasks? ([\d,\[\]-]+): ")
FOLDER, ANSWER = "shared folder", "answer"
NO_FOLDER = re.compile(r"couldn't chdir")
NOT_THERE = re.compile(
    r"couldn't chdir|execve\(\)|No such file or directory|can't open file|No module named|ModuleNotFoundError"
)
# srun's errors about the request, before it reached any node.
NO_STEP = re.compile(r"Unable to create step|Step requested|Unable to confirm allocation|Invalid .* specification")
CLOCK_SKEW_S = 2.0  # ours: far above the delay of a line through srun, far below what breaks Kerberos (5 min)


@dataclass(frozen=True)
class HeardLine:
    """A line of a step, and when it arrived (seconds since 1970, on the driver's clock)."""

    text: str
    at: float


@dataclass(frozen=True)
class Heard:
    """The output of the check step, and the exit code of srun."""

    out: tuple[HeardLine, ...]
    err: tuple[HeardLine, ...]
    code: int


@dataclass(frozen=True)
class NodeReport:
    """One of several lines of a node: its clock and findings. `task` is its number in the step."""

    task: str
    host: str
    at: float
    came: float
    findings: tuple[Finding, ...]


def marked(host: str, findings: Sequence[Finding], *, at: float) -> str:
    """Return the line that a node prints for the driver."""
    return MARK + json.dumps({"host": host, "at": at, "findings": [finding.to_dict() for finding in findings]})


def judge(heard: Heard, hosts: Sequence[str]) -> list[Finding]:
    """Return the findings of every host; the host is empty for findings that all hosts share."""
    reports = list(_reports(heard.out))
    found = [finding for report in reports for finding in report.findings]
    silent = [host for host in sorted(set(hosts)) if host not in {report.host for report in reports}]
    blind = _blind(_words(heard, {report.task: report.host for report in reports}), silent)
    found += _not_seen(blind, hosts)
    left = [host for host in silent if host not in blind]
    all_said = " ".join(line.text.strip() for line in heard.err if line.text.strip()) or f"exit code {heard.code}"
    said = printable(all_said, longest=LONGEST_SAID)
    failed = unstarted(line.text for line in heard.err if not LABEL.fullmatch(line.text))
    if failed and set(failed) < set(hosts):  # srun has then ended the others
        found += [Finding(Level.PROBLEM, ANSWER, f"none to srun ({why})", host) for host, why in failed.items()]
    elif left and (len(left) == len(hosts) > 1 or NO_STEP.search(all_said)):
        why = f"the step cannot start ({said}): change what the job asks for, this is not a fault of the nodes"
        found.append(Finding(Level.PROBLEM, "srun", why))
    else:
        found += [Finding(Level.PROBLEM, ANSWER, f"none to srun ({said})", host) for host in left]
    return [*_in_common(found, hosts), *_clock_findings(reports)]


def _reports(lines: Sequence[HeardLine]) -> Iterator[NodeReport]:
    """Yield what the nodes printed for the driver; skip other lines."""
    for task, line in _labelled(lines):
        if line.text.startswith(MARK):
            try:
                yield _report(task, line, json.loads(line.text.removeprefix(MARK)))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise InputError(f"a node's findings cannot be read ({line.text[:80]!r})") from error


def _report(task: str, line: HeardLine, document: Mapping[str, Any]) -> NodeReport:
    found = tuple(
        Finding(Level[item["level"].upper()], item["check"], item["message"], item["host"])
        for item in document["findings"]
    )
    return NodeReport(task, str(document["host"]), float(document["at"]), line.at, found)


def _labelled(lines: Sequence[HeardLine]) -> Iterator[tuple[str, HeardLine]]:
    for line in lines:
        if match := LABEL.fullmatch(line.text):
            yield match[1], replace(line, text=match[2])


def _words(heard: Heard, host_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Map hosts to the errors of their tasks."""
    hosts = dict(host_of)
    for line in heard.err:
        if match := EXITED.match(line.text):
            hosts.update(zip(_tasks(match[2]), expand_hostlist(match[1]), strict=False))
    words: dict[str, list[str]] = {}
    for task, line in _labelled(heard.err):
        words.setdefault(hosts.get(task, ""), []).append(line.text.strip())
    return words


def _tasks(expression: str) -> tuple[str, ...]:
    """Parse task numbers as srun writes them: 1, 0-2, 0,3-4."""
    return expand_hostlist(f"[{expression.strip('[]')}]")


def _blind(words: Mapping[str, Sequence[str]], silent: Sequence[str]) -> dict[str, str]:
    """Return hosts that lack a path, with the error. A host that could still report lacks the working folder."""
    found = {}
    for host, lines in words.items():
        sign = NOT_THERE if host in silent else NO_FOLDER
        if line := next((line for line in lines if sign.search(line)), None):
            found[host] = line
    return found


def _not_seen(blind: Mapping[str, str], hosts: Sequence[str]) -> list[Finding]:
    """Report a path that some nodes lack. If only one node has it, it is on that node's local disk."""
    if not blind:
        return []
    line = next(iter(blind.values()))
    seeing = [host for host in hosts if host not in blind]
    if len(seeing) > 1:
        why = f"not seen here, and seen on {len(seeing)} other nodes"
        return [Finding(Level.PROBLEM, FOLDER, f"{why} ({line}): is it mounted?", host) for host, line in blind.items()]
    where = f"only {seeing[0]} sees it" if seeing else "no node sees it"
    way_out = "put run folder, working folder, script and Python where all nodes see them"
    return [Finding(Level.PROBLEM, FOLDER, f"not shared: {where} ({line}); {way_out}")]


def _in_common(findings: Sequence[Finding], hosts: Sequence[str]) -> list[Finding]:
    """Return the findings, with problems that all hosts share merged into one without a host."""
    if len(set(hosts)) < 2:
        return list(findings)
    alike: dict[tuple[str, str], set[str]] = {}
    for finding in findings:
        if finding.level is Level.PROBLEM and finding.host:
            alike.setdefault(_kind(finding), set()).add(finding.host)
    common = {kind for kind, where in alike.items() if where >= set(hosts)}
    kept, named = [], set()
    for finding in findings:
        kind = _kind(finding)
        if finding.host == "" or finding.level is not Level.PROBLEM or kind not in common:
            kept.append(finding)
        elif kind not in named:
            named.add(kind)
            why = f"{finding.message}; all {len(hosts)} nodes say so: it is the job's request or its cluster file"
            kept.append(replace(finding, message=why, host=""))
    return kept


def _kind(finding: Finding) -> tuple[str, str]:
    """Return a finding without its node and serial numbers of devices, for comparison."""
    message = finding.message.replace(finding.host, "") if finding.host else finding.message
    return finding.check, re.sub(r"GPU-[\w-]+", "", message)


def _clock_findings(reports: Sequence[NodeReport]) -> list[Finding]:
    """Return a warning for each node with a clock that differs from the others', by the arrival of its lines.

    A line may be late but never early: the line with the least delay counts.
    """
    offsets: dict[str, float] = {}
    for report in reports:
        offsets[report.host] = max(offsets.get(report.host, float("-inf")), report.at - report.came)
    usual = median([*offsets.values(), 0.0])  # 0: the driver's own clock
    off = {host: offset - usual for host, offset in sorted(offsets.items()) if abs(offset - usual) > CLOCK_SKEW_S}
    return [
        Finding(Level.WARNING, "clock", f"{skew:+.1f} s off from the other nodes: repair its time service (NTP)", host)
        for host, skew in off.items()
    ]
