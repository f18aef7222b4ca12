"""Atomic files, and JSON lines with a possibly torn last line: the only module that writes and reads them."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.errors import InputError


def user_path(text: str) -> Path:
    """Expand `~` in a path; if there is no such home, the path stays as it is and does not exist."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises where there is no home)


def text_of(path: Path, *, most_bytes: int, give: str) -> str:
    """Return the text of a file that a user named. Raises InputError, with what to give instead."""
    try:
        if path.stat().st_size > most_bytes:
            raise InputError(f"{path} is larger than {most_bytes >> 20} MiB: {give}")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): {give}") from error


def content(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, also for a pipe or a device, which may have no end."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(found):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers never see half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(encoded(text))
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # the error of a full disk has no file name
        raise


def encoded(text: str) -> bytes:
    """Return the bytes of a text: names of files that are no UTF-8 as they are, and of what no file has a "?"."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


@contextmanager
def written_as(path: Path, key: str) -> Iterator[None]:
    """Make the folder of a file that the user named by `key`, for the block to write; InputError if that fails."""
    if not path.name or path.is_dir():
        raise InputError(f"cannot write {path} (it is a folder): choose another with {key}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): choose another with {key}") from error


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """If the block fails, restore these small files; an interrupt does not restore them."""
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        yield
    except Exception:
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        raise


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """`write_text` of one JSON document."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read the JSON object in a file; raises InputError, ending with `remedy`, if there is none."""
    try:
        data = json.loads(content(path))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): {remedy}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} does not contain a JSON object: {remedy}")
    return data


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Append one JSON line by a single write, so that lines of several writers do not interleave.

    If the last line is torn (its writer was killed), end it first, so that it does not spoil the new one.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, ("\n" * torn + json.dumps(data) + "\n").encode())
    finally:
        os.close(fd)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file of JSON lines; nothing if the file does not exist.

    Lines that are not objects are skipped: a writer may be in the middle of the last, or was killed there.
    """
    try:
        text = content(path).decode(errors="replace")
    except FileNotFoundError:
        return
    yield from json_objects(text)


def read_new_lines(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines after byte `position`, as `read_lines` gives them, and the position after the last of them."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except FileNotFoundError:
        return [], position
    whole = data[: data.rfind(b"\n") + 1]
    return list(json_objects(whole.decode(errors="replace"))), position + len(whole)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among the lines of a text; other lines are passed over."""
    for line in text.split("\n"):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def tail(path: Path, *, num_lines: int, max_bytes: int = 65536) -> list[str]:
    """Return the last lines of a log without reading all of it; empty if there is none."""
    if not path.is_file():  # a pipe or a device may have no end
        return []
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-num_lines:]
