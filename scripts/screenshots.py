"""Screenshots of the dashboard for the documentation: `python scripts/screenshots.py RUN [--out docs/images]`.

Needs playwright (`pip install -e '.[dev]'`) and a Chromium. Writes dashboard-run and dashboard-tokens, light and dark.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser, sync_playwright

from agentrl.runlog import find_run, read_alarms, read_rollouts, rollout_steps

SIZE = {"width": 1400, "height": 1000}


def token_view(run: Path, step: int | None) -> dict[str, str]:
    """Address of the token map of an incorrect response that NTHR softened, at `step` or the last that has one."""
    stored = rollout_steps(run)
    for at in [step] if step is not None else reversed(stored):
        rows = [r for r in read_rollouts(run, at) if not r.get("error")]
        scored = [r for r in rows if not r["correct"] and any(any(t.get("nthr_selected") or []) for t in r["turns"])]
        if scored:
            best = max(scored, key=lambda r: sum(len(t["action_ids"]) for t in r["turns"]))
            return {
                "tab": "rollouts",
                "step": str(at),
                "look": "tokens",
                "sample": best["sample_id"],
                "measure": "nthr",
            }
    return {"tab": "rollouts", "step": str(stored[-1]), "look": "tokens", "measure": "entropy"}


def shoot(browser: Browser, url: str, ready: str, out: Path, hover: str | None = None) -> None:
    """One page in both themes."""
    for theme in ("light", "dark"):
        page = browser.new_page(viewport=SIZE, color_scheme=theme, device_scale_factor=1.5)  # type: ignore[arg-type]
        page.goto(url)
        page.wait_for_selector(ready)
        if hover:
            marked = page.locator(hover)
            (marked if marked.count() else page.locator(".map .t")).first.hover()
        page.wait_for_timeout(800)
        page.screenshot(path=out.with_name(f"{out.name}-{theme}.png"))
        page.close()


def main() -> None:
    """Start a dashboard over the run's folder, look at two pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--smooth", default="0.6")
    parser.add_argument("--alarm", help="open this alarm (default: none)", default=None)
    parser.add_argument("--step", type=int, default=None, help="of the token map")
    args = parser.parse_args()
    run = find_run(args.run).resolve()
    if args.alarm and args.alarm not in [a["id"] for a in read_alarms(run)]:
        parser.error(f"{run} has no alarm {args.alarm}")
    command = [sys.executable, "-m", "agentrl", "dashboard", str(run.parent), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[1] + "run?"
        args.out.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as driver:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
            seen = {"run": run.name, "smooth": args.smooth, **({"alarm": args.alarm} if args.alarm else {})}
            shoot(browser, url + urlencode(seen), ".chart canvas", args.out / "dashboard-run")
            tokens = {"run": run.name, **token_view(run, args.step)}
            shoot(browser, url + urlencode(tokens), ".map .t", args.out / "dashboard-tokens", ".map .t.sel")
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    main()
