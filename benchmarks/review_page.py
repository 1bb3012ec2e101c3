"""The review page's budgets (CLINICAL_SERVICE §4.4) in Chromium without a GPU; its pictures.

    make page
    python -m benchmarks.review_page [--rows 240 --rows 10000]
    python -m benchmarks.review_page --demo demo-review [--pictures docs/pictures/review]

The first form fills a database of its own and measures the worklist. The second asks the service
that `make demo-review` left running; its folder has the address and the password.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from PIL import Image
from playwright.sync_api import Browser, Page

from benchmarks.worklist import fill, serving
from contourcast.service.index.database import Index
from contourcast.service.settings import ServiceSettings
from support.review_page import BUILT, LARGE, ORDINARY, chromium

# How long handlers of keys and pointers take, and what they have drawn at the next frame: the work
# itself, without the wait for the frame.
WATCH: Final = """
const times = [];
window.work_ms = times;
const timed = (what) => function (...told) {
  const start = performance.now();
  try { return what.apply(this, told); } finally { times.push(performance.now() - start); }
};
const add = EventTarget.prototype.addEventListener;
EventTarget.prototype.addEventListener = function (type, what, options) {
  const watched = typeof what === "function" && /^(key|pointer|wheel)/.test(type);
  return add.call(this, type, watched ? timed(what) : what, options);
};
const frame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (what) => frame(timed(what));
"""
SETTLED: Final = "() => new Promise(done => setTimeout(() => setTimeout(done, 80), 0))"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--demo", type=Path, help="folder of a running `make demo-review`")
    parser.add_argument("--pictures", type=Path, help="where pictures of the screens go")
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    print(f"{'':<44} {'median':>8} {'worst':>8}   budget")
    transferred()
    with chromium() as browser:
        if asked.demo is None:
            for rows in asked.rows or (240, 10_000):
                worklist(browser, rows)
        else:
            demo = Demo.of(asked.demo)
            review(browser, demo, asked.times)
            if asked.pictures is not None:
                pictures(browser, demo, asked.pictures)


def transferred() -> None:
    """What the browser fetches once, compressed."""
    files = [path for path in BUILT.parent.rglob("*") if path.is_file()]
    size = sum(len(gzip.compress(path.read_bytes(), 6)) for path in files)
    print(f"{'code, gzip':<44} {size / 1e3:8.0f} {'':>8}   1500 kB")


def line(what: str, values_ms: list[float], budget: str) -> None:
    """One row of the table."""
    print(f"{what:<44} {statistics.median(values_ms):8.1f} {max(values_ms):8.1f}   {budget}")


# The worklist


def worklist(browser: Browser, rows: int) -> None:
    """From the address to a list that answers; then to its end."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ServiceSettings(data_folder=Path(folder), disk_reserve_mib=0)
        index = Index(settings.index_url)
        fill(index, rows)
        index.close()
        with serving(settings) as client:
            ready: list[float] = []
            back: list[float] = []
            for _ in range(5):
                with window(browser, ORDINARY) as page:
                    page.goto(f"{client.base_url}/review/")
                    page.locator(".window .row").first.wait_for()
                    ready.append(mark(page, "worklist-ready"))
                    page.keyboard.press("Control+,")
                    page.locator(".settings form").wait_for()
                    page.evaluate("performance.clearMarks()")
                    start_ms = now(page)
                    page.locator("a.brand").click()
                    page.locator(".window .row").first.wait_for()
                    back.append(mark(page, "worklist-ready") - start_ms)
            line(f"worklist of {rows}: cold, address to interactive", ready, "")
            line(f"worklist of {rows}: click to interactive", back, "300 ms at 240 rows")
            with window(browser, ORDINARY) as page:
                page.goto(f"{client.base_url}/review/")
                page.locator(".window .row").first.wait_for()
                to_the_end(page, rows)


def to_the_end(page: Page, rows: int) -> None:
    """Loads every page of the list, then goes through it."""
    start_ms = now(page)
    grid = page.locator(".worklist-table")
    while grid.get_attribute("aria-rowcount") == "-1":
        page.keyboard.press("End")
        page.evaluate(SETTLED)
    count = int(grid.get_attribute("aria-rowcount") or 0) - 1
    drawn = page.locator(".window .row").count()
    line(f"worklist of {rows}: all {count} undecided loaded", [now(page) - start_ms], "")
    page.evaluate("work_ms.length = 0")
    for key in ["Home", *["PageDown"] * 10, "End"]:
        page.keyboard.press(key)
        page.evaluate(SETTLED)
    line(f"worklist of {rows}: a page on ({drawn} rows drawn)", work(page, 12), "33 ms")


# One fraction


class Demo:
    """A running demo: where, and who may sign."""

    def __init__(self, address: str, password: str) -> None:
        self.address, self.password = address, password

    @classmethod
    def of(cls, folder: Path) -> Demo:
        """What the demo wrote down."""
        settings = tomllib.loads((folder / "settings.toml").read_text("utf-8"))
        secrets = json.loads((folder / "secrets.json").read_text("utf-8"))
        return cls(f"http://127.0.0.1:{settings['port']}", secrets["password"])

    def sign_in(self, page: Page, name: str = "physicist") -> None:
        """By name and password."""
        page.goto(f"{self.address}/review/")
        page.locator("input[name=name]").fill(name)
        page.locator("input[name=password]").fill(self.password)
        page.keyboard.press("Enter")
        page.locator(".window .row").first.wait_for()


def review(browser: Browser, demo: Demo, times: int) -> None:
    """First picture, then what every step, window, blend and stroke costs."""
    first, whole = [], []
    for _ in range(3):
        with window(browser, ORDINARY) as page:
            demo.sign_in(page)
            start_ms = now(page)
            open_row(page, "LOOK")
            first.append(mark(page, "review-first-picture") - start_ms)
            page.wait_for_timeout(5000)
            loaded = [mark(page, f"review-{image}-loaded") for image in ("cbct", "planning")]
            whole.append(max(loaded) - start_ms)
    line("click to first picture with contours", first, "1000 ms")
    line("click to both volumes whole", whole, "3000 ms")
    with window(browser, ORDINARY) as page:
        demo.sign_in(page)
        open_row(page, "LOOK")
        page.wait_for_timeout(3000)
        line("slice step", pressed(page, ["ArrowDown", "ArrowUp"], times), "60 ms on a CPU")
        line("window", pressed(page, ["1", "2", "3", "4"], times), "60 ms on a CPU")
        line("blend", pressed(page, ["+", "+", "-", "-"], times), "60 ms on a CPU")
        page.keyboard.press("b")
        page.keyboard.press("c")
        page.keyboard.press("e")
        page.locator(".tools-edit").wait_for()
        page.evaluate(SETTLED)
        line("brush: a move's ink", brushed(page, times), "16 ms; 100 ms other planes")
        discard(page)


def pressed(page: Page, keys: list[str], times: int) -> list[float]:
    """Work of handler and frame after each key, ms."""
    found = []
    for number in range(times):
        page.evaluate("work_ms.length = 0")
        page.keyboard.press(keys[number % len(keys)])
        page.evaluate(SETTLED)
        found.append(sum(page.evaluate("work_ms")))
    return found


def brushed(page: Page, times: int) -> list[float]:
    """Work of each move of a stroke round the target's centre, ms."""
    box = page.locator(".cv-axial").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.47
    page.mouse.move(x, y)
    page.mouse.down()
    found = []
    for number in range(times):
        page.evaluate("work_ms.length = 0")
        page.mouse.move(x + 2 * number, y + number)
        page.evaluate(SETTLED)
        found.append(sum(page.evaluate("work_ms")))
    page.mouse.up()
    return found


def discard(page: Page) -> None:
    """Leaves the demo as it was."""
    page.keyboard.press("Shift+D")
    page.locator("dialog button.danger").click()
    page.locator(".tools-edit").wait_for(state="detached")


def work(page: Page, least: int) -> list[float]:
    """What handlers and frames took since the list was emptied, ms."""
    found: list[float] = page.evaluate("work_ms")
    return found or [0.0] * least


def mark(page: Page, name: str) -> float:
    """When something was so, ms since the page began."""
    found = page.evaluate("name => performance.getEntriesByName(name).at(-1)?.startTime", name)
    return float("nan") if found is None else float(found)


def now(page: Page) -> float:
    """When it is, ms since the page began."""
    return float(page.evaluate("performance.now()"))


def open_row(page: Page, word: str) -> None:
    """Opens the first row with a word in it."""
    page.locator(".window .row", has_text=word).first.click()
    page.locator(".review[data-shown]").wait_for()


@contextmanager
def window(
    browser: Browser, size: tuple[int, int], theme: str = "dark", language: str = "en"
) -> Iterator[Page]:
    """A browser of its own."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    likes = json.dumps(json.dumps({"theme": theme, "language": language}))
    context.add_init_script(f"localStorage.setItem('contourcast.preferences', {likes})")
    context.add_init_script(WATCH)
    try:
        yield context.new_page()
    finally:
        context.close()


# Pictures


def pictures(browser: Browser, demo: Demo, folder: Path) -> None:
    """Every screen, light and dark, at both sizes; nothing is signed."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("dark", "light"):
        for size in (ORDINARY, LARGE):
            with window(browser, size, theme) as page:
                screens(page, demo, shooting(page, folder, f"{theme}-{size[0]}x{size[1]}"))
    with window(browser, ORDINARY, language="zh") as page:
        demo.sign_in(page)
        open_row(page, "需查看")
        page.wait_for_timeout(3000)
        shoot(page, folder, "review-zh")


def screens(page: Page, demo: Demo, shot: Callable[[str], None]) -> None:
    """A walk through the page."""
    page.goto(f"{demo.address}/review/")
    page.locator("input[name=name]").wait_for()
    shot("sign-in")
    demo.sign_in(page)
    shot("worklist")
    open_row(page, "REJECT")
    page.wait_for_timeout(2000)
    shot("rejected")
    page.keyboard.press("q")
    page.locator(".window .row").first.wait_for()
    open_row(page, "LOOK")
    page.wait_for_timeout(3000)
    shot("review")
    page.keyboard.press("i")
    page.locator(".about .deliveries").wait_for()
    page.wait_for_timeout(500)
    shot("plan")
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    page.evaluate(SETTLED)
    shot("checkerboard")
    page.keyboard.press("b")
    page.keyboard.press("r")
    page.locator("#adjust-mm-x").fill("8")
    page.wait_for_timeout(3000)
    shot("adjusting")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Leave it as it was").click()
    page.keyboard.press("e")
    page.locator(".tools-edit").wait_for()
    brushed(page, 12)
    page.wait_for_timeout(1500)
    shot("editing")
    page.keyboard.press("y")
    page.locator("dialog").wait_for()
    shot("signing")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    shot("keys")
    page.keyboard.press("Escape")
    discard(page)
    page.keyboard.press("x")
    page.locator("dialog").wait_for()
    shot("rejecting")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.locator(".course-body .card").first.wait_for()
    page.wait_for_timeout(500)
    shot("course")
    page.goto(f"{demo.address}/review/#/settings")
    page.locator(".settings form").wait_for()
    shot("settings")


def shooting(page: Page, folder: Path, suffix: str) -> Callable[[str], None]:
    """Takes pictures under one suffix."""
    return lambda name: shoot(page, folder, f"{name}-{suffix}")


def shoot(page: Page, folder: Path, name: str) -> None:
    """A picture of few colours; an octree's keep those of the signs, a median cut's do not."""
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(
            256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        few.save(path, optimize=True)


if __name__ == "__main__":
    main()
