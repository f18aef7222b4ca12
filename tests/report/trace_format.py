"""What Perfetto documents of the Trace Event Format, held against a trace."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

METADATA = {"process_name", "thread_name", "process_sort_index", "thread_sort_index"}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a trace, each held against the format."""
    document = json.loads(text)
    assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    for event in document["traceEvents"]:
        assert {type(event[key]) for key in ("pid", "tid")} == {int}
        assert event["ts"] >= 0
        if event["ph"] == "M":
            assert event["name"] in METADATA
            assert set(event["args"]) == {"sort_index" if event["name"].endswith("index") else "name"}
        else:
            assert event["ph"] == "X" and event["name"] and event["dur"] >= 0
    return list(document["traceEvents"])


def assert_named_and_nested(events: list[dict[str, Any]]) -> None:
    """Every track has a name, and its events nest: Perfetto drops one that overlaps another in part."""
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    for name in ("process_name", "process_sort_index"):
        assert {e["pid"] for e in events if e["name"] == name} == {pid for pid, _ in tracks}
    for name in ("thread_name", "thread_sort_index"):
        assert {(e["pid"], e["tid"]) for e in events if e["name"] == name} == set(tracks)
    for found in tracks.values():
        open_until: list[int] = []
        for begin, minus_ns in sorted((ns(event["ts"]), -ns(event["dur"])) for event in found):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or begin - minus_ns <= open_until[-1]
            open_until.append(begin - minus_ns)


def ns(time_us: float) -> int:
    """Whole nanoseconds, as Perfetto counts."""
    return round(1000 * time_us)
