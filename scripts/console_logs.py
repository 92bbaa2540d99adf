"""Console logs that other trainers' own code writes, from their sources: tests/monitors/data/logs.

    python scripts/console_logs.py SOURCES OUT [NAME ...]

SOURCES has checkouts named as in TRAINERS. Needs torch, loguru, tabulate and colorlog. What prints is theirs:
a module is imported, or a function, a class or the statements between two lines are taken out of their file and run,
with everything that needs a GPU, a cluster or a tracker replaced by a mock. The numbers are made up: reward rises over
STEPS steps. One log each.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.util
import io
import logging
import math
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

STEPS = 12


def reward(step: int) -> float:
    """Of the made-up run."""
    return round(0.2 + 0.03 * step + 0.01 * math.sin(step), 4)


class Mocked(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of these names, and all below them, are mocks."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """A spec for what is mocked."""
        if any(name == n or name.startswith(f"{n}.") for n in self.names):
            return importlib.util.spec_from_loader(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        """The mock."""
        made = MagicMock(name=spec.name)
        made.__path__, made.__spec__, made.__name__ = [], spec, spec.name
        return made

    def exec_module(self, module: Any) -> None:
        """Nothing to run."""


@contextlib.contextmanager
def using(folder: Path, *mocked: str) -> Iterator[None]:
    """The packages of `folder` can be imported; `mocked` are mocks."""
    finder, before = Mocked(*mocked), set(sys.modules)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in {n.partition(".")[0] for n in mocked} | {folder.name}:
                del sys.modules[name]


def taken(file: Path, name: str, names: dict[str, Any]) -> Any:
    """The function or class `name` (`Class.method`) of a file, run with `names` in place of its module."""
    body: Any = ast.parse(file.read_text())
    for part in name.split("."):
        body = next(n for n in body.body if getattr(n, "name", None) == part)
    names = {"__name__": "taken", **names}
    module = ast.parse("from __future__ import annotations")
    body.decorator_list = []
    module.body.append(body)
    exec(compile(module, str(file), "exec"), names)
    return names[name.rpartition(".")[2]]


def statements(file: Path, first: str, last: str) -> Any:
    """The compiled statements from the line that has `first` to the one that has `last`, as a block of their own."""
    lines = file.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines[start:], start) if last in line)
    return compile(textwrap.dedent("\n".join(lines[start : end + 1])), str(file), "exec")


def statement(file: Path, text: str) -> Any:
    """The first compiled statement without others in it that has `text`."""
    whole = file.read_text()
    found = next(n for n in ast.walk(ast.parse(whole)) if isinstance(n, ast.Expr) and text in _segment(whole, n))
    return compile(ast.Module([found], []), str(file), "exec")


def openrlhf(source: Path) -> None:
    """`PPOTrainer.fit`, `train_step` and `evaluate`, with the workers' status made up."""
    import torch

    heavy = (
        "ray",
        "deepspeed",
        "vllm",
        "pylatexenc",
        "openrlhf.datasets",
        "openrlhf.models",
        "openrlhf.utils.deepspeed",
        "openrlhf.utils.utils",
        "openrlhf.trainer.ray",
        "openrlhf.trainer.ppo_utils.experience_maker",
        "openrlhf.trainer.ppo_utils.samples_generator",
        "openrlhf.trainer.ppo_utils.experience",
    )
    with using(source, *heavy):
        import ray

        ray.remote, ray.get = (lambda one: one), (lambda refs: refs)
        module = importlib.import_module("openrlhf.trainer.ppo_trainer")
        trainer: Any = object.__new__(module.PPOTrainer)
        at = iter(range(STEPS))

        def experience(_samples: Any) -> list[Any]:
            trainer.now = next(at)
            r = torch.tensor([reward(trainer.now), 0.0, 1.0, reward(trainer.now)])
            return [
                types.SimpleNamespace(
                    info={"reward": r},
                    response_length=torch.tensor([120.0, 90, 80, 110]),
                    truncated=torch.tensor([0.0, 0, 0, 1]),
                    sequences=torch.zeros(1, 4),
                )
            ]

        def status(**call: Any) -> list[dict[str, float]]:
            if call["method_name"] != "fit":
                return []
            return [
                {
                    "policy_loss": -0.01,
                    "ppo_clip_ratio": 0.004,
                    "ppo_kl": 1e-4,
                    "entropy_loss": 0.7,
                    "actor_grad_norm": 0.4,
                    "actor_lr": 1e-6,
                    "kl": 0.002,
                    "reward": reward(trainer.now),
                    "return": reward(trainer.now),
                    "response_length": 100.0,
                    "total_length": 180.0,
                }
            ]

        trainer.args = MagicMock()
        trainer.args.train.num_episodes, trainer.args.critic.freezing_steps = 1, -1
        trainer.args.train.dynamic_batch_enable = trainer.args.ds.enable_sleep = False
        trainer.args.vllm.enable_sleep = trainer.args.ckpt.load_enable = trainer.args.algo.dynamic_filtering_enable = (
            False
        )
        trainer.args.logger.logging_steps, trainer.args.ckpt.save_steps, trainer.args.eval.steps = 1, 10**9, 4
        trainer.args.ckpt.path, trainer.args.eval.n_samples_per_prompt = "", 1
        trainer.wandb_logger = trainer.tensorboard_logger = trainer.critic_model_group = None
        trainer.best_eval_metric_key, trainer.best_eval_metric_value = "", float("-inf")
        trainer.vllm_engines, trainer.kl_ctl, trainer.generate_kwargs = [], MagicMock(value=0.001), {}
        trainer.tokenizer = MagicMock(**{"decode.return_value": ["Question: ... {'answer': 0.5}"]})
        trainer.actor_model_group = MagicMock(async_run_method=status, async_run_method_batch=lambda **call: [])
        trainer.experience_maker = MagicMock(make_experience_batch=experience)
        trainer.prompts_dataloader = MagicMock(__len__=lambda self: STEPS)
        trainer.eval_dataloader = [(["math"], ["one?"], ["1"], [None])]
        asked = types.SimpleNamespace(
            prompts=["one?"], rewards=0.5, response_length=torch.tensor(90.0), truncated=torch.tensor(0.0)
        )
        trainer.samples_generator = MagicMock(
            generate_samples=lambda **_: (["s"], 1.0, 1, trainer.__dict__.get("now", -1) >= STEPS - 2),
            generate_eval_samples=lambda **_: [asked],
        )
        module.logger.handlers[0].setStream(sys.stdout)
        trainer.fit()


def skyrl(source: Path) -> None:
    """`ConsoleLogger.log` behind the format of `configure_ray_worker_logging`'s kind, loguru's own."""
    import pprint

    from loguru import logger

    file = source / "skyrl/train/utils/tracking.py"
    names: dict[str, Any] = {"pprint": pprint, "logger": logger}
    console = names["ConsoleLogger"] = taken(file, "ConsoleLogger", names | _typing())
    console.log.__globals__["ConsoleLogger"] = console
    logger.remove()
    logger.add(sys.stdout, colorize=True)
    for n in range(STEPS):
        console().log(
            {
                "reward/avg_raw_reward": reward(n),
                "policy/policy_entropy": 0.7,
                "policy/raw_grad_norm": 0.3,
                "policy/ppo_clip_ratio": 0.002,
                "policy/policy_kl": 1e-3,
                "generate/avg_num_tokens": 210.5,
                "trainer/epoch": 0,
                "trainer/global_step": n + 1,
                "timing/step": 31.2,
                "timing/generate": 18.9,
            },
            step=n + 1,
        )


def slime(source: Path) -> None:
    """The statements that log a rollout, its training data and an update."""
    from types import SimpleNamespace

    folder = source / "slime"
    args = SimpleNamespace(custom_rollout_log_function_path=None, load_debug_rollout_data=False)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stdout,
        force=True,
        datefmt="%Y-%m-%d %H:%M:%S",
        format="[%(asctime)s] %(filename)s:%(lineno)d - %(message)s",
    )
    base: dict[str, Any] = {"logger": logging.getLogger("slime"), "logging_utils": MagicMock()} | _typing()
    base |= {
        "compute_rollout_step": lambda args, n: n,
        "dict_add_prefix": lambda d, p: {f"{p}{k}": v for k, v in d.items()},
    }
    base["compute_metrics_from_samples"] = lambda args, samples: {"response_len/mean": 210.0, "truncated_ratio": 0.05}
    base["compute_perf_metrics_from_samples"] = lambda args, samples, seconds: {"rollout_time": seconds}
    rollout = taken(folder / "observability/rollout_metrics.py", "log_rollout_data", base)
    evaluated = statements(
        folder / "observability/rollout_metrics.py", 'logger.info(f"eval {rollout_id}', "logger.info("
    )
    update = statements(folder / "backends/megatron_utils/model.py", 'logger.info(f"{role_tag}step', "logger.info(")
    with using(source, "megatron"):
        for n in range(STEPS):
            rollout(n, args, [], {}, 4.5)
            base["gather_and_reduce_log_dict"] = lambda d, **_: d
            gather = taken(folder / "observability/train_metric_utils.py", "gather_log_data", base)
            gather(
                "rollout",
                args,
                n,
                {"raw_reward": reward(n), "rewards": 0.0, "response_lengths": 210.0, "truncated": 0.05},
            )
            for k in range(2):
                logged = {
                    "train/loss": -0.01,
                    "train/pg_loss": -0.01,
                    "train/entropy_loss": 0.6,
                    "train/pg_clipfrac": 0.002,
                    "train/grad_norm": 0.3,
                    "train/lr-pg_0": 1e-6,
                    "train/step": 2 * n + k,
                }
                exec(update, base | {"role_tag": "", "accumulated_step_id": 2 * n + k, "log_dict": logged})
            if n % 4 == 3:
                exec(evaluated, base | {"rollout_id": n, "log_dict": {"eval/aime": 0.25}})


def prime_rl(source: Path) -> None:
    """`log_train_batch` of the orchestrator, and the trainer's statements, through prime-rl's own logger."""
    folder = source / "src/prime_rl"
    log = _loaded(folder / "utils/logger.py")
    log.setup_logger("info")
    seconds = taken(folder / "utils/utils.py", "format_time", {})

    def mean(value: float) -> Any:
        return MagicMock(**{"mean.return_value": value})

    def metrics(n: int) -> Any:
        return MagicMock(
            reward=mean(reward(n)),
            num_turns=mean(2.4),
            num_branches=mean(1.0),
            has_error=mean(0.01),
            cancelled=mean(0.0),
            is_truncated=mean(0.05),
        )

    names = {
        "get_logger": log.get_logger,
        "format_time": seconds,
        "is_trainable": bool,
        "TrainEpisodes": MagicMock,
        "episode_staleness": lambda e, s: (0, 0),
    }
    batch_line = taken(folder / "orchestrator/orchestrator.py", "Orchestrator.log_train_batch", names)
    file = folder / "trainer/rl/train.py"
    eval_line = statement(folder / "orchestrator/orchestrator.py", 'f"Evaluated {batch.env_name}')
    step_line = statements(file, 'step_message = f"Step {progress.step}', "logger.success(step_message)")
    for n in range(STEPS):
        both = MagicMock()
        both.cohort.effective.metrics, both.episodes.metrics = metrics(n), metrics(n)
        both.cohort.effective.num_traces, both.cohort.effective.records = 128, [MagicMock()] * 128
        if n % 4 == 3:
            exec(
                eval_line,
                names
                | {
                    "batch": MagicMock(env_name="wiki", step=n),
                    "policy_version": n,
                    "elapsed": 65.0,
                    "eff": metrics(n),
                    "full": metrics(n),
                },
            )
        both.cohort.effective.by_env.return_value = both.episodes.by_env.return_value = {}
        batch_line(MagicMock(train_envs=["one"]), both, step=n, step_time=32.0)
        stats = {"loss/mean": 0.01, "entropy/all/mean": 0.5, "mismatch_kl/all/mean": 0.0004}
        exec(
            step_line,
            names
            | {
                "progress": MagicMock(step=n),
                "step_time": 12.0,
                "tensor_stats": stats,
                "grad_norm": 0.21,
                "current_lr": 1e-6,
                "throughput": 9000.0,
                "mfu": 31.0,
                "peak_memory": 61.0,
                "logger": log.get_logger(),
            },
        )


def nemo_rl(source: Path) -> None:
    """The statements of `grpo_train` and `validate` that print."""
    import numpy as np
    import torch

    file = source / "nemo_rl/algorithms/grpo.py"
    heading = statement(file, "Step {current_step + 1}/{max_num_steps}")
    results = statements(file, 'print("\\n📊 Training Results:")', 'print(f"  • {k}: {v:.2f}s ({percent:.1f}%)"')
    validated = statements(file, 'print("\\n📊 Validation Results:")', "Total validation time: {validation_time")
    config = MagicMock()
    config.grpo.use_dynamic_sampling, config.grpo.num_prompts_per_step, config.grpo.num_generations_per_prompt = (
        False,
        8,
        8,
    )
    config.cluster = {"num_nodes": 1, "gpus_per_node": 8}
    for n in range(STEPS):
        exec(heading, {"current_step": n, "max_num_steps": STEPS})
        exec(
            results,
            {
                "np": np,
                "master_config": config,
                "rewards": torch.tensor([reward(n)] * 4),
                "repeated_batch": {},
                "metrics": {"loss": 0.01, "gen_kl_error": 4e-4},
                "metrics_logging_data": {"mean_gen_tokens_per_sample": 201.2},
                "timing_metrics": {"total_step_time": 35.7, "policy_training": 20.1, "generation": 4.95},
            },
        )
        if n % 4 == 3:
            exec(
                validated,
                {
                    "accuracy": 0.4,
                    "avg_length": 190.0,
                    "total_rewards": [0] * 16,
                    "timing_metrics": {"total_validation_time": 8.1},
                    "validation_time": 8.1,
                },
            )


def areal(source: Path) -> None:
    """`StatsLogger.commit`, through AReaL's own logger and tables."""
    logs, tables = _loaded(source / "areal/utils/logging.py"), _loaded(source / "areal/utils/printing.py")
    for handler in logs.log_config["handlers"].values():
        handler["stream"] = sys.stdout
    names = {
        "dist": MagicMock(**{"is_initialized.return_value": False}),
        "tabulate_stats": tables.tabulate_stats,
        "logger": logs.getLogger("StatsLogger", "system"),
        "wandb": MagicMock(),
        "swanlab": MagicMock(),
    }
    stats = taken(source / "areal/utils/stats_logger.py", "StatsLogger", names)
    one = object.__new__(stats)
    one.ft_spec = MagicMock(total_train_epochs=2, steps_per_epoch=STEPS // 2, total_train_steps=STEPS)
    one.summary_writer, one._last_commit_step = None, -1
    for n in range(STEPS):
        one.commit(
            n // (STEPS // 2),
            n % (STEPS // 2),
            n,
            {
                "ppo_actor/task_reward/avg": reward(n),
                "ppo_actor/update/entropy/avg": 0.61,
                "ppo_actor/update/grad_norm": 0.3,
                "ppo_actor/update/clip_ratio/avg": 0.003,
                "ppo_actor/update/lr": 1e-6,
                "ppo_actor/seq_len/avg": 412.0,
                "ppo_actor/no_eos_ratios/avg": 0.05,
                "timeperf/rollout": 12.0,
                "ppo_actor/n_seqs__count": 64.0,
            },
        )


def rllm(source: Path) -> None:
    """`LocalLogger.log`."""
    import numbers
    import pprint

    file = source / "rllm/utils/tracking.py"
    line = taken(file, "concat_dict_to_str", {"numbers": numbers, "pprint": pprint})
    logger = taken(file, "LocalLogger", {"concat_dict_to_str": line})()
    for n in range(STEPS):
        logger.log(
            {
                "reward/solver/mean": reward(n),
                "reward/judge/mean": reward(n) / 2,
                "actor/entropy": 0.5,
                "actor/grad_norm": 0.2,
                "batch/solve_all": 0.1,
                "note": "text",
            },
            step=n + 1,
        )


def _typing() -> dict[str, Any]:
    import typing

    return {name: getattr(typing, name) for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")}


def _segment(whole: str, node: ast.stmt) -> str:
    return "\n".join(whole.splitlines()[node.lineno - 1 : node.end_lineno])


def _loaded(file: Path) -> Any:
    """The module in a file that needs nothing of its package."""
    spec = importlib.util.spec_from_file_location(f"loaded_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRAINERS: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (openrlhf, skyrl, slime, prime_rl, nemo_rl, areal, rllm)
}


def main() -> None:
    """Write the logs."""
    sources, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name, write in TRAINERS.items():
        if len(sys.argv) > 3 and name not in sys.argv[3:]:
            continue
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            write((sources / name).resolve())
        (out / f"{name}.log").write_text(stream.getvalue())
        print(f"{name}: {len(stream.getvalue().splitlines())} lines")


if __name__ == "__main__":
    main()
