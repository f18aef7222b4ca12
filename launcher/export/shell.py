"""What a shell script starts, with its variables put in. It is never run: what a command would print is unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from launcher.export.shell_words import UNKNOWN, Values, substituted
from launcher.lint.script import PRINTERS, BatchScript
from launcher.lint.shell import ASSIGNMENT, DECLARATIONS, ShellCommand, commands, unquote
from launcher.text import whole_number

COMMENT_LINE = re.compile(r"(?m)^[ \t]*#.*$|[ \t]#[^\n'\"]*\\$")  # also one that ends with a backslash
PASSED_OVER = frozenset({"then", "do", "{", "}", "time", "!", "exec", "eval", "command", "nohup", "function"})
MOST_WORDS = 20_000
POSITIONAL = re.compile(r"\$[\d@*]")
REDIRECTION = re.compile(r"\d?(?:&>>?|>>?&?|<)")
Truth = bool | None  # None: a condition that is not known here
Test = Callable[[str, str], Truth]


@dataclass
class _Branch:
    """One `if`, loop or `case` that is open: whether its present part is taken, and whether an earlier one was."""

    taken: Truth
    done: Truth
    subject: str | None = None


@dataclass
class Script:
    """Commands of a script as words, and the values of its variables; `either`: those of conditions not known here."""

    programs: list[list[str]] = field(default_factory=list)
    values: Values = field(default_factory=dict)
    either: dict[str, list[str]] = field(default_factory=dict)
    nodes: int | None = None
    gpus: int | None = None


def read_script(text: str) -> Script:
    """The commands of a script, in order, as they would be started."""
    batch = BatchScript(text)
    script = Script(nodes=batch.num_nodes, gpus=batch.gpus_per_node or batch.tasks_per_node())
    script.values |= _of_slurm(script)
    reader = _Reader(script)
    for command in commands(COMMENT_LINE.sub("", batch.text).replace("\\\n", " ")):
        reader.take(command)
    return script


def _of_slurm(script: Script) -> Values:
    """Variables that Slurm sets by the script's own directives."""
    nodes, gpus = script.nodes, script.gpus
    found = {
        **dict.fromkeys(("SLURM_NNODES", "SLURM_JOB_NUM_NODES"), nodes),
        **dict.fromkeys(("SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"), gpus),
    }
    return {name: str(value) for name, value in found.items() if value}


class _Reader:
    """Follows assignments and conditions."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.branches: list[_Branch] = []
        self.after: Truth = True  # of a command after && or ||
        self.joined = False  # whether such a command follows

    def take(self, command: ShellCommand) -> None:
        self.joined = command.operator in ("&&", "||")
        words = self._structure(list(command.words))
        after, self.after = self.after, True
        taken = self._taken(after)
        if words and words[0] in ("[", "[[", "test"):
            known = self._condition(words)
            self.after = {"&&": known, "||": None if known is None else not known}.get(command.operator, True)
            return
        if words and taken is not False:
            self._run(words, sure=taken is True)

    def _taken(self, after: Truth = True) -> Truth:
        parts = [branch.taken for branch in self.branches] + [after]
        return False if False in parts else None if None in parts else True

    def _structure(self, words: list[str]) -> list[str]:
        """The words after keywords; they open, change and close branches."""
        while words:
            word = words[0]
            if self.branches and self.branches[-1].subject is not None and ")" in words[:8] and word != "esac":
                words = self._pattern(words)
            elif word in ("if", "elif", "else", "fi", "while", "until", "for", "done", "case", "esac"):
                words = self._keyword(word, words[1:])
            elif word in PASSED_OVER or word in ("(", ")") or word.endswith("("):
                words = words[1:]
            else:
                return words
        return words

    def _keyword(self, word: str, rest: list[str]) -> list[str]:
        if word in ("fi", "done", "esac"):
            if self.branches:
                self.branches.pop()
            return rest
        if word == "else":
            if self.branches:
                self._next(True)
            return rest
        if word == "elif":
            if self.branches:
                self._next(None if self.joined else self._condition(rest))
        elif word == "for":
            self._loop(rest)
        elif word == "case":
            subject = self._value(rest[0]) if rest else ""
            self.branches.append(_Branch(taken=False, done=False, subject=subject))
        else:
            known = self._condition(rest) if word == "if" and not self.joined else None
            self.branches.append(_Branch(taken=known, done=known))
        return []

    def _next(self, holds: Truth) -> None:
        """Another part of an `if`: taken if it holds and no earlier one was."""
        branch = self.branches[-1]
        if branch.done is True or holds is False:
            branch.taken = False
            return
        branch.taken = None if None in (branch.done, holds) else True
        branch.done = True if branch.taken else None

    def _pattern(self, words: list[str]) -> list[str]:
        branch, end = self.branches[-1], words.index(")")
        patterns = [unquote(part) for word in words[:end] for part in word.split("|") if word != "("]
        known = branch.subject is not None and "$" not in branch.subject
        found = any(fnmatchcase(branch.subject or "", pattern) for pattern in patterns)
        self._next(found if known else None)
        return words[end + 1 :]

    def _loop(self, rest: list[str]) -> None:
        values = [part for word in rest[2:] for part in self._value(word).split()]
        if rest and rest[0].isidentifier():
            self.script.values.pop(rest[0], None)
            if len(values) == 1:
                self.script.values[rest[0]] = values[0]
        self.branches.append(_Branch(taken=True, done=True))

    def _condition(self, words: list[str]) -> Truth:
        inner = [self._value(word) for word in words if word not in ("[", "[[", "]", "]]", "test", "then")]
        if inner in (["true"], ["false"]):
            return inner == ["true"]
        if any("$" in word for word in inner) or len(inner) not in (2, 3):
            return None
        if len(inner) == 2:
            return {"-z": not inner[1], "-n": bool(inner[1])}.get(inner[0])
        test = TESTS.get(inner[1])
        return test(inner[0], inner[2]) if test else None

    def _value(self, word: str) -> str:
        if word.startswith("("):
            inner = [part for command in commands(word[1:].removesuffix(")")) for part in command.words]
            return " ".join(self._value(part) for part in inner[:MOST_WORDS])
        return substituted(unquote(word), self.script.values)

    def _run(self, words: list[str], *, sure: bool) -> None:
        if words[0] in DECLARATIONS:
            words = [word for word in words[1:] if not word.startswith("-")]
        while words and (match := ASSIGNMENT.fullmatch(words[0])):
            self._assign(match["name"], match["value"], more=bool(match["plus"]), sure=sure)
            words = words[1:]
        if words and words[0] == ":":  # : ${TP:=8}
            for word in words[1:]:
                self._value(word)
        elif words and words[0] not in PRINTERS and sum(map(len, self.script.programs)) < MOST_WORDS:
            found = [part for word in words for part in self._value(word).split()]
            self.script.programs.append(_without_redirections(found[:MOST_WORDS]))

    def _assign(self, name: str, raw: str, *, more: bool, sure: bool) -> None:
        values, before = self.script.values, self.script.values.get(name)
        found = self._value(raw)
        if more and before is not None:
            found = before + (" " if raw.startswith("(") else "") + found
        if sure:
            self.script.either.pop(name, None)
        elif before is not None and POSITIONAL.search(found):
            return  # a default that an argument of the script may change
        elif not more and self._differs(name, before, found):
            values.pop(name, None)
            return
        values[name] = found

    def _differs(self, name: str, before: str | None, found: str) -> bool:
        """Whether conditions that are not known give a variable several values; of flags the last ones are taken."""
        seen = self.script.either.setdefault(name, [] if before is None else [before])
        seen.append(found)
        return len(set(seen)) > 1 and not any("--" in value for value in seen)


def _without_redirections(words: list[str]) -> list[str]:
    kept: list[str] = []
    after = False
    for word in words:
        match = REDIRECTION.match(word)
        if not match and not after:
            kept.append(word)
        after = bool(match) and match.end() == len(word)  # type: ignore[union-attr]
    return kept


def _numbers(test: Callable[[int, int], bool]) -> Test:
    def compare(left: str, right: str) -> Truth:
        numbers = whole_number(left), whole_number(right)
        return test(*numbers) if None not in numbers else None  # type: ignore[arg-type]

    return compare


TESTS: Mapping[str, Test] = {
    "=": lambda left, right: left == right,
    "==": fnmatchcase,
    "!=": lambda left, right: not fnmatchcase(left, right),
    "-eq": _numbers(lambda left, right: left == right),
    "-ne": _numbers(lambda left, right: left != right),
    "-gt": _numbers(lambda left, right: left > right),
    "-ge": _numbers(lambda left, right: left >= right),
    "-lt": _numbers(lambda left, right: left < right),
    "-le": _numbers(lambda left, right: left <= right),
}


def _only_arguments(program: list[str]) -> bool:
    """Whether words have no command: they begin with a flag, or with KEY=VALUE."""
    return bool(program) and (program[0].startswith("--") or "=" in program[0])


def programs_with(script: Script, known: Callable[[str], bool]) -> Iterator[list[str]]:
    """Commands with words that a reader knows; arguments of no command, and variables that none uses, as the last."""
    found = [program for program in script.programs if any(known(word) for word in program)]
    commands = [program for program in found if not _only_arguments(program)]
    if commands:
        yield from commands
        return
    loose = [word for program in script.programs if _only_arguments(program) for word in program]
    words = loose if found else [word for value in script.values.values() for word in value.split()]
    if any(known(word) for word in words):
        yield words


def conditional(script: Script, text: str) -> Iterator[str]:
    """Flags that a script sets by conditions that are not known here."""
    for name, values in script.either.items():
        flags = len(set(values)) > 1 and any("--" in value for value in values)
        if flags and re.search(rf"\$\{{?{re.escape(name)}\b", text):
            shown = " or ".join(dict.fromkeys(" ".join(value.split())[:60] or "nothing" for value in values))
            kept = " ".join(script.values.get(name, UNKNOWN).split())
            yield f"the condition that sets {name} to {shown}: {kept[:60] or 'nothing'} is taken"
