"""Pages in a real browser: they render, stay silent, answer to mouse and keyboard, and can be read everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCHEMES = ("light", "dark")
LEAST_CONTRAST = 4.5
CONTRAST = """() => {
  const rgb = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map(linear);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > .99) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const a = light(rgb(svg ? style.fill : style.color)), b = light(behind(e));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    found.push([contrast, parseFloat(style.fontSize), e.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


def launcher(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *words], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a real training run, a real measurement, and a plan for 3,072 GPUs."""
    folder = tmp_path_factory.mktemp("pages")
    launcher("run", "train.steps=5", "run_dir=train", cwd=folder)
    launcher("run", "recipe=collectives", "recipe.sizes=1K:64K:8", "run_dir=measured", cwd=folder)
    large = ["cluster=dgx_a100_80g", "cluster.num_nodes=384", "model=gpt3_175b", "train.global_batch=1536"]
    launcher("plan", *large, "run_dir=large", cwd=folder)
    return {name: folder / launcher("report", name, cwd=folder) for name in ("train", "measured", "large")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def opened(browser: Any, path: Path, *, width: int = 1400, scheme: str = "light") -> tuple[Any, list[str]]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, messages = context.new_page(), []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
    tab.goto(path.as_uri())
    tab.wait_for_timeout(200)
    return tab, messages


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [360, 2000])
@pytest.mark.parametrize("name", ["train", "measured", "large"])
def test_a_page_renders_in_silence_without_overflow_and_can_be_read(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    tab, messages = opened(browser, pages[name], width=width, scheme=scheme)
    assert messages == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    text = tab.evaluate(CONTRAST)
    assert len(text) > 10
    assert [entry for entry in text if entry[0] < LEAST_CONTRAST] == []
    assert [entry for entry in text if entry[1] < 12] == []
    tab.context.close()


def test_the_cluster_answers_to_keys_and_to_the_axis(browser: Any, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["train"])
    assert tab.locator(".gpu").count() == 8
    tab.focus("#cluster")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#rank").startswith("Rank 1:")
    assert tab.locator(".gpu.peer").count() == 2  # its pipeline group
    tab.select_option("#axis", "tp")
    assert "tp group of 2" in tab.inner_text("#rank")
    tab.context.close()


def test_every_node_of_a_large_cluster_is_drawn(browser: Any, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["large"])
    assert tab.locator(".node").count() == 384
    assert tab.locator(".gpu").count() == 3072
    tab.context.close()


def test_the_pipeline_zooms_and_names_what_is_under_the_pointer(browser: Any, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["train"])
    tab.locator("#pipeline").scroll_into_view_if_needed()
    before = tab.evaluate("document.querySelector('#pipeline canvas').clientWidth")
    box = tab.locator("#pipeline canvas").bounding_box()
    tab.mouse.move(box["x"] + 75, box["y"] + 5)
    assert tab.inner_text("#box").startswith("Stage 0: forward of micro-batch 0")
    tab.click("#zoom")
    assert tab.evaluate("document.querySelector('#pipeline canvas').clientWidth") == 2 * before
    tab.context.close()


def test_an_alternative_is_explained_when_it_is_focused(browser: Any, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["large"])
    dot = tab.locator(".dot").first
    dot.focus()
    assert tab.inner_text("#alternative") == dot.get_attribute("data-words")
    tab.context.close()


def test_the_page_shows_what_the_run_measured(browser: Any, pages: dict[str, Path]) -> None:
    result = json.loads((pages["train"].parent / "result.json").read_text())
    tab, _ = opened(browser, pages["train"])
    assert "step, measured" in tab.inner_text("header")
    assert result["measured_step_time_s"] > 0
    assert "not measured" not in tab.inner_text("body")
    assert tab.locator(".uplot").count() == 3
    tab.context.close()


def test_a_measurement_shows_bandwidths_and_no_pipeline(browser: Any, pages: dict[str, Path]) -> None:
    tab, _ = opened(browser, pages["measured"])
    assert "GB/s" in tab.inner_text("header")
    assert tab.locator("#pipeline").count() == 0
    assert "all_reduce, expected" in tab.inner_text("#curve-tp")
    assert tab.locator(".uplot").count() >= 2
    tab.context.close()
