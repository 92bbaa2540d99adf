"""Screenshots of the dashboard for the README: `python scripts/screenshots.py RUN TOKENS_RUN [--out docs/images]`.

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

from agentrl.runs.read import find_run, read_rollouts, rollout_steps

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
    parser.add_argument("run", type=Path)
    parser.add_argument("tokens_run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--smooth", default="0.6")
    parser.add_argument("--step", type=int, default=None, help="of the token map")
    args = parser.parse_args()
    run, tokens = find_run(args.run).resolve(), find_run(args.tokens_run).resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with dashboard(run) as url:
            query = urlencode({"run": run.name, "smooth": args.smooth})
            shoot(browser, url + query, (1120, 948), args.out / "dashboard-run", ".chart canvas")
        with dashboard(tokens) as url:
            query = urlencode({"run": tokens.name, **token_view(tokens, args.step)})
            shoot(browser, url + query, (1440, 1300), args.out / "dashboard-tokens", ".map .t", ".detail")
        browser.close()


if __name__ == "__main__":
    main()
