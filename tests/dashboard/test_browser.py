"""The page in a real Chromium, against a server in its own process."""

import csv
import gzip
import io
import json
import re
import shutil
import socket
import time
from pathlib import Path

import pytest

from agentrl.config import RunConfig, WorldConfig
from agentrl.dashboard.server import STATIC
from agentrl.runs.log import RunLog
from agentrl.runs.read import read_alarms, read_rollouts
from tests.dashboard.conftest import serving
from tests.dashboard.payloads import PAYLOADS
from tests.dashboard.runs import START, append_rows, config, long_trajectory, make_run, trajectories

pytestmark = pytest.mark.browser
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
PATIENT = 20_000  # ms; the machine may be busy


def url_of(server, path="/run", **params):
    from urllib.parse import urlencode

    return f"{server}{path}?{urlencode(params)}"


def until(page, expression, seconds=20):
    """Wait for a JavaScript expression to hold (the page's policy forbids Playwright's own way, which is an eval)."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(100)


def chart(page, title):
    return page.locator(f"section.chart[aria-label='{title}']")


def steps_in_table(page, title="Reward"):
    """Steps of the chart's table, ascending."""
    box = chart(page, title)
    if box.locator("table").count() == 0:
        box.hover()
        box.get_by_role("button", name="Table").click()
    return [int(t.replace(",", "")) for t in box.locator("tbody td:first-child").all_inner_texts()][::-1]


# ---------------------------------------------------------------------------------------------------------------- pages


def test_list_filters_and_sorts(page, server):
    page.goto(server)
    rows = page.locator("tbody tr")
    page.wait_for_selector("tbody tr:nth-child(3)")
    page.keyboard.press("/")
    page.keyboard.type("LLDS")
    assert rows.count() == 1 and "sweep/llds" in rows.inner_text()
    assert "agentrl train" in rows.inner_text() and "--force" in rows.inner_text()  # it failed without a checkpoint
    page.reload()
    page.wait_for_selector("tbody tr")
    assert rows.count() == 1  # the filter is in the address
    page.get_by_label("Filter runs by name").fill("")
    page.get_by_role("button", name="Reward").click()
    names = page.locator("tbody .name")
    first = names.first.inner_text()
    page.get_by_role("button", name="Reward").click()
    assert (first, names.first.inner_text()) == ("healthy", "collapse")
    page.get_by_label("with unseen alarms").check()
    assert "healthy" not in page.locator("tbody").inner_text()


def test_run_page_shows_the_overview_first(page, server):
    page.goto(url_of(server, run="collapse"))
    page.wait_for_selector(".chart canvas")
    titles = page.locator(".charts >> nth=0").locator("h3").all_inner_texts()
    assert titles[:3] == ["Reward", "Likelihood of responses", "Δ of correct responses"]
    assert "KL to the reference" in page.locator(".chart.missing").inner_text()
    assert "phase III" in page.locator(".timeline").inner_text()
    assert re.search(r"From 0\.5\d* to 0\.0\d*; highest 0\.891 at step 32", chart(page, "Reward").inner_text())
    assert "collapse" in page.title()
    page.locator("summary", has_text="Update").click()
    chart(page, "clipped tokens").wait_for()


def test_one_cursor_over_all_charts(page, server):
    page.goto(url_of(server, run="collapse"))
    page.wait_for_selector(".chart canvas")
    over = chart(page, "Entropy").locator(".u-over")
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    at = page.locator(".atstep").inner_text()
    step = int(re.match(r"step (\d+)", at)[1])
    assert 45 <= step <= 65
    import csv as reader

    with (Path(__file__).parent.parent / "monitors/data/mid_posonly_lr7e-4_mb4x2_s1.csv").open() as file:
        recorded = {int(float(r["step"])): r for r in reader.DictReader(file)}
    shown = chart(page, "Reward").locator(".keys b").first.inner_text()
    assert float(shown) == pytest.approx(float(recorded[step]["reward"]), rel=1e-3)
    shown = chart(page, "Likelihood of responses").locator(".keys b").first.inner_text()
    assert float(shown.replace("−", "-")) == pytest.approx(float(recorded[step]["logprob_correct"]), rel=1e-3)
    lines = page.locator(".chart .u-cursor-x")
    left = {round(lines.nth(i).bounding_box()["x"] - lines.nth(i).locator("..").bounding_box()["x"]) for i in range(3)}
    assert len(left) == 1  # drawn at the same place in each
    page.keyboard.press("ArrowRight")
    assert page.locator(".atstep").inner_text().startswith(f"step {step + 1}")
    page.keyboard.press("Shift+ArrowLeft")
    assert page.locator(".atstep").inner_text().startswith(f"step {step - 9}")


def test_zoom_smoothing_axis_and_pin_are_in_the_address(page, server):
    page.goto(url_of(server, run="collapse"))
    page.wait_for_selector(".chart canvas")
    box = chart(page, "Reward").locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 60, steps=5)
    page.mouse.up()
    page.get_by_role("button", name="Zoom out").wait_for()
    low, high = map(float, re.search(r"zoom=([\d.]+)%7E([\d.]+)|zoom=([\d.]+)~([\d.]+)", page.url).group(1, 2))
    assert 10 < low < high < 70
    zoomed = steps_in_table(page)
    assert low <= zoomed[0] and zoomed[-1] <= high
    page.get_by_label("Smoothing").fill("0.8")
    page.reload()
    page.wait_for_selector(".chart canvas")
    assert "smooth=0.8" in page.url and steps_in_table(page) == zoomed
    page.get_by_role("button", name="Zoom out").click()
    assert len(steps_in_table(page)) == 110
    page.get_by_role("button", name="Tokens", exact=True).click()
    assert "x=tokens" in page.url
    assert chart(page, "Reward").locator("th").first.inner_text() == "tokens"
    page.locator("main").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Rollouts of step 0").click()
    assert page.get_by_role("tab", name="Rollouts").get_attribute("aria-selected") == "true"


def test_raw_line_stays_under_smoothing(page, server):
    page.goto(url_of(server, run="collapse", smooth=0.9))
    page.wait_for_selector(".chart canvas")
    shown = page.evaluate("document.querySelector('section.chart').chart.plot.series.slice(1).map((s) => s.show)")
    data = page.evaluate(
        "document.querySelector('section.chart').chart.plot.data.map((d) => d.filter((v) => v !== null).length)"
    )
    assert all(shown) and data == [110, 110, 2, 110, 0]  # x, reward, evaluations, reward smoothed; these two never are


def test_chart_exports(page, server):
    page.goto(url_of(server, run="collapse"))
    page.wait_for_selector(".chart canvas")
    chart(page, "Reward").hover()
    with page.expect_download() as got:
        page.get_by_role("button", name="Reward as CSV").click()
    rows = list(csv.reader(io.StringIO(Path(got.value.path()).read_text())))
    assert rows[0] == ["step", "reward", "held-out accuracy"] and len(rows) == 111
    assert rows[1:3] == [["0", "0.5", "0.21"], ["1", rows[2][1], ""]]
    with page.expect_download() as got:
        page.get_by_role("button", name="Reward as PNG").click()
    data = Path(got.value.path()).read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 4000
    with page.expect_download() as got:
        page.get_by_role("link", name="Report").click()
    assert "<svg" in Path(got.value.path()).read_text()


def test_from_alarm_to_tokens(page, server, runs):
    page.goto(url_of(server, run="collapse"))
    page.get_by_role("button", name="critical alarm collapse at step 81").click()
    card = page.locator(".alarm")
    assert "65% of the best mean reward" in card.inner_text() and "reward_lost" in card.inner_text()
    card.get_by_role("button", name="Show the 12 responsible rollouts").click()
    page.wait_for_selector("tr.pick")
    assert page.get_by_label("named by an alarm").is_checked()
    page.get_by_label("Outcome").select_option("incorrect")
    page.wait_for_selector(".verdict.no")
    page.locator("tr.pick").nth(1).click()
    page.get_by_role("button", name="Tokens").last.click()
    page.wait_for_selector(".map .t")
    sample = page.locator("tr.pick[aria-selected=true]").get_attribute("data-sample")
    stored = next(r for r in read_rollouts(runs / "collapse", 81) if r["sample_id"] == sample)["turns"][0]
    spans = page.locator(".map .t")
    assert spans.nth(2).inner_text().strip() == stored["action_tokens"][2]
    spans.nth(2).hover()
    readout = page.locator(".readout").inner_text().replace("−", "-")
    assert f"NTHR score {stored['nthr_scores'][2]:.7g}" in readout
    assert f"Entropy {stored['entropy'][2]:.7g} nats" in readout
    page.get_by_label("Colour tokens by").select_option("entropy")
    assert "main" in page.locator(".readout span", has_text="Entropy").get_attribute("class")
    top = max(t["entropy"][i] for t in [stored] for i in range(len(t["entropy"])))
    index = stored["entropy"].index(top)
    assert re.search(r"\bp[45]\b", spans.nth(index).get_attribute("class"))
    page.locator(".map").focus()
    page.keyboard.press("Home")
    assert (
        "turn 1, token 1 of" in page.locator(".readout").inner_text()
        or "turn 1, token 1," in page.locator(".readout").inner_text()
    )
    page.go_back()


def test_rollouts_named_by_an_alarm_are_found_without_opening_it(page, server, runs):
    alarm = next(a for a in read_alarms(runs / "collapse") if a["level"] == "warn")
    page.goto(url_of(server, run="collapse", tab="rollouts", step=alarm["step"]))
    page.wait_for_selector("tr.pick")
    assert page.locator("tr.group").count() == 3 and "4 correct" in page.locator("tr.group").first.inner_text()
    page.get_by_label("named by an alarm").check()
    until(page, f"document.querySelectorAll('tr.pick').length === {len(alarm['rollouts'])}")
    page.goto(url_of(server, run="collapse", tab="rollouts", step=20))
    page.wait_for_selector("tr.pick")
    assert page.get_by_label("named by an alarm").is_hidden()


def test_conversation_and_group(page, server):
    page.goto(url_of(server, run="collapse", tab="rollouts", step=40, look="group"))
    page.wait_for_selector(".sibling")
    assert page.locator(".sibling").count() == 4 and page.locator(".sibling.current").count() == 1
    tool = page.locator(".turn.tool").first
    assert "repeating-linear-gradient" in tool.evaluate("(e) => getComputedStyle(e).backgroundImage")
    page.get_by_label("Outcome").select_option("failed")
    page.get_by_role("button", name="Conversation").click()
    page.wait_for_selector(".turn.error")
    assert "timed out" in page.locator(".turn.error").inner_text()
    page.get_by_label("Step", exact=True).fill("43")
    page.keyboard.press("Enter")
    page.get_by_text("Rollouts of step 43 were not stored; these are of 40.").wait_for()
    page.get_by_label("Outcome").select_option("all")
    page.get_by_label("Reward from").fill("1")
    until(page, "document.querySelectorAll('tr.pick').length === 8")
    page.get_by_role("button", name="Next stored step").click()
    until(page, "new URLSearchParams(location.search).get('step') === '50'")


def test_acknowledge(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", every=0)
    with serving(tmp_path / "runs") as server:
        alarm = read_alarms(run)[0]["id"]
        page.goto(url_of(server, run="a", alarm=alarm))
        page.get_by_role("button", name="Acknowledge", exact=True).click()
        page.get_by_role("button", name="Acknowledged, undo").wait_for()
        assert read_alarms(run)[0]["acknowledged"] is True


def test_compare(page, server):
    page.goto(server)
    page.wait_for_selector("tbody tr:nth-child(3)")
    page.get_by_label("Pick collapse").check()
    page.get_by_label("Pick healthy").check()
    page.get_by_role("link", name="Compare 2").click()
    page.wait_for_selector(".chart canvas")
    assert chart(page, "reward").locator(".keys span").count() == 2
    assert "highest: healthy" in chart(page, "reward").inner_text()
    page.get_by_text("The configurations are equal.").wait_for()
    page.get_by_label("also what is equal").check()
    assert "rollout.group_size" in page.locator("table").last.inner_text()
    page.get_by_role("button", name="Time").click()
    assert "x=time" in page.url
    assert chart(page, "held-out accuracy").locator(".keys b").all_inner_texts() == ["0.64", "0.64"]
    nine = ",".join(["collapse", "healthy", *(f"no-{i}" for i in range(7))])
    page.goto(url_of(server, "/compare", runs=nine))
    page.get_by_text("Only the first 8 of 9 runs are compared.").wait_for()
    assert page.locator(".notice li", has_text="is no run in").count() == 6  # those that are there are still compared
    page.problems.clear()  # the browser logs each 404


def test_a_tie_at_the_end_of_a_comparison_names_no_winner(page, server):
    page.goto(f"{server}/compare?runs=collapse,healthy")
    page.get_by_text("At the end all 0.64.").wait_for()
    assert "At the end highest: healthy" in page.locator("section.chart[aria-label=reward] .says").inner_text()


@pytest.mark.parametrize("width", [375, 1400])
@pytest.mark.parametrize(
    "address", ["", "run?run=collapse", "run?run=collapse&tab=rollouts", "compare?runs=collapse,healthy"]
)
def test_no_page_is_wider_than_its_window_and_no_tab_is_broken(page, server, width, address):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{server}/{address}")
    page.wait_for_selector("table, .chart, .turn")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heights = page.evaluate("[...document.querySelectorAll('.tabs button')].map((b) => b.offsetHeight)")
    assert not heights or max(heights) < 50


def test_keyboard_help_and_theme(page, server):
    page.goto(url_of(server, run="collapse"))
    page.wait_for_selector(".chart canvas")
    page.keyboard.press("?")
    assert "next alarm" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") != theme
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") != theme
    page.wait_for_selector(".chart canvas")
    page.keyboard.press("n")
    page.wait_for_selector(".alarm")
    page.keyboard.press("Escape")
    page.wait_for_selector(".alarm", state="detached")


# ----------------------------------------------------------------------------------------------------------------- live


def row(step, **more):
    return {"step": step, "time": 1_790_000_000.0 + step, "reward": 0.5, **more}


@pytest.mark.slow
def test_live_update_without_gap_or_duplicate_when_the_server_comes_back(page, tmp_path):
    runs = tmp_path / "runs"
    run = make_run(runs, "a", steps=20, every=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with serving(runs, "--port", port) as server:
        page.goto(url_of(server, run="a"))
        page.wait_for_selector(".chart canvas")
        append_rows(run, [row(20), row(21)])
        until(page, "document.querySelector('section.chart').chart.lines[0].store.length === 22")
    page.wait_for_selector("#live[data-state=lost]", timeout=PATIENT)
    append_rows(run, [row(22)])
    with serving(runs, "--port", port):
        append_rows(run, [row(23)])
        until(page, "document.querySelector('section.chart').chart.lines[0].store.length === 24")
        assert steps_in_table(page) == list(range(24))


@pytest.mark.slow
def test_nine_windows_of_a_running_run_load_and_all_of_them_grow(page, tmp_path):
    with RunLog.create(tmp_path, "live", config()) as log, serving(tmp_path) as url:
        append_rows(log.path, [{"step": s, "time": START + s, "reward": 0.1} for s in range(20)])
        asked = []
        page.context.on("request", lambda r: asked.append(r.url) if "/api/" in r.url else None)
        windows = [page, *(page.context.new_page() for _ in range(8))]
        for window in windows:
            window.goto(f"{url}/run?run=live")
            window.wait_for_selector(".chart canvas")
        append_rows(log.path, [{"step": 20, "time": START + 20, "reward": 0.75}])
        for window in windows:
            window.get_by_text("highest 0.75 at step 20").wait_for()
        assert sum("/api/events" in u for u in asked) == 3 and any("/api/poll" in u for u in asked)
        for window in windows[1:]:
            window.close()


def test_a_finished_run_has_no_stream_and_still_hears_of_a_resume(page, tmp_path):
    run = make_run(tmp_path, "done", steps=12, every=0)
    with serving(tmp_path) as url:
        asked = []
        page.on("request", lambda r: asked.append(r.url) if "/api/" in r.url else None)
        page.goto(f"{url}/run?run=done")
        page.wait_for_selector(".chart canvas")
        page.wait_for_timeout(500)
        assert not any("/api/events" in u for u in asked)
        with RunLog.open(run) as log:
            log.set_status("running", step=12, steps=40)
            page.wait_for_selector("#live[data-state=live]", timeout=PATIENT)
            append_rows(log.path, [{"step": 12, "time": START + 12, "reward": 0.875}])
            page.get_by_text("highest 0.875 at step 12").wait_for()
        assert any("/api/events" in u for u in asked)


def test_a_run_that_has_only_begun_grows_its_charts(page, tmp_path):
    with (
        RunLog.create(tmp_path / "runs", "a", RunConfig(world=WorldConfig())) as log,
        serving(tmp_path / "runs") as server,
    ):
        log.set_status("running", step=0, steps=40)
        page.goto(url_of(server, run="a"))
        page.get_by_text("No step is done yet").wait_for()
        append_rows(log.path, [row(0)])
        page.wait_for_selector(".chart canvas", timeout=PATIENT)
        assert chart(page, "Entropy").count() == 0 and "Entropy" in page.locator(".chart.missing").inner_text()
        append_rows(log.path, [row(1, entropy=0.5)])
        chart(page, "Entropy").wait_for(timeout=PATIENT)
        log.evaluation({"step": 2, "split": "test", "em": 0.625, "n": 8})
        page.locator(".figure", has_text="held-out accuracy").wait_for(timeout=PATIENT)
        chart(page, "Reward").hover()
        chart(page, "Reward").get_by_role("button", name="Table").click()
        assert "0.625" in chart(page, "Reward").locator("tbody tr").first.inner_text()


def test_a_new_alarm_and_a_not_finite_value_appear(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=20, every=0, alarms=False)
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a"))
        page.wait_for_selector(".chart canvas")
        with RunLog.open(run) as log:
            log.set_status("running", step=20, steps=40)
            append_rows(run, [row(20) | {"entropy": float("nan")}])
            with (run / "alarms.jsonl").open("a") as file:
                file.write('{"id": "n-20", "rule": "non_finite", "step": 20, "level": "critical", "message": "NaN"}\n')
            page.get_by_role("button", name="critical alarm non finite at step 20").wait_for(timeout=PATIENT)
            page.wait_for_selector("#live[data-state=live]", timeout=PATIENT)
            assert "Not finite at 1 steps" in chart(page, "Entropy").inner_text()


def test_a_constant_is_drawn_as_one(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=1, every=0)
    (run / "metrics.jsonl").write_text("")
    append_rows(run, [row(i, entropy=-0.3) for i in range(60)])
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a", smooth=0.9))
        page.wait_for_selector(".chart canvas")
        assert "−0.3 throughout." in chart(page, "Entropy").inner_text()
        axis = page.evaluate("document.querySelector(\"section.chart[aria-label='Entropy']\").chart.plot.scales.y")
        assert axis["min"] < -0.31 and axis["max"] > -0.29  # not the rounding errors of the average


def test_the_token_limit_is_named_where_responses_are_cut(page, tmp_path):
    """By the turn that it has cut, and by the charts of the shares of responses and turns."""
    run = make_run(tmp_path / "runs", "a", steps=12, every=0, alarms=False)
    (run / "metrics.jsonl").write_text("")
    append_rows(run, [row(i) | {"cut_share": 0.75, "cut_turns": 0.5} for i in range(12)])
    episodes = list(trajectories(0))
    episodes[0]["turns"][1]["stop"] = "length"
    with RunLog.open(run) as log:
        log.write_rollouts(0, episodes)
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a", tab="rollouts", step=0, sample=episodes[0]["sample_id"]))
        page.wait_for_selector(".turn.agent")
        first, second = (page.locator(".turn.agent").nth(i).inner_text() for i in (0, 1))
        assert "cut at rollout.max_tokens_per_turn" in second and "max_tokens_per_turn" not in first
        page.goto(url_of(server, run="a"))
        page.locator("details[data-section=episodes] summary").click()
        titles = page.locator("section.chart h3[title*='rollout.max_tokens_per_turn']")
        titles.first.wait_for()
        assert titles.count() == 2, titles.all_inner_texts()


@pytest.mark.slow
def test_a_resumed_run_takes_its_steps_back(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=20, every=0, alarms=False)
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a"))
        page.wait_for_selector(".chart canvas")
        store = "document.querySelector('section.chart').chart.lines[0].store"
        append_rows(run, [row(20), row(21) | {"entropy": float("nan")}, row(22)])
        until(page, f"{store}.length === 23 && {store}.nonfinite.entropy.length === 1")
        append_rows(run, [row(20), row(21) | {"entropy": float("nan")}])
        until(page, f"{store}.length === 22")
        assert page.evaluate(f"{store}.nonfinite.entropy") == [21]
        assert steps_in_table(page) == list(range(22))


def test_what_the_guard_did_is_shown(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", every=0)
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a"))
        page.wait_for_selector(".chart canvas")
        with RunLog.open(run) as log:
            log.guard_action(
                {"step": 79, "kind": "rollback", "reason": "too late", "llds_weight": 0.4, "lr_scale": 0.5}
            )
        page.get_by_role("button", name="guard: rollback at step 79").click(timeout=PATIENT)
        assert "the guard rolled back" in page.locator(".alarm").inner_text()
        assert "step=79" in page.url


@pytest.mark.slow
def test_a_run_deleted_while_open(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=20, every=0)
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a"))
        page.wait_for_selector(".chart canvas")
        shutil.rmtree(run)
        page.get_by_text("This run's folder is gone").wait_for(timeout=PATIENT)
        assert len(steps_in_table(page)) == 20  # what was read stays
        make_run(tmp_path / "runs", "a", "grpo_lr5e-4_mb2_s0", steps=7, every=0)
        until(page, "document.querySelector('section.chart').chart.lines[0].store.length === 7")
        assert page.get_by_text("This run's folder is gone").count() == 0
    page.problems[:] = [p for p in page.problems if "404" not in p]  # asked while it was being made


def test_a_torn_run_is_shown_with_what_could_not_be_read(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=5, every=0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    (run / "config.yaml").write_text("seed: [1\n")
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a"))
        page.get_by_text("was not written whole").wait_for()
        page.get_by_role("tab", name="Config").click()
        page.get_by_text("config.yaml cannot be read").wait_for()


def test_an_unknown_run_is_explained(page, server):
    page.goto(url_of(server, run="colapse"))
    page.get_by_text("did you mean 'collapse'").wait_for()
    page.problems.clear()  # the browser logs the 404


# ------------------------------------------------------------------------------------------------------- hostile text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run in which every text is a payload; its name is one, too."""
    root = tmp_path_factory.mktemp("hostile")
    name = "<img src=x onerror=window.__hit=1>"
    run = make_run(root, name, steps=12, every=0)
    rows = []
    for i, payload in enumerate(PAYLOADS):
        one = next(trajectories(0, payload))
        rows.append(one | {"sample_id": f"{payload} {i}", "group_id": PAYLOADS[i // 60], "correct": False})
        one["turns"][1]["info"]["answer"] = payload
        one["turns"][0]["info"] |= {"error": payload, "retrieved": [payload], "kind": payload}
    words = next(trajectories(0))
    words["sample_id"] = "tokens"
    turn = words["turns"][0]
    turn["action_tokens"], turn["action_ids"] = PAYLOADS, list(range(len(PAYLOADS)))
    for column in ("logprobs", "entropy", "advantages", "old_logprobs", "delta_logprobs"):
        turn[column] = [0.1] * len(PAYLOADS)
    with RunLog.open(run) as log:
        log.write_rollouts(0, [words, *rows])
        log.set_status("failed", message=PAYLOADS[0])
        log.evaluation({"step": 3, "split": PAYLOADS[1], PAYLOADS[2]: PAYLOADS[3]})
    with (run / "alarms.jsonl").open("a") as file:
        for level in ("warn", PAYLOADS[4]):
            alarm = {"id": PAYLOADS[5] + level, "step": 11, "rule": PAYLOADS[6], "level": level, "message": PAYLOADS[7]}
            alarm |= {"remedy": f"{PAYLOADS[8]} optim.lr={PAYLOADS[5]}", "groups": [PAYLOADS[9]], "rollouts": []}
            file.write(json.dumps(alarm | {"signals": {PAYLOADS[10]: {"value": 1, "threshold": PAYLOADS[11]}}}) + "\n")
    append_rows(run, [row(12) | {PAYLOADS[12]: 1.0}])
    with (run / "config.yaml").open("a") as file:
        file.write(json.dumps({PAYLOADS[13]: PAYLOADS[14]})[1:-1] + "\n")
    make_run(root, "plain", steps=12, every=0)
    with serving(root) as server:
        yield server, name


def inert(page):
    assert page.evaluate("window.__hit") is None
    odd = "script, iframe, img, object, embed, video, audio, form, marquee, math, template, style, link, base, meta"
    assert page.evaluate(f"document.querySelectorAll('main :is({odd})').length") == 0
    names = "[...document.querySelectorAll('main *')].flatMap((e) => e.getAttributeNames())"
    assert not [n for n in page.evaluate(names) if n.startswith("on")]
    links = page.evaluate("[...document.querySelectorAll('a')].map((a) => a.protocol)")
    assert set(links) <= {"http:", "blob:"}


def test_injected_text_is_inert(page, hostile):
    assert len(PAYLOADS) >= 200
    server, name = hostile
    page.goto(server)
    page.wait_for_selector("tbody tr:nth-child(2)")
    assert name in page.locator("tbody").inner_text() and PAYLOADS[0] in page.locator("tbody").inner_text()
    inert(page)
    page.goto(url_of(server, run=name))
    page.wait_for_selector(".chart canvas")
    page.locator("button.mark").last.click()
    page.wait_for_selector(".alarm")
    assert PAYLOADS[7] in page.locator(".alarm").inner_text()
    page.locator("summary", has_text="Other columns").click()
    page.wait_for_selector("details[open] .chart")
    inert(page)
    for tab in ("Alarms", "Config"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        inert(page)
    page.goto(url_of(server, "/compare", runs=f"{name},plain"))
    page.wait_for_selector(".chart canvas")
    page.wait_for_selector("td.differs")
    assert PAYLOADS[14] in page.locator("table").last.inner_text()
    inert(page)


def test_injected_rollouts_are_inert(page, hostile):
    server, name = hostile
    page.goto(url_of(server, run=name, tab="rollouts", step=0, sample="tokens"))
    page.wait_for_selector(".turn.agent")
    titles = page.locator(".list .q").evaluate_all("(cells) => cells.map((c) => c.title)")
    inert(page)
    assert all(any(p in t for t in titles) for p in PAYLOADS)
    page.get_by_role("button", name="Tokens").last.click()
    page.wait_for_selector(".map .t")
    page.locator(".map").focus()
    for _ in range(4):  # so that every part is made
        page.keyboard.press("End")
        page.keyboard.press("Home")
    assert page.locator(".map .t").count() == len(PAYLOADS) + 9
    texts = page.locator(".map .t").all_text_contents()
    assert [t.strip() for t in texts[: len(PAYLOADS)]] == [p.strip() for p in PAYLOADS]
    page.locator(".map .t").nth(3).hover()
    inert(page)
    seen = ""
    groups = page.get_by_label("Group", exact=True).locator("option").evaluate_all("(all) => all.map((o) => o.value)")
    for group in groups[1:]:
        page.get_by_label("Group", exact=True).select_option(group)
        page.get_by_role("button", name="Group", exact=True).last.click()
        page.wait_for_selector(".sibling")
        page.wait_for_timeout(200)
        inert(page)
        seen += page.locator(".siblings").evaluate("(e) => e.textContent")
    assert all(seen.count(p) >= 3 for p in PAYLOADS)  # in the action, the tool output, the error


# ------------------------------------------------------------------------------------------------- accessibility, size


VIEWS = {
    "list": ("/", {}),
    "charts": ("/run", {"alarm": "collapse-000081-critical"}),
    "conversation": ("/run", {"tab": "rollouts", "step": 81}),
    "tokens": ("/run", {"tab": "rollouts", "step": 81, "look": "tokens", "verdict": "incorrect"}),
    "group": ("/run", {"tab": "rollouts", "step": 81, "look": "group"}),
    "alarms": ("/run", {"tab": "alarms"}),
    "config": ("/run", {"tab": "config"}),
    "compare": ("/compare", {"runs": "collapse,healthy"}),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(page, server, view, theme):
    path, params = VIEWS[view]
    page.goto(url_of(server, path, run="collapse", theme=theme, **params))
    page.wait_for_load_state("networkidle") if path == "/" else page.wait_for_selector(
        ".chart canvas, .turn, .map .t, .alarm, pre"
    )
    page.wait_for_timeout(300)
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        (v["id"], v["help"], [n["target"] for n in v["nodes"]][:4])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert not serious, serious


def test_long_trajectories_are_made_piece_by_piece(page, tmp_path):
    run = make_run(tmp_path / "runs", "a", steps=3, every=0)
    long = long_trajectory(32_000)
    with RunLog.open(run) as log:
        log.write_rollouts(0, [long])
    with serving(tmp_path / "runs") as server:
        page.goto(url_of(server, run="a", tab="rollouts", step=0, look="tokens"))
        page.wait_for_selector(".map .t")
        assert page.locator(".map .t").count() < 8_000
        assert "32,000 sampled tokens" in page.locator(".readout").inner_text()
        page.locator(".map").focus()
        page.keyboard.press("End")
        assert "token 32000" in page.locator(".readout").inner_text()
        assert page.locator(".map .t.here").inner_text().strip() == "</think>"
        page.get_by_label("Colour tokens by").select_option("mismatch")
        value = long["turns"][0]["logprobs"][-1] - long["turns"][0]["old_logprobs"][-1]
        assert f"Sampler mismatch {value:.6g}"[:22] in page.locator(".readout").inner_text().replace("−", "-")


def test_javascript_is_small_and_plain():
    scripts = [*STATIC.rglob("*.js")]
    size = sum(len(gzip.compress(s.read_bytes())) for s in scripts)
    assert size < 150_000
    own = [s.read_text() for s in scripts if "vendor" not in s.parts]
    for text in own:
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "http://",
            "https://",
        ):
            assert word not in text.replace("http://www.w3.org/2000/svg", "")
