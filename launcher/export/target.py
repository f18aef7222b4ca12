"""The definition of an export: files in another tool's terms, and what that tool cannot express."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from launcher.export.model_habits import any_program
from launcher.layout import Layout
from launcher.layout.job import Job
from launcher.planner.habits import Setup, Table
from launcher.planner.record import Plan

Cannot = Callable[[Job, Layout], Iterator[str]]


def _always(job: Job) -> bool:
    return True


@dataclass(frozen=True, repr=False)
class Export:
    """A plan in a tool's terms.

    `main` names the file that is printed where no folder is asked for; `files` are texts by name. `missing` says what
    the plan has and the tool has no words for, one sentence each. `start` is the line that starts every node.
    """

    main: str
    files: Mapping[str, str]
    missing: tuple[str, ...] = ()
    start: str = "bash start.sh"

    def __repr__(self) -> str:
        return f"<Export {', '.join(self.files)}; not expressed: {len(self.missing)}>"


@dataclass(frozen=True)
class Target:
    """A tool that plans are written for.

    `cannot` gives every reason why the tool cannot run a layout: the search leaves those layouts out. `pins` are the
    layout keys with only one possible value in the tool: the search does not try others. `overrides` name
    the software that trains there, which a plan is made for unless its user names another.
    `habits` has the tool's options for the keys of `stack`, and why it has none. `profiles` name the stacks that the
    tool is; none: it starts any program.
    `offloads`: whether it can have the optimizer, and no more, on the host.
    `sources` say what the names were read from.
    """

    name: str
    tool: str
    sources: tuple[str, ...]
    write: Callable[[Plan], Export]
    cannot: Cannot
    pins: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    overrides: tuple[str, ...] = ()
    habits: Callable[[Setup], Table] = any_program
    profiles: tuple[str, ...] = ()
    offloads: Callable[[Job], bool] = _always
