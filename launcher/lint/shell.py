"""Enough of a shell reader to find the commands of a batch script: words, quotes, continuations, here-documents.

It splits; it does not execute. What it cannot follow (loops, functions, `eval`) it passes over as plain commands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPERATORS = ("&&", "||", ";;", ";", "|", "&", "\n")
KEYWORDS = frozenset(
    ["if", "then", "else", "elif", "do", "while", "until", "time", "!", "{", "(", "exec", "nohup", "command", "builtin"]
)
DECLARATIONS = ("export", "declare", "local", "readonly", "typeset")
ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)(?P<plus>\+?)=(?P<value>.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)[^}]*\}|(?P<plain>\w+))")
_PLAIN = re.compile(r"[\w./:,+@%^~*?!#-]+")  # what means nothing to a shell in the middle of a word
_UNQUOTED = re.compile(r"[^\\'\"]+")
MAX_EXPANSION = 4  # variables inside variables
LONGEST_EXPANSION = 20_000  # characters of a command with its variables put in
DEEPEST = 40  # nested substitutions; deeper ones are read as plain characters


@dataclass(frozen=True)
class ShellCommand:
    """One simple command: its line, raw words (quotes kept), and the operator that follows it."""

    line: int
    words: tuple[str, ...]
    operator: str = "\n"

    @property
    def text(self) -> str:
        return " ".join(self.words)


def commands(text: str) -> list[ShellCommand]:
    """The simple commands of a script, in order."""
    return _Reader(text).read()


def here_document_lines(text: str) -> frozenset[int]:
    """The lines of a script that are text of here-documents."""
    reader = _Reader(text)
    reader.read()
    return frozenset(reader.here_lines)


class _Reader:
    """A cursor over the text; each method consumes one thing."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.found: list[ShellCommand] = []
        self.words: list[str] = []
        self.first_line = 1
        self.here_documents: list[str] = []
        self.here_lines: set[int] = set()

    def read(self) -> list[ShellCommand]:
        while self.at < len(self.text):
            if not (self._blank() or self._comment() or self._operator()):
                self._word()
        self._finish("\n")
        return self.found

    def _take(self, count: int) -> str:
        piece = self.text[self.at : self.at + count]
        self.at += count
        self.line += piece.count("\n")
        return piece

    def _blank(self) -> bool:
        if self.text.startswith("\\\n", self.at):
            self._take(2)
        elif self.text[self.at] in " \t\r":
            self._take(1)
        else:
            return False
        return True

    def _comment(self) -> bool:
        if self.text[self.at] != "#":
            return False
        end = self.text.find("\n", self.at)
        self._take((end if end >= 0 else len(self.text)) - self.at)
        return True

    def _operator(self) -> bool:
        operator = next((op for op in OPERATORS if self.text.startswith(op, self.at)), None)
        if operator is None or (operator == "&" and self.text.startswith("&>", self.at)):
            return False
        self._take(len(operator))
        self._finish(operator)
        if operator == "\n":
            self._skip_here_documents()
        return True

    def _finish(self, operator: str) -> None:
        if self.words:
            self.found.append(ShellCommand(self.first_line, tuple(self.words), operator))
        self.words = []

    def _word(self) -> None:
        if not self.words:
            self.first_line = self.line
        start = self.at
        if self.text[self.at] in "()":
            self._take(1)
        while self.at < len(self.text) and self.text[self.at] not in " \t\r\n;|)":
            if self.text[self.at] == "&" and self.text[self.at - 1] != ">" and not self.text.startswith("&>", self.at):
                break
            self._take(_span(self.text, self.at))
        word = self.text[start : self.at]
        here = re.match(r"\d*<<-?(?P<tag>.*)", word, re.DOTALL)
        if here and not word.startswith("<<<"):
            self.here_documents.append(here["tag"].strip("'\"\\"))
        self.words.append(word)

    def _skip_here_documents(self) -> None:
        for tag in self.here_documents:
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                self.here_lines.add(self.line)
                line = self._take((end + 1 if end >= 0 else len(self.text)) - self.at)
                if line.strip() == tag:
                    break
        self.here_documents = []


def _span(text: str, at: int, depth: int = 0) -> int:
    """Length of what belongs together at `at`: a quoted string, `$(…)`, an array, an escape, or one character."""
    character = text[at]
    if character == "\\":
        return min(2, len(text) - at)
    if character == "'":
        return _until(text, at + 1, "'") - at
    if character == '"':
        return _double_quoted(text, at, depth) - at
    if character == "`":
        return _until(text, at + 1, "`") - at
    if text.startswith("$(", at) or (character == "(" and at and text[at - 1] == "="):
        return _balanced(text, text.index("(", at), depth + 1) - at if depth < DEEPEST else 1
    if text.startswith("${", at):
        return _braced(text, at, depth + 1) - at if depth < DEEPEST else _until(text, at, "}") - at
    plain = _PLAIN.match(text, at)
    return plain.end() - at if plain else 1


def _until(text: str, at: int, end: str) -> int:
    found = text.find(end, at)
    return len(text) if found < 0 else found + 1


def _braced(text: str, at: int, depth: int) -> int:
    """The position after the `}` that closes the `${` at `at`; a default value may have quotes and commands."""
    at += 2
    while at < len(text) and text[at] != "}":
        at += _span(text, at, depth) if text[at] in "\\'\"`$" else 1
    return min(at + 1, len(text))


def _double_quoted(text: str, at: int, depth: int) -> int:
    at += 1
    while at < len(text) and text[at] != '"':
        at += _span(text, at, depth) if text[at] in "\\`" or text.startswith("$(", at) else 1
    return min(at + 1, len(text))


def _balanced(text: str, at: int, depth: int) -> int:
    """The position after the `)` that closes the `(` at `at`."""
    at += 1
    while at < len(text) and text[at] != ")":
        if text[at] == "#" and text[at - 1].isspace():  # a comment has no quotes and no brackets
            end = text.find("\n", at)
            at = end if end >= 0 else len(text)
            continue
        nested = text[at] == "(" and depth < DEEPEST
        at = _balanced(text, at, depth + 1) if nested else at + _span(text, at, depth)
    return min(at + 1, len(text))


def live_variables(word: str) -> list[str]:
    """Names of the variables that the shell reading `word` expands itself: not in single quotes, not escaped."""
    visible, at = [], 0
    in_double = False
    while at < len(word):
        if word[at] == '"':
            in_double = not in_double
        elif word[at] == "\\" or (word[at] == "'" and not in_double):
            at += _span(word, at)
            continue
        visible.append(word[at])
        at += 1
    return [m["braced"] or m["plain"] for m in VARIABLE.finditer("".join(visible))]


def unquote(word: str) -> str:
    """Return a word without its quotes, as the command sees it; variables are not expanded."""
    pieces, at = [], 0
    while at < len(word):
        unquoted = _UNQUOTED.match(word, at)
        span = unquoted.end() - at if unquoted else _span(word, at)
        piece = word[at : at + span]
        if span > 1 and piece[0] in "'\"":
            piece = piece[1:-1] if piece[0] == "'" else re.sub(r'\\(["\\`$])', r"\1", piece[1:-1])
        elif piece[0] == "\\":
            piece = piece[1:].replace("\n", "")
        pieces.append(piece)
        at += span
    return "".join(pieces)


def assignments(command: ShellCommand) -> dict[str, str]:
    """Variables that a command sets: `A=1 B=2`, `export A=1`, `A=1 program` (raw values, quotes kept)."""
    words = [word for word in command.words if word not in KEYWORDS]
    if words and words[0] in DECLARATIONS:
        words = [word for word in words[1:] if not word.startswith("-")]
    found = {}
    for word in words:
        match = ASSIGNMENT.fullmatch(word)
        if not match:
            break
        found[match["name"]] = match["value"]
    return found


def program(command: ShellCommand) -> tuple[str, ...]:
    """The words of a command from its program on: keywords, assignments and `env` before it taken away."""
    words = list(command.words)
    while words and (words[0] in KEYWORDS or ASSIGNMENT.fullmatch(words[0]) or words[0] in ("env", "(", ")")):
        words.pop(0)
    return tuple(words)


def expand(text: str, variables: dict[str, str]) -> str:
    """`text` with the script's own variables put in; those that only Slurm or the shell knows stay as written."""

    left = LONGEST_EXPANSION - len(text)

    def value(match: re.Match[str]) -> str:
        nonlocal left
        raw = variables.get(match["braced"] or match["plain"])
        if raw is None or len(raw) > left:
            return match[0]
        left -= len(raw)
        return raw[1:-1] if raw.startswith("(") else unquote(raw)

    for _ in range(MAX_EXPANSION):
        replaced = VARIABLE.sub(value, text)
        if replaced == text:
            break
        text = replaced
    return text
