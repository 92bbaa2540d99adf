"""Unbiased pass@k against enumeration, and the intervals' coverage."""

import itertools
import random

import pytest

from agentrl.train.statistics import (
    SuiteResult,
    average,
    common,
    difference,
    differences,
    interval,
    make_table,
    pass_at_k,
    table,
    to_json,
)


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


def test_no_questions_have_no_average():
    with pytest.raises(ValueError, match="no questions"):
        interval([])


@pytest.mark.parametrize(
    ("counts", "trials"),
    [
        (((4, 3),), 4),  # one question: the error within it, as of four trials
        (((4, 2), (4, 2), (4, 2)), 12),  # few questions with equal shares: no less than twelve trials can give
        (((4, 4), (4, 4)), 2),  # all right: nothing is known of how alike a question's responses are
        (((1, 1), (1, 0), (1, 1)), 3),
    ],
)
def test_an_interval_never_has_no_width(counts, trials):
    """75.0 [75.0, 75.0] for one question sampled four times; Wilson's formula for so many trials, written out."""
    e = SuiteResult("s", counts).average()
    p, z = e.value, 1.959964
    half = z * (p * (1 - p) / trials + z * z / (4 * trials**2)) ** 0.5
    low, high = (((p + z * z / (2 * trials)) + s * half) / (1 + z * z / trials) for s in (-1, 1))
    assert (e.low, e.high) == pytest.approx((max(low, 0), min(high, 1))) and e.high > e.low


def test_questions_that_differ_count_for_more_than_their_responses():
    """Responses of one question that are all alike are one trial, however many there are."""
    alike = SuiteResult("s", ((8, 8), (8, 0)) * 10).average()
    single = SuiteResult("s", ((1, 1), (1, 0)) * 10).average()
    assert alike.high - alike.low == pytest.approx(single.high - single.low, rel=0.05)
    mixed = SuiteResult("s", ((8, 4),) * 20).average()
    assert mixed.high - mixed.low < 0.5 * (single.high - single.low)


@pytest.mark.parametrize(("questions", "samples"), [(8, 4), (25, 4), (60, 2), (60, 8)])
def test_intervals_of_sampled_responses_hold_the_truth(questions, samples):
    """Each question has a chance of its own, drawn evenly: 0.5 on the whole."""
    rng, hits = random.Random(2), 0
    for _ in range(400):
        chances = [rng.random() for _ in range(questions)]
        counts = tuple((samples, sum(rng.random() < c for _ in range(samples))) for c in chances)
        e = SuiteResult("s", counts).average()
        hits += e.low <= 0.5 <= e.high
    assert 0.91 <= hits / 400 <= 0.995


def test_a_paired_difference_is_narrower_than_two_rows_and_has_a_width():
    rng = random.Random(3)
    a = [float(rng.random() < 0.5) for _ in range(200)]
    b = [x if rng.random() < 0.9 else 1.0 for x in a]
    d = difference(a, b)
    assert d == difference(a, b) and d.value == pytest.approx((sum(b) - sum(a)) / 200) and d.low > 0
    assert d.high - d.low < 0.5 * (interval(a).high - interval(a).low)
    same = difference(a[:10], a[:10])
    assert same.value == 0 and same.low < 0 < same.high
    with pytest.raises(ValueError, match="same questions"):
        difference(a, b[:5])


@pytest.mark.slow
def test_paired_differences_hold_the_truth():
    rng, hits = random.Random(4), 0
    for _ in range(300):
        a = [float(rng.random() < 0.4) for _ in range(80)]
        b = [1.0 if x else float(rng.random() < 0.2) for x in a]  # 0.12 more
        d = difference(a, b)
        hits += d.low <= 0.12 <= d.high
    assert 0.9 <= hits / 300 <= 0.99


def test_rows_of_one_table_are_over_one_set_of_questions():
    """Greedy over 4, avg@3 over 6 and pass@2 over 5 stood in one table."""
    greedy = SuiteResult("s", ((1, 1), (0, 0), (1, 0), (1, 1)), 1, 1, ("a", "b", "c", "d"))
    sampled = SuiteResult("s", ((3, 2), (3, 1), (1, 1), (0, 0)), 5, 3, ("a", "b", "c", "d"))
    rows = {"greedy": [greedy], "T=1": [sampled]}
    assert [s.names for one in common(rows).values() for s in one] == [("a", "c"), ("a", "c")]
    made = make_table(rows)
    assert list(made.cells) == ["greedy", "T=1 avg@3", "T=1 pass@2", "T=1 pass@3"]  # as asked for, not as it came
    assert made.sizes == {"s": 2} and made.lost == {("greedy", "s"): ("b",), ("T=1", "s"): ("d",)}
    assert made.cells["greedy"][0].value == 0.5 and made.cells["T=1 avg@3"][0].value == pytest.approx((2 / 3 + 1) / 2)
    text = table(rows).splitlines()
    assert "n=" not in text[1] and "n=" not in text[2] and "n=1" in text[3] and "n=1" in text[4]
    with pytest.raises(ValueError, match="s: there is no question that every row has a response for"):
        common({"x": [greedy.on({"b"})], "y": [sampled]})


def test_a_cell_that_cannot_be_measured_is_a_dash():
    one = SuiteResult("s", ((1, 1), (1, 0)), 4, 3)
    assert [line.split()[-1] for line in table({"T=1": [one]}).splitlines()[2:]] == ["–", "–"]
    assert to_json({"T=1": [one]})["T=1"]["suites"]["s"]["pass@2"] is None


def test_differences_are_between_rows_of_one_kind():
    a, b = SuiteResult("s", ((1, 1), (1, 0))), SuiteResult("s", ((1, 1), (1, 1)))
    rows = {"a greedy": [a], "b greedy": [b], "b T=1": [SuiteResult("s", ((4, 1), (4, 1)))]}
    found = differences(rows, "a greedy")
    assert list(found) == ["b greedy − a greedy"] and found["b greedy − a greedy"][0].value == 0.5


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
