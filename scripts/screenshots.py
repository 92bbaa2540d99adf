"""Screenshots of the dashboard for the README: `python scripts/screenshots.py RUN TOKENS_RUN [--out docs/images]`,
or of each page at two widths, to be looked at: `python scripts/screenshots.py --pages RUNS_DIR --out FOLDER`.

RUN is shown as its run page (dashboard-run), TOKENS_RUN, a run with NTHR, as the token map of a response of several
turns (dashboard-tokens), each light and dark. Needs playwright and pillow (`pip install -e '.[dev]'`) and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from agentrl.runs.read import find_run, read_alarms, read_rollouts, rollout_steps

SCALE = 1.5
COLORS = 256  # of the palette: a third of the file, nearly no pixel off by more than 16 of 255


def token_view(run: Path, step: int | None) -> dict[str, str]:
    """Address of the token map of the incorrect response in which NTHR says most: tokens softened or coloured."""
    best: tuple[float, int, dict[str, Any]] | None = None
    for at in rollout_steps(run) if step is None else [step]:
        for row in read_rollouts(run, at):
            scores = [s for t in row["turns"] for s in t.get("nthr_scores") or []]
            if row["correct"] or row.get("error") or len(row["turns"]) < 3 or not any(scores):
                continue
            softened = sum(bool(s) for t in row["turns"] for s in t["nthr_selected"])
            coloured = sum(abs(s) > 0.04 * max(map(abs, scores)) for s in scores)
            if best is None or softened + coloured > best[0]:
                best = (softened + coloured, at, row)
    if best is None:
        raise SystemExit(f"{run} has no incorrect response of three turns with NTHR scores; set algorithm.nthr.enabled")
    _, at, row = best
    asked = {"tab": "rollouts", "look": "tokens", "measure": "nthr", "verdict": "incorrect"}
    return asked | {"step": str(at), "sample": row["sample_id"]}


def shoot(browser: Browser, url: str, size: tuple[int, int], out: Path, ready: str, card: str | None = None) -> None:
    """One page in both themes, or one `card` of it, with the pointer on a token."""
    for theme in ("light", "dark"):
        page = browser.new_page(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=theme,  # type: ignore[arg-type]
            device_scale_factor=SCALE,
        )
        page.goto(url)
        page.wait_for_selector(ready)
        clip = None
        if card:
            page.locator(".map :is(.n5, .n4)").first.hover()
            box = page.locator(card).bounding_box()
            assert box is not None
            clip = {"x": box["x"] - 8, "y": box["y"] - 8, "width": box["width"] + 16, "height": box["height"] + 16}
        page.wait_for_timeout(800)
        image = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")  # type: ignore[arg-type]
        file = out.with_name(f"{out.name}-{theme}.png")
        image.quantize(COLORS, kmeans=3, dither=Image.Dither.NONE).save(file, optimize=True)
        print(f"{file}  {file.stat().st_size / 1000:.0f} kB")
        page.close()


def pages(runs: Path) -> dict[str, tuple[str, str]]:
    """Name -> (address below the server's, what to wait for) of every page and tab of the newest run with rollouts."""
    found = sorted((p for p in runs.iterdir() if rollout_steps(p)), key=lambda p: -len(rollout_steps(p)))
    others = [p.name for p in runs.iterdir() if p.is_dir() and (p / "metrics.jsonl").exists()]
    run = found[0]
    step = rollout_steps(run)[-1]
    alarms = [a["id"] for a in read_alarms(run)]
    at = urlencode({"run": run.name})
    group = urlencode({"run": run.name, "tab": "rollouts", "step": step})
    return {
        "runs": ("", "table tbody tr"),
        "run": (f"run?{at}&smooth=0.6", ".chart canvas"),
        "alarm": (f"run?{at}&{urlencode({'alarm': alarms[0] if alarms else ''})}", "article.alarm"),
        "alarms": (f"run?{at}&tab=alarms", "#panel-alarms article"),
        "config": (f"run?{at}&tab=config", "#panel-config table"),
        "rollouts": (f"run?{group}", ".detail .turn"),
        "worst": (f"run?{group}&order=worst", ".detail .turn"),
        "all-steps": (f"run?{group}&all=1&q=a", "tr.pick"),
        "tokens": (f"run?{group}&look=tokens", ".map .t"),
        "group": (f"run?{group}&look=group", ".siblings"),
        "compare": (f"compare?{urlencode({'runs': ','.join(sorted(others)[:3])})}", ".chart canvas"),
    }


def shoot_pages(browser: Browser, runs: Path, out: Path) -> None:
    """Every page at 375 and 1400 pixels, light and dark; the whole page where it is no longer than 4000 pixels.

    Names those that are wider than their window.
    """
    found = pages(runs)
    with dashboard(next(p for p in runs.iterdir() if p.is_dir())) as url:
        base = url.removesuffix("run?")
        for width in (375, 1400):
            for theme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
                for name, (address, ready) in found.items():
                    page.goto(base + address)
                    page.wait_for_selector(ready)
                    page.wait_for_timeout(600)
                    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
                    wide, tall = page.evaluate(size)
                    clip = {"x": 0, "y": 0, "width": width, "height": min(tall, 4000)}
                    file = out / f"{name}-{width}-{theme}.png"
                    page.screenshot(path=file, clip=clip, full_page=True)  # type: ignore[arg-type]
                    print(file, "" if wide <= width else f"WIDER THAN ITS WINDOW: {wide}")
                page.close()


@contextmanager
def dashboard(run: Path) -> Iterator[str]:
    """The address of a run's page on a server of its own."""
    command = [sys.executable, "-m", "agentrl", "dashboard", str(run.parent), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[1] + "run?"
    finally:
        server.terminate()
        server.wait(20)


def main() -> None:
    """Start a dashboard over each run's folder, look at one page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("tokens_run", type=Path, nargs="?")
    parser.add_argument("--pages", type=Path, metavar="RUNS_DIR", help="each page, at 375 and 1400 pixels")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--smooth", default="0.6")
    parser.add_argument("--step", type=int, default=None, help="of the token map")
    args = parser.parse_args()
    if args.pages is None and args.tokens_run is None:
        parser.error("name RUN and TOKENS_RUN, or --pages RUNS_DIR")
    args.out.mkdir(parents=True, exist_ok=True)
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if args.pages is not None:
            shoot_pages(browser, args.pages.resolve(), args.out)
            return
        run, tokens = find_run(args.run).resolve(), find_run(args.tokens_run).resolve()
        with dashboard(run) as url:
            query = urlencode({"run": run.name, "smooth": args.smooth})
            shoot(browser, url + query, (1120, 948), args.out / "dashboard-run", ".chart canvas")
        with dashboard(tokens) as url:
            query = urlencode({"run": tokens.name, **token_view(tokens, args.step)})
            shoot(browser, url + query, (1440, 1300), args.out / "dashboard-tokens", ".map .t", ".detail")
        browser.close()


if __name__ == "__main__":
    main()
