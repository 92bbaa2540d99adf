"""Training several methods from one checkpoint under a harsh setting."""

import pytest

from agentrl.config.files import load_config
from agentrl.lab.spiral import PANELS, SpiralResult, half_fall, plot_spiral, run_spiral
from agentrl.runs.read import read_metrics, read_rollouts
from tests.small import small_config


@pytest.fixture(scope="module")
def spiral(warm_model, tmp_path_factory):
    """Two methods for two steps each."""
    out = tmp_path_factory.mktemp("spiral")
    config = small_config(out, optim={"warmup_steps": 1, "lr": 2e-3}, train={"mini_batches": 4, "epochs": 2})
    said = []
    result = run_spiral(config, warm_model, out, ["grpo", "nthr"], steps=2, say=said.append)
    return out, result, said


def test_runs_differ_in_the_method_alone(spiral):
    out, result, _ = spiral
    configs = {m: load_config(out / m / "config.yaml", []).config for m in ("grpo", "nthr")}
    assert not configs["grpo"].algorithm.nthr.enabled and configs["nthr"].algorithm.nthr.enabled
    for c in configs.values():
        assert (c.optim.lr, c.optim.warmup_steps, c.train.steps) == (2e-3, 1, 2)
        assert (c.train.mini_batches, c.train.epochs) == (4, 2)
    assert {m: len(rows) for m, rows in result.rows.items()} == {"grpo": 2, "nthr": 2}


def test_they_start_from_the_same_weights_questions_and_samples(spiral):
    out, result, _ = spiral
    first = [[[t["action_ids"] for t in r["turns"]] for r in read_rollouts(out / m, 0)] for m in ("grpo", "nthr")]
    assert first[0] == first[1] != []
    a, b = (result.rows[m][0] for m in ("grpo", "nthr"))
    for name in ("reward", "logprob_correct", "entropy"):
        assert a[name] == pytest.approx(b[name], rel=1e-4)  # with NTHR the same pass goes another way
    assert a["grad_norm"] != b["grad_norm"]


def test_the_result_is_what_the_runs_logged(spiral):
    out, result, _ = spiral
    assert result.rows["nthr"] == list(read_metrics(out / "nthr"))


def test_half_fall_by_hand():
    rising, low = [0.1 * i for i in range(10)], [0.05] * 20
    at = half_fall(rising + low)
    means = [sum((rising + low)[i - 4 : i + 1]) / 5 for i in range(4, 30)]
    peak = max(means)
    assert at == 4 + next(i for i, m in enumerate(means) if i > means.index(peak) and m < peak / 2)
    assert half_fall(rising + [0.9] * 20) is None
    assert half_fall(rising + [0.0] * 4 + [0.9] * 20) is None  # a dip that does not last
    assert half_fall([0.1] * 5 + [0.0] * 20) is None  # never above the floor
    assert half_fall([]) is None and half_fall([0.5, 0.1]) is None


@pytest.mark.slow
def test_table_and_figure_bear_what_a_run_may_lack(tmp_path):
    full = [{"step": i, "reward": 0.5, "logprob_correct": -0.1, "entropy": 0.3, "grad_norm": 1.0} for i in range(8)]
    dead = [{"step": i, "reward": 0.5 if i < 10 else 0.0, "delta_correct": -1.0} for i in range(40)]
    result = SpiralResult({"grpo": full, "nthr": dead})
    table = result.table()
    assert table[0][2] == "last 20" and table[1] == ("grpo", "0.50", "0.50", "0.50", "–", "–")
    assert (
        table[2][2] == "0.00" and table[2][4] == str(half_fall([r["reward"] for r in dead])) and table[2][5] == "1.00"
    )
    written = plot_spiral(result, tmp_path / "spiral")
    assert len(written) == 4 and all(p.stat().st_size > 5_000 for p in written)
    svg = next(p for p in written if p.name == "spiral-light.svg").read_text()
    assert "grpo" in svg and len(PANELS) == 4
