"""In a browser: long runs, clocks that go back, pauses, imported runs, odd names, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from agentrl.cli import main
from agentrl.runs.log import RunLog
from tests.dashboard.conftest import serving
from tests.dashboard.runs import START, config, make_run
from tests.monitors.test_follow import ROWS
from tests.monitors.test_recording import foreign

pytestmark = pytest.mark.browser

PAUSE = 3 * 86_400.0


def run_of(root, name, rows, status="finished"):
    with RunLog.create(root, name, config()) as log:
        (log.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        log.set_status(status, step=len(rows), steps=len(rows))
    return log.path


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    root = tmp_path_factory.mktemp("truth")
    filler = {f"x_{i}": 0.123456789 + i for i in range(40)}
    long = []
    for step in range(30_000):
        grad = 1e6 if step == 1234 else 1.0 + (step % 100) / 1000
        row = {"step": step, "time": START + step, "reward": (step % 50) / 50, "grad_norm": grad, **filler}
        long.append(row | ({"grad_norm": None, "nonfinite": ["grad_norm"]} if step == 4321 else {}))
    assert run_of(root, "long", long).joinpath("metrics.jsonl").stat().st_size > 24 << 20
    back = [{"step": i, "time": START + 10 * i - (3600 if i >= 50 else 0), "reward": i / 100} for i in range(100)]
    run_of(root, "clock-back", back)
    pause = [{"step": i, "time": START + 10 * i + (PAUSE if i >= 50 else 0), "reward": i / 100} for i in range(100)]
    run_of(root, "pause", pause)
    log = root / "verl.jsonl"
    foreign(log, ROWS)
    assert main(["import", str(log), "--to", str(root / "verl")]) == 0
    assert main(["import", str(log), "--to", str(root / "verl-72"), "--gpus", "72"]) == 0  # 50 s on 72 GPUs: an hour
    with serving(root) as url:
        yield url


def opened(page, url, run, **more):
    query = "&".join(f"{k}={v}" for k, v in more.items())
    page.goto(f"{url}/run?run={run}&{query}")
    page.wait_for_selector(".chart canvas", timeout=60_000)


def chart(page, title):
    return page.locator(f"section.chart[aria-label='{title}']")


def test_the_largest_gradient_and_the_nan_of_a_long_run_are_on_its_chart(page, told):
    opened(page, told, "long")
    said = chart(page, "Gradient norm").locator(".says").inner_text()
    assert "highest 1.00e+6 at step 1234" in said and "Not finite at 1 steps." in said


def test_an_hour_back_on_the_clock(page, told):
    opened(page, told, "clock-back", x="time")
    head = page.locator(".runhead").inner_text()
    assert "17 min long" in head and "-" not in head.split(" long")[0].split("\n")[-1]
    chart(page, "Reward").get_by_role("button", name="Table").click()
    cells = chart(page, "Reward").locator("tbody td:first-child").all_inner_texts()
    minutes = [float(c) for c in cells]
    assert len(minutes) == 100 and minutes == sorted(minutes, reverse=True) and len(set(minutes)) == 100


def test_a_pause_of_three_days_is_left_out_and_said(page, told):
    opened(page, told, "pause", x="time")
    assert "17 min long without 1 pause of 72.0 h" in page.locator(".runhead").inner_text()


def test_an_imported_run_has_charts_alarms_and_what_was_spent_after_the_first(page, told):
    opened(page, told, "verl")
    head = page.locator(".runhead").inner_text()
    assert "50 steps and 50 s after the first alarm" in head
    page.get_by_role("tab", name="Alarms").click()
    assert "Collapse ahead" in page.locator("#panel-alarms").inner_text()
    page.get_by_role("tab", name="Config").click()
    page.wait_for_timeout(300)
    assert "cannot be read" not in page.locator("main").inner_text()


def test_gpu_hours_after_the_first_alarm_where_the_run_says_its_gpus(page, told):
    opened(page, told, "verl-72")
    assert "50 steps and 1 GPU-hours after the first alarm" in page.locator(".runhead").inner_text()


@pytest.mark.parametrize("name", ["x" * 200, "a\nb", "العربية", "tab\there"])
def test_odd_names_in_the_list_the_comparison_and_the_report(page, tmp_path, name):
    for one in (name, "plain"):
        make_run(tmp_path, one, steps=12, every=0)
    with serving(tmp_path) as url:
        page.goto(url)
        page.wait_for_selector("tbody tr:nth-child(2)")
        page.locator("tbody .name").first.click()
        page.wait_for_selector(".chart canvas")
        with page.expect_download() as download:
            page.get_by_role("link", name="Report").click()
        assert download.value.suggested_filename.endswith(".html")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.goto(url)
        page.wait_for_selector("tbody tr:nth-child(2)")
        for box in page.locator("tbody input[type=checkbox]").all():
            box.check()
        page.get_by_role("link", name="Compare 2").click()
        page.wait_for_selector(".chart canvas")
        assert page.locator("h1").inner_text() == "2 runs"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_ctrl_c_with_an_open_page_is_quiet(page, tmp_path):
    make_run(tmp_path, "a", steps=12, every=0)
    command = [sys.executable, "-m", "agentrl.cli", "dashboard", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        url = process.stdout.readline().split()[1]
        page.goto(f"{url}run?run=a")
        page.wait_for_selector(".chart canvas")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0 and err == ""
    finally:
        process.kill()
