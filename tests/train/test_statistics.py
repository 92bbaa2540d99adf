"""Unbiased pass@k against enumeration, and the intervals' coverage."""

import itertools
import random

import pytest

from agentrl.train.statistics import SuiteResult, average, interval, pass_at_k, table, to_json


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 1), (5, 5, 3), (6, 2, 1), (6, 2, 3), (7, 3, 5), (4, 1, 4)])
def test_pass_at_k_is_the_mean_over_all_draws(n, c, k):
    responses = [1] * c + [0] * (n - c)
    draws = [max(d) for d in itertools.combinations(responses, k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws))


def test_pass_at_k_refuses_what_it_cannot_estimate():
    with pytest.raises(ValueError, match=r"raise eval\.samples"):
        pass_at_k(4, 1, 5)
    with pytest.raises(ValueError, match="impossible"):
        pass_at_k(4, 5, 2)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_intervals_hold_the_truth_about_95_times_in_a_hundred(share):
    rng = random.Random(0)
    hits = 0
    for _ in range(400):
        e = interval([float(rng.random() < share) for _ in range(60)])
        hits += e.low <= share <= e.high
    assert 0.91 <= hits / 400 <= 0.99


def test_the_averages_interval_holds_the_truth_about_95_times_in_a_hundred():
    rng = random.Random(1)
    suites = [(0.1, 30), (0.55, 40), (0.8, 200)]  # sizes as those of AIME24, AMC23 and larger sets
    truth = sum(share for share, _ in suites) / 3
    hits = 0
    for _ in range(400):
        e = average([interval([float(rng.random() < share) for _ in range(n)]) for share, n in suites])
        hits += e.low <= truth <= e.high
    assert 0.91 <= hits / 400 <= 0.99


def test_the_average_weighs_every_set_alike_and_one_set_is_itself():
    a, b = interval([0.0] * 30), interval([1.0] * 10)
    both = average([a, b])
    assert both.value == 0.5 and both.n == 40 and a.high / 2 + 0.5 == pytest.approx(both.high)
    assert average([a]) == a


def test_bootstrap_is_used_for_shares_and_is_repeatable():
    values = [0.25, 0.5, 0.75, 1.0, 0.0, 0.5]
    assert interval(values) == interval(values)
    assert interval(values).low < 0.5 < interval(values).high
    with pytest.raises(ValueError, match="no questions"):
        interval([])


def test_table_has_suites_across_and_the_average_last():
    rows = {
        "GRPO": [SuiteResult("AIME24", ((4, 1), (4, 0))), SuiteResult("AMC23", ((4, 4), (4, 2)))],
        "NTHR": [SuiteResult("AIME24", ((4, 2), (4, 0))), SuiteResult("AMC23", ((4, 4), (4, 4)))],
    }
    text = table(rows, [1, 4]).splitlines()
    assert text[0].split() == ["method", "AIME24", "AMC23", "average"]
    assert text[1].startswith("GRPO avg@4") and " 43.8 [" in " " + text[1].rpartition("]  ")[2]  # (12.5 + 75) / 2
    assert text[2].startswith("GRPO pass@4") and " 75.0 [" in " " + text[2].rpartition("]  ")[2]
    assert table(rows, [1], "markdown").splitlines()[1] == "|---|---|---|---|"
    assert to_json(rows, [4])["NTHR"]["suites"]["AMC23"]["avg"]["value"] == 1.0
    averages = to_json(rows, [4])["GRPO"]["averages"]
    assert averages["avg"]["value"] == pytest.approx(0.4375) and averages["pass@4"]["value"] == 0.75
    assert averages["avg"]["low"] < averages["avg"]["value"] < averages["avg"]["high"]
    with pytest.raises(ValueError, match="was evaluated on"):
        table({"a": rows["GRPO"], "b": rows["GRPO"][:1]}, [1])
