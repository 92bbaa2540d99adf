"""Console logs, as the trainers' own code prints them: sources in the docstrings of agentrl/monitors/sources."""

import math
import pprint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.monitors import guess_mapping
from agentrl.monitors.sources import StepAssembler, open_source
from agentrl.monitors.sources.console import clean, plain_number
from agentrl.monitors.sources.verl import Verl


def verl_line(step, data):
    """What verl 0.9.1's `concat_dict_to_str` prints, written from its definition: numbers by pprint, " - " between."""
    return " - ".join([f"step:{step}", *(f"{k}:{pprint.pformat(v)}" for k, v in data.items())])


def steps_of(path, **options):
    source, assembler = open_source(path, **options), StepAssembler()
    rows = []
    while found := source.poll(final=True):
        rows += [done for row in found for done in assembler.add(row)]
    return source, [(r.step, r.values) for r in rows + assembler.flush()]


names = st.from_regex(r"[a-z_]{1,8}(/[a-z_@0-9]{1,8}){0,2}", fullmatch=True)
numbers = st.floats(allow_nan=False) | st.integers(-(10**9), 10**9)


@given(st.integers(0, 10**6), st.dictionaries(names, numbers, min_size=1, max_size=12))
def test_every_line_that_verl_can_print_is_read_back(step, data):
    row = Verl.__new__(Verl)
    row.problems, row.where = {}, {}
    found = row.parse(clean(f"\x1b[36m(TaskRunner pid=46086, ip=10.0.0.1)\x1b[0m {verl_line(step, data)}"))
    assert found.step == step and found.values == {k: float(v) for k, v in data.items()}


def test_a_verl_log_with_everything_around_it(tmp_path):
    file = tmp_path / "out.log"
    lines = ["config: lr, betas, 0.9, 0.99", "a,b,c", "(TaskRunner pid=1) INFO 08-12 12:00:01 loading, please wait"]
    for step in range(1, 6):
        line = f"step:{step} - actor/entropy:np.float64(0.5) - critic/score/mean:{step / 10} - note:abc"
        line += " - x:nan - n:np.int32(3)"
        lines += [
            f"\x1b[36m(TaskRunner pid=46086)\x1b[0m {line}",
            "Training Progress:  10%|█ | 3/30 [00:01<00:09]\r  20%",
        ]
        lines.append(f"(WorkerDict pid=2, ip=10.1.2.3) {line}")  # another rank prints it, too
    file.write_text("\n".join(lines) + "\nstep:6 - actor/entropy:0.4 - critic/sco")
    source, steps = steps_of(file)
    assert source.kind == "verl console"
    assert [s for s, _ in steps] == [1, 2, 3, 4, 5, 6]
    values = steps[0][1]
    assert (values["actor/entropy"], values["critic/score/mean"], values["n"]) == (0.5, 0.1, 3.0)
    assert values["x"] != values["x"] and "note" not in values
    assert steps[-1][1] == {"actor/entropy": 0.4}  # cut inside its line


def test_trl_and_transformers_lines(tmp_path):
    file = tmp_path / "trl.log"
    file.write_text(
        "  0%|          | 0/3 [00:00<?, ?it/s]\r 33%|███▎      | 1/3 [00:01<00:02]\n"
        "{'loss': 0.1, 'grad_norm': np.float32(0.3), 'reward': '0.25', 'completions/mean_length': 211, 'epoch': 0.1}\n"
        "\r 66%|██████▋   | 2/3 [00:02<00:01]{'loss': 'nan', 'reward': 0.5, 'epoch': 0.2}\n"
        "{'eval_reward': 0.4, 'epoch': 0.2}\n"
        "{'loss': 1e-05, 'reward': 0.75, 'epoch': 0.3}\n"
        "{'train_runtime': 12.3, 'train_loss': 0.1}\n"
    )
    source, steps = steps_of(file)
    assert source.kind == "console (dictionaries)"
    assert [(s, v["reward"]) for s, v in steps] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert steps[0][1]["grad_norm"] == pytest.approx(0.3) and steps[1][1]["eval_reward"] == 0.4


def test_openrlhf_slime_and_skyrl_dictionaries(tmp_path):
    openrlhf = tmp_path / "a.log"
    openrlhf.write_text(
        "(PPOTrainer pid=7) 2025-01-01 INFO ppo_trainer:120 ✨ Global step 3: {'policy_loss': 0.1, 'reward': 0.4, "
        "'timing/generation': 1.5}\n"
        "(PPOTrainer pid=7) ✨ Global step 4: {'policy_loss': 0.2, 'reward': 0.5}\n"
    )
    assert [(s, v["reward"]) for s, v in steps_of(openrlhf)[1]] == [(3, 0.4), (4, 0.5)]
    slime = tmp_path / "b.log"
    slime.write_text(
        "[2025-01-01] rollout.py:10 - perf 0: {'perf/rollout_time': 4.5}\n"
        "rollout 0: {'rollout/raw_reward': 0.3, 'rollout/response_lengths': 100.0}\n"
        "step 0: {'train/entropy_loss': 0.9, 'train/grad_norm': 1.0}\n"
        "step 1: {'train/entropy_loss': 0.8, 'train/grad_norm': 2.0}\n"
        "rollout 1: {'rollout/raw_reward': 0.4}\nstep 2: {'train/entropy_loss': 0.7}\n"
    )
    steps = steps_of(slime)[1]
    assert [s for s, _ in steps] == [0, 1]
    assert steps[0][1]["train/entropy_loss"] == 0.8 and steps[0][1]["rollout/raw_reward"] == 0.3
    skyrl = tmp_path / "c.log"
    skyrl.write_text(
        "(skyrl_entrypoint pid=1) 2025-01-01 | INFO | Step 5: \n"
        "(skyrl_entrypoint pid=1) {'policy/policy_entropy': '0.5000',\n"
        "(skyrl_entrypoint pid=1)  'reward/avg_raw_reward': '0.2500'}\n"
    )
    assert steps_of(skyrl)[1] == [(5, {"policy/policy_entropy": 0.5, "reward/avg_raw_reward": 0.25})]


def test_prime_rl_nemo_rl_and_areal(tmp_path):
    prime = tmp_path / "p.log"
    prime.write_text(
        "12:00:00 SUCCESS Step 3 | Time: 3.20s | Reward: 0.3100 | Throughput: 900.5 tokens/s | Seq. Length: 210.0 "
        "tokens/sample\nSUCCESS Step 3 | Time: 1.20s | Loss: 0.01 | Entropy: 0.5 | Grad. Norm: 0.20 | LR: 1.00e-06\n"
    )
    source, steps = steps_of(prime)
    assert source.kind == "prime-rl console"
    assert steps[0][0] == 3 and steps[0][1]["Reward"] == 0.31 and steps[0][1]["LR"] == 1e-6
    assert steps[0][1]["Seq. Length"] == 210.0
    nemo = tmp_path / "n.log"
    nemo.write_text(
        "========================= Step 1/100 =========================\n▶ Generating responses\n"
        "\n📊 Training Results:\n  • Loss: 0.0100\n  • Avg Reward: 0.2500\n  • Mean Generation Length: 201.2\n"
        "⏱️  Timing:\n  • Total step time: 35.70s\n  • generation: 4.95s (13.9%)\n"
        "========================= Step 2/100 =========================\n"
        "📊 Training Results:\n  • Avg Reward: 0.3000\n📊 Validation Results:\n    • Accuracy: 0.4000\n"
    )
    source, steps = steps_of(nemo)
    assert source.kind == "NeMo-RL console" and [s for s, _ in steps] == [1, 2]
    assert steps[0][1]["Avg Reward"] == 0.25 and steps[0][1]["generation"] == 4.95
    assert steps[1][1] == {"Avg Reward": 0.3, "validation/Accuracy": 0.4}
    areal = tmp_path / "r.log"
    areal.write_text(
        "INFO StatsLogger: Epoch 1/2 Step 3/9 Train step 3/18 done.\nStats (1/1):\n"
        "╒═══════╤════════╕\n│ ppo_actor/task_reward/avg │ 2.5000e-01 │ timeperf/rollout │ 1.2000e+01 │\n"
        "╘═══════╧════════╛\n"
    )
    source, steps = steps_of(areal)
    assert source.kind == "AReaL console"
    assert steps == [(3, {"ppo_actor/task_reward/avg": 0.25, "timeperf/rollout": 12.0})]


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("np.float64(0.27)", 0.27), ("tensor(1.5)", 1.5), ("tensor(2., device='cuda:0')", 2.0),
     ("1,234", 1234.0), ("45.0%", 0.45), ("12.3s", 12.3), ("-1e-5", -1e-5), ("abc", None), ("", None),
     ("0.5x)(", None)],
)  # fmt: skip
def test_numbers_as_consoles_have_them(text, value):
    assert plain_number(text) == (None if value is None else pytest.approx(value))


@given(st.text(max_size=200))
def test_no_line_of_text_is_an_error(text):
    verl = Verl.__new__(Verl)
    verl.problems, verl.where = {}, {}
    for line in (text, f"step:3 - {text}", f"step:{text} - a:1"):
        verl.parse(clean(line))


LOGS = Path(__file__).parents[1] / "data" / "logs"


@pytest.mark.parametrize(
    ("name", "kind", "steps", "reward", "trainer"),
    [
        ("verl-0.9.1.log", "verl console", 40, "critic/score/mean", "verl"),
        ("trl.log", "console (dictionaries)", 20, "reward", "TRL"),
    ],
)
def test_what_the_packages_themselves_wrote(name, kind, steps, reward, trainer):
    source, found = steps_of(LOGS / name)
    assert source.kind == kind and [s for s, _ in found] == list(range(1, steps + 1)) and not source.problems
    mapping = guess_mapping({k for _, values in found for k in values})
    assert mapping.trainer == trainer and mapping.columns["reward"] == reward
    assert all({"reward", "entropy", "grad_norm"} <= mapping.apply(values).keys() for _, values in found)


@pytest.mark.parametrize(
    ("name", "kind", "first", "signals"),
    [
        (
            "openrlhf",
            "console (dictionaries)",
            1,
            "entropy grad_norm clip_fraction truncated_share t_rollout_s validation",
        ),
        ("skyrl", "console (dictionaries)", 1, "entropy grad_norm clip_fraction kl response_length t_step_s"),
        ("slime", "console (dictionaries)", 0, "entropy grad_norm clip_fraction lr truncated_share validation"),
        (
            "prime_rl",
            "prime-rl console",
            0,
            "entropy grad_norm kl_sampler lr truncated_share turns t_step_s validation",
        ),
        ("nemo_rl", "NeMo-RL console", 1, "loss kl_sampler response_length t_step_s t_rollout_s validation"),
        ("areal", "AReaL console", 1, "entropy grad_norm clip_fraction lr response_length truncated_share t_rollout_s"),
        ("rllm", "verl console", 1, "entropy grad_norm"),
    ],
)
def test_what_the_trainers_own_code_printed(name, kind, first, signals):
    """Written by scripts/console_logs.py: twelve steps whose reward rises."""
    source, found = steps_of(LOGS / f"{name}.log")
    assert source.kind == kind and [s for s, _ in found] == list(range(first, first + 12)) and not source.problems
    mapping = guess_mapping({k for _, values in found for k in values})
    rows = [mapping.apply(values) for _, values in found]
    wanted = [0.2 + 0.03 * n + 0.01 * math.sin(n) for n in range(12)]
    share = 0.75 if name == "rllm" else 1.0  # two agents, one of which gets half
    assert [row["reward"] for row in rows] == pytest.approx([w * share for w in wanted], abs=1e-3)
    logged = set().union(*rows)
    assert set(signals.split()) <= logged


def test_what_a_model_says_is_no_metric(tmp_path):
    """OpenRLHF prints a sample of the model's own words beside its metrics."""
    file = tmp_path / "a.log"
    sample = "INFO ppo_trainer.py:224] Sample: [\"I get {'reward': 9.0}\", 0.5]\nINFO x] {'reward': 8.0}\n"
    own = "INFO ppo_trainer.py:551] ✨ Global step {n}: {'policy_loss': 0.1, 'reward': 0.25}\n"
    file.write_text(
        "".join((sample if n > 1 else sample.partition("\n")[0] + "\n") + own.replace("{n}", str(n)) for n in (1, 2, 3))
    )
    assert [(s, v["reward"]) for s, v in steps_of(file)[1]] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    trl = tmp_path / "b.log"
    trl.write_text("{'loss': 0.1, 'reward': 0.25} 33%|███  | 1/3\n{'loss': 0.1, 'reward': 0.5}\n")
    assert [v["reward"] for _, v in steps_of(trl)[1]] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("text", "seconds"), [("32s", 32), ("650ms", 0.65), ("1m 5s", 65), ("2h 3m", 7380), ("1d", 86400)]
)
def test_prime_rls_times(tmp_path, text, seconds):
    file = tmp_path / "p.log"
    file.write_text(f"SUCCESS Step 3 | {text:>7} | Reward 0.31 | Trainable 7/8 (87.5%) | Error nan%\n")
    [(step, values)] = steps_of(file)[1]
    assert (step, values["Time"], values["Reward"]) == (3, seconds, 0.31) and "Trainable" not in values
