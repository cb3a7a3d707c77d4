"""Measure the studio in a real browser: first paint, bytes, contrast, labels, and many sessions at once.

    python -m benchmarks.studio [sessions=16]

It starts a studio of the demo's weights on a free port and drives the installed chromium; nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from playwright.sync_api import Browser, Page, sync_playwright
from pydantic import PositiveInt

from benchmarks.results_file import run
from settings.base import Settings

VIEWS = ("start", "who", "faces", "landmarks", "texture", "case")
CONTRAST = 4.5
LABELS = """() => [
  ...document.querySelectorAll('button, input, select, textarea, a, [role=application], [tabindex]')].filter(
  one => one.offsetParent && !(one.getAttribute('aria-label') || one.innerText.trim() || one.title ||
    (one.labels && [...one.labels].some(label => label.innerText.trim())))).map(one => one.outerHTML.slice(0, 120))"""
CONTRASTS = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.9) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')].filter(one => one.offsetParent && !one.disabled &&
    [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())).map(one => {
      const [a, b] = [light(rgb(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), one.outerHTML.slice(0, 100)];
    });
}"""


class StudioBench(Settings):
    """What is measured."""

    sessions: PositiveInt = 16
    """Sessions that begin at once."""


def measure(config: StudioBench) -> int:
    """Print the figures; return 1 where a control has no label, or a text too little contrast."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise ValueError("chromium: none is installed; install one (Debian, Ubuntu: apt install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        words = ["port=0", "show=false", f"out={folder}", f"max_sessions={config.sessions + 2}"]
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", "muti_control.studio", *words], stdout=subprocess.PIPE, text=True
        )
        try:
            address = next(
                match[0] for line in server.stdout or () if (match := re.search(r"http://\S+", line))
            )
            with sync_playwright() as play:
                browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
                wrong = _page(browser, address)
                _crowd(browser, address, config.sessions)
        finally:
            server.terminate()
            server.wait(20)
    return int(wrong)


def _page(browser: Browser, address: str) -> bool:
    page = browser.new_page()
    sizes: list[int] = []
    page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    page.goto(address)
    page.wait_for_selector("nav [aria-current]")
    page.wait_for_load_state("networkidle")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint {paint:.0f} ms; {len(sizes)} requests, {sum(sizes) / 1e6:.2f} MB as sent")
    page.click(".thumbs button >> nth=0")
    page.wait_for_selector(".stage .picture:nth-child(2) img[src]", state="attached")
    unlabelled: set[str] = set()
    lowest: dict[str, float] = {}
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
        for view in VIEWS:
            page.click(f"nav [data-view={view}]")
            unlabelled |= set(page.evaluate(LABELS))
            for ratio, element in page.evaluate(CONTRASTS):
                lowest[f"{theme} {element}"] = min(ratio, lowest.get(f"{theme} {element}", 99.0))
    low = {element: ratio for element, ratio in lowest.items() if ratio < CONTRAST}
    print(f"controls without a label: {len(unlabelled)}", *unlabelled, sep="\n  ")
    print(f"lowest contrast {min(lowest.values()):.2f} of {len(lowest)} texts; below {CONTRAST}: {len(low)}")
    for element, ratio in low.items():
        print(f"  {ratio:.2f} {element}")
    page.close()
    return bool(unlabelled or low)


def _crowd(browser: Browser, address: str, num: int) -> None:
    """Begin sessions at once, and print when each has its first face."""
    pages: list[Page] = []
    for _ in range(num):
        page = browser.new_context(reduced_motion="reduce").new_page()
        page.goto(address)
        page.wait_for_selector("nav [aria-current]")
        pages.append(page)
    begun: list[float] = []
    for k, page in enumerate(pages):
        begun.append(time.monotonic())
        page.click(f".thumbs button >> nth={k % 9}", no_wait_after=True)
    took: dict[int, float] = {}
    while len(took) < num and time.monotonic() - begun[0] < 300:
        for k, page in enumerate(pages):
            if k not in took and page.query_selector(".stage .picture:nth-child(2) img[src]"):
                took[k] = time.monotonic() - begun[k]
    waits = sorted(took.values())
    print(f"{num} sessions at once: {len(waits)} first faces after {waits[0]:.1f} to {waits[-1]:.1f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and return the exit code."""
    return run("studio", StudioBench, sys.argv[1:] if arguments is None else arguments, measure)


if __name__ == "__main__":
    sys.exit(main())
