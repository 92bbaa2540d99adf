"""Others' rollouts in the browser: conversation, tokens, worst and best, search, one prompt, another grader."""

import json
from pathlib import Path

import pytest

from agentrl.cli import main
from tests.dashboard.conftest import serving
from tests.dashboard.payloads import PAYLOADS
from tests.dashboard.test_browser import until

pytestmark = pytest.mark.browser

DATA = Path(__file__).parent.parent / "runs" / "data" / "rollouts"


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    root = tmp_path_factory.mktemp("others")
    for name in ("verl", "prime_rl", "verifiers"):
        assert main(["import", str(DATA / name), "--to", str(root / name)]) == 0
    hostile = root / "hostile.jsonl"
    hostile.write_text(
        "".join(
            json.dumps({"input": f"user\n{p}\nassistant\n", "output": f"<information>{p}</information>{p}", "gts": p,
                        "uid": p, "pred": p, "score": float(i), "step": 1}) + "\n"
            for i, p in enumerate(PAYLOADS)
        )
    )  # fmt: skip
    assert main(["import", str(hostile), "--to", str(root / "hostile")]) == 0
    row = {"schema_version": 1, "step": 1, "token_ids": [1, 2, 3], "loss_mask": [False, True, True]}
    gaps = root / "gaps.jsonl"
    gaps.write_text(json.dumps(row | {"inference_logprobs": [None, None, -0.5]}) + "\n")
    assert main(["import", str(gaps), "--to", str(root / "gaps")]) == 0
    assert main(["rollouts", "grade", str(root / "verl"), "--grader", "tests.dashboard.test_others_browser:never"]) == 0
    return root


def never(answer, golden):
    """Nothing is correct."""
    return 0.0


@pytest.fixture(scope="module")
def site(others):
    with serving(others) as url:
        yield url


def rows(page):
    return page.locator("table tr.pick")


def test_a_conversation_of_verl_with_its_tool_output_and_system_prompt(page, site):
    page.goto(f"{site}/run?run=verl&tab=rollouts&step=1")
    rows(page).nth(2).click()
    page.wait_for_selector(".turn.tool")
    assert "<information>Doc 1: Ada Rowan was born in Varn. <b>x</b>" in page.locator(".turn.tool").inner_text()
    assert page.locator(".turn.agent").count() == 2
    assert "Where was Ada Rowan born?" in page.locator(".turn.ask").first.inner_text()
    page.get_by_text("System prompt").click()
    assert "You answer with a search tool." in page.locator(".turn.ask").first.inner_text()
    assert "expected: Varn" in page.locator(".turn.ask").first.inner_text()


def test_worst_and_best_come_first(page, site):
    page.goto(f"{site}/run?run=verl&tab=rollouts&step=1")
    rows(page).first.wait_for()
    page.get_by_label("Order").select_option("worst")
    until(page, "document.querySelector('tr.pick td.num').textContent === '0'")
    rewards = [float(t) for t in page.locator("tr.pick td:nth-child(2)").all_inner_texts()]
    assert rewards == sorted(rewards) and len(rewards) == 8
    page.get_by_label("Order").select_option("best")
    until(page, "document.querySelector('tr.pick td.num').textContent === '1'")
    assert "order=best" in page.url


def test_a_search_through_all_steps(page, site):
    page.goto(f"{site}/run?run=verl&tab=rollouts&step=1")
    rows(page).first.wait_for()
    page.get_by_label("all steps").check()
    page.get_by_label("Search questions and answers").fill("OLD KELD")
    page.get_by_text("All 3 stored steps searched.").wait_for()
    assert rows(page).count() == 8
    steps = page.locator("tr.pick td:nth-child(2)").all_inner_texts()
    assert {*steps} == {"1", "2", "3"}
    page.locator("tr.pick[data-step='2']").first.click()
    until(page, "document.querySelector('.detail')?.textContent.includes('Old Keld')")
    page.reload()  # the address says it all
    page.get_by_text("All 3 stored steps searched.").wait_for()
    assert rows(page).count() == 8
    page.get_by_label("all steps").uncheck()
    until(page, "document.querySelectorAll('tr.pick').length < 8")


def test_all_rollouts_of_one_prompt(page, site):
    page.goto(f"{site}/run?run=verl&tab=rollouts&step=3")
    rows(page).first.click()
    page.get_by_role("button", name="All of this prompt").click()
    until(page, "document.querySelectorAll('tr.pick').length === 12")
    page.get_by_role("button", name="One prompt").click()
    until(page, "document.querySelectorAll('tr.pick').length === 8")


def test_another_grader_stands_beside_the_reward_and_can_be_filtered(page, site):
    page.goto(f"{site}/run?run=verl&tab=rollouts&step=1")
    rows(page).first.wait_for()
    heads = page.locator(".list thead th").all_inner_texts()
    assert any(h.endswith("never") for h in heads)
    assert page.locator("td.differs").count() == 6
    page.get_by_label("Outcome").select_option("differs")
    until(page, "document.querySelectorAll('tr.pick').length === 6")


def test_the_token_map_of_prime_rls_exports(page, site):
    page.goto(f"{site}/run?run=prime_rl&tab=rollouts&look=tokens")
    page.wait_for_selector(".map .t")
    assert [t.strip() for t in page.locator(".map .t").all_inner_texts()] == ["#10", "#11", "#12"]
    options = page.get_by_label("Colour tokens by").locator("option:not([disabled])").all_inner_texts()
    assert {"Advantage", "Entropy", "Sampler mismatch", "Surprise (−log π)"} == {*options}
    assert page.locator(".verdict").first.inner_text() == "· not judged"
    assert page.locator("tr.pick td:nth-child(2)").first.inner_text() == "–"  # no reward, and no 0 in its place


def test_a_value_that_is_missing_is_no_zero(page, site):
    page.goto(f"{site}/run?run=gaps&tab=rollouts&look=tokens")
    page.wait_for_selector(".map .t")
    page.locator(".map .t").nth(1).hover()
    until(page, "document.querySelector('.readout').textContent.includes('Surprise (−log π) 0.5')")
    page.locator(".map .t").nth(0).hover()
    until(page, "document.querySelector('.readout').textContent.includes('token 1, id 2')")
    assert "Surprise" not in page.locator(".readout").inner_text()


def test_verl_has_no_tokens_and_says_so(page, site):
    page.goto(f"{site}/run?run=verl&tab=rollouts&step=1&look=tokens")
    page.get_by_text("This trajectory has no sampled tokens.").wait_for()
    assert page.locator("tr.pick td:last-child").first.inner_text() == "–"


def test_the_logprobs_of_verifiers_are_on_its_tokens(page, site):
    page.goto(f"{site}/run?run=verifiers&tab=rollouts&sample=trace1&look=tokens")
    page.wait_for_selector(".map .t")
    page.locator(".map .t").nth(3).hover()
    until(page, "document.querySelector('.readout').textContent.includes('Surprise (−log π) 0.5')")


def test_hostile_rollouts_of_others_stay_text(page, site):
    page.goto(f"{site}/run?run=hostile&tab=rollouts&step=1")
    rows(page).first.wait_for()
    for i in range(0, rows(page).count(), 20):
        rows(page).nth(i).click()
        page.wait_for_selector(".turn.agent")
    assert rows(page).count() == len(PAYLOADS)
    assert page.evaluate("window.__hit === undefined")
    assert page.locator(".detail img, .detail script, .list img, .list script").count() == 0
