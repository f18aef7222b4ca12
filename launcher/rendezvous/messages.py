"""Messages between agents and their coordinator: one JSON object per line, with every field checked.

An invalid message raises MessageError even if the sender has the job's secret: another version of the launcher could
have sent it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_LINE_BYTES = 1 << 18
MAX_REASON = 8192
MAX_NAME = 255
MAX_INTEGER = 2**53  # beyond it JSON numbers are not exact everywhere
Message = dict[str, Any]


class MessageError(ValueError):
    """A message that neither our agents nor our coordinator sends."""


@dataclass(frozen=True)
class Join:
    """A request to join the next round, as `node` of the plan or as a spare (None).

    `round`: the newest round that the agent knows.
    """

    node: int | None
    host: str
    round: int = 0

    @classmethod
    def from_message(cls, message: Message) -> Join:
        node = message.get("node")
        return cls(
            node=None if node is None else _integer(message, "node"),
            host=_text(message, "host", MAX_NAME),
            round=_integer(message, "round", least=0),
        )


@dataclass(frozen=True)
class Begin:
    """The start of a round: this node's number in it, and the address of its store."""

    round: int
    rank: int
    world: int
    store_port: int
    absent: tuple[int, ...]
    moved: Mapping[int, str]

    @classmethod
    def from_message(cls, message: Message) -> Begin:
        absent, moved = message.get("absent"), message.get("moved")
        if not isinstance(absent, list) or not all(isinstance(node, int) for node in absent):
            raise MessageError("absent is no list of nodes")
        if not isinstance(moved, dict) or not all(node.isdecimal() and len(node) < 10 for node in moved):
            raise MessageError("moved is no table of nodes")
        return cls(
            round=_integer(message, "round", least=1),
            rank=_integer(message, "rank", least=0),
            world=_integer(message, "world", least=1),
            store_port=_integer(message, "store_port", least=1, most=65535),
            absent=tuple(absent),
            moved={int(node): _text(moved, node, MAX_NAME) for node in moved},
        )


def encode(message: Mapping[str, Any]) -> bytes:
    """Encode a message as one line."""
    return (json.dumps(message) + "\n").encode()


def decode(line: bytes | bytearray) -> Message:
    """Decode the object of one line; raises MessageError for anything else."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise MessageError("not a JSON object")
    return message


def read_reason(message: Message) -> str:
    """Read the reason why a job is over."""
    return _text(message, "reason", MAX_REASON)


def read_paces(message: Message) -> dict[int, tuple[int, float]]:
    """Read rank → (steps, own seconds so far)."""
    paces = message.get("paces")
    if not isinstance(paces, dict):
        raise MessageError("paces is no table of ranks")
    found = {}
    for rank, pace in paces.items():
        if not rank.isdecimal() or len(rank) > 9 or not isinstance(pace, list) or len(pace) != 2:
            raise MessageError("paces has an entry that is no pace")
        step = _integer({"step": pace[0]}, "step", least=0)
        found[int(rank)] = (step, read_seconds({"own_s": pace[1]}, "own_s"))
    return found


def read_seconds(message: Message, key: str) -> float:
    """Read a duration."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_INTEGER:  # nor is it NaN
        raise MessageError(f"{key} is no duration")
    return float(value)


def _integer(message: Message, key: str, *, least: int = -MAX_INTEGER, most: int = MAX_INTEGER) -> int:
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise MessageError(f"{key} is no number from {least} to {most}")
    return value


def _text(message: Mapping[str, Any], key: str, longest: int) -> str:
    value = message.get(key)
    if not isinstance(value, str) or len(value) > longest:
        raise MessageError(f"{key} is no text of up to {longest} characters")
    return value
