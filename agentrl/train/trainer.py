"""The training loop: one step is rollouts, scores, advantages, updates, and the record of what happened.

Everything a step draws at random depends on the run's seed and the step number alone, so that a resumed run continues
bit for bit on a CPU without any generator state in the checkpoint.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from agentrl.algorithms import advantages as compute_advantages
from agentrl.algorithms import weigh_tokens, with_answer_weight
from agentrl.batch import TokenBatch, pack
from agentrl.config import LossConfig
from agentrl.data.tasks import TaskStream
from agentrl.engines.base import ScoreResult
from agentrl.errors import NonFiniteError, RunError
from agentrl.monitors import Monitor
from agentrl.rollouts.ahead import Ahead
from agentrl.rollouts.play import EnvPool, collect
from agentrl.runs.checkpoint import save_checkpoint
from agentrl.runs.episodes import eval_rows, rollout_rows, trajectory_from_json, trajectory_to_json
from agentrl.runs.files import writing
from agentrl.runs.log import RunLog, Status
from agentrl.runs.read import read_evals
from agentrl.train import measure as M
from agentrl.train.build import Job
from agentrl.train.evaluate import evaluate
from agentrl.train.guard import Guarding
from agentrl.types import Alarm, StepRecord, Task, Trajectory

Observer = Callable[[StepRecord], list[Alarm]]


@dataclass
class TrainResult:
    """How a run ended."""

    status: Status  # finished or stopped
    steps: int
    evaluations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Rollouts:
    """The episodes of one step."""

    task_of: dict[str, Task]  # by group id
    all: list[Trajectory]
    used: list[Trajectory]  # no failed ones, no groups that cannot be compared
    batch: TokenBatch


class Trainer:
    """Owns the loop's state: the position in the data, the probe set, the counters."""

    def __init__(
        self,
        job: Job,
        run: RunLog,
        *,
        monitor: Monitor | None = None,
        observe: Observer | None = None,
        progress: Callable[[StepRecord, int], None] | None = None,
        say: Callable[[str], None] = lambda line: None,
        writers: tuple[Any, ...] = (),
    ) -> None:
        self.job, self.run, self.config, self.engine = job, run, job.config, job.engine
        self.stream = TaskStream(job.train_tasks, self.config.seed)
        self.pool = EnvPool(job.make_env)
        self.monitor = monitor  # saved with the run, so that a resumed run raises the same alarms
        self.observe = observe or (monitor.observe if monitor is not None else None)
        self.progress, self.say, self.writers = progress, say, writers
        guard = Guarding(self.config.guard, self.engine, run, monitor, save=lambda: self.save(), say=say)
        self.guard = guard if self.config.guard.enabled else None
        self.step_number = 0
        self.tokens = 0
        self.nonfinite_in_a_row = 0
        self.probe: list[Trajectory] = []
        self.stop_requested = False
        depth = self.config.openrlhf.staleness if self.asynchronous else 0
        self.ahead = Ahead(lambda n: self.collect(n), self.stream.state_dict, depth=depth, last=self.config.train.steps)

    # ------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> TrainResult:
        """Run to the configured number of steps; Ctrl-C finishes the step, saves, and returns `stopped`."""
        config = self.config
        evaluations = []
        self.run.set_status("running", step=self.step_number, steps=config.train.steps)
        with _interruptible(self):
            begins = self.step_number == 0 and not read_evals(self.run.path)  # a resume may come back to step 0
            if begins and config.eval.questions and self.job.test_tasks:
                evaluations.append(self.evaluate())
            if self.step_number == 0 and (self.guard is not None or config.engine == "openrlhf"):
                self.save()  # there must be something to go back to, after a worker's death too
            while self.step_number < config.train.steps and not self.stop_requested:
                self.step()
                n, last = self.step_number, self.step_number == config.train.steps
                if config.eval.questions and self.job.test_tasks and (last or _due(n, config.eval.every)):
                    evaluations.append(self.evaluate())
                if last or _due(n, config.log.checkpoint_every):
                    self.save()
        finished = self.step_number >= config.train.steps
        if not finished or not config.train.steps:
            self.save()
        status: Status = "finished" if finished else "stopped"
        why = self.guard.stopped if self.guard is not None and not finished else None
        self.run.set_status(status, step=self.step_number, steps=config.train.steps, message=why)
        return TrainResult(status, self.step_number, evaluations)

    def close(self) -> None:
        """Close environments and writers; the run directory is its owner's."""
        self.ahead.close()
        self.pool.close()
        for w in self.writers:
            w.close()

    def step(self) -> StepRecord:
        """One training step; see the module docstring."""
        config, engine, n = self.config, self.engine, self.step_number
        clock = _Clock()
        sampled_before = engine.sampled_tokens
        rollouts = self.ahead.take(n)
        batch = rollouts.batch
        clock.lap("t_rollout_s")
        nthr = config.algorithm.nthr
        needs_scores = nthr.enabled or bool(config.algorithm.token_weights)
        once = config.train.mini_batches * config.train.epochs == 1 and not needs_scores
        if once and engine.scores_while_updating:  # π_old is the policy of the update's own forward pass
            scored = ScoreResult(torch.zeros(batch.action_mask.shape), torch.zeros(batch.action_mask.shape))
        else:
            once = False
            scored = engine.score(
                batch, temperature=config.rollout.temperature, nthr=nthr if nthr.enabled else None, entropy=True
            )
        clock.lap("t_score_s")
        adv = self.advantages(batch, scored)
        reference = None
        if config.algorithm.loss.kl_coef > 0:
            reference = engine.score(batch, temperature=config.rollout.temperature, reference=True).logprobs
        loss = self._loss_config(rollouts.used)
        updates = self.update(n, batch, adv, scored.logprobs, reference, loss=loss, fill=scored if once else None)
        engine.sync()
        clock.lap("t_update_s")
        delta, delta_by_group, new_logprobs = self.delta(n, batch, scored.logprobs)
        probe = self.probe_logprob(n, rollouts.used)
        clock.lap("t_delta_s")
        sampled = engine.sampled_tokens - sampled_before
        if self.asynchronous:  # the engine has counted the next step's, too
            sampled = sum(t.action_tokens for t in rollouts.all)
        self.tokens += sampled
        values = M.rollout_metrics(rollouts.all) | M.group_metrics(batch) | scored.metrics | updates | delta | probe
        values |= M.score_metrics(batch, scored.logprobs, scored.entropy) | clock.result()
        values["tokens_per_s"] = sampled / values["t_step_s"]
        failed = [t for t in rollouts.all if t.error is not None]
        groups = M.group_rows(batch, rollouts.used, scored.logprobs, delta_by_group, rollouts.task_of, failed)
        record = StepRecord(n, values, groups)
        self.run.append(record, tokens=self.tokens)
        for w in self.writers:
            w.write(record)
        alarms = self.observe(record) if self.observe else []
        for alarm in alarms:
            self.run.alarm(alarm)
        named = {group for alarm in alarms for group in alarm.groups}
        self.run.write_rollouts(n, self._trace(rollouts, adv, scored, new_logprobs, named))
        self.step_number += 1
        if self.progress:
            self.progress(record, config.train.steps)
        if self.guard is not None and self.guard.after(record, alarms):
            self.stop_requested = True
        return record

    @property
    def asynchronous(self) -> bool:
        """Whether the next step is sampled while this one trains."""
        return self.config.engine == "openrlhf" and self.config.openrlhf.asynchronous

    # --------------------------------------------------------------------------------------------------- parts of it

    def collect(self, n: int) -> Rollouts:
        """Play the step's episodes; with dynamic sampling draw prompts until enough groups have contrast."""
        config = self.config
        want, size = config.rollout.prompts_per_step, config.rollout.group_size
        budget = want * (config.algorithm.dynamic_sampling_max if config.algorithm.dynamic_sampling else 1)
        task_of: dict[str, Task] = {}
        everything: list[Trajectory] = []
        used: list[Trajectory] = []
        drawn = 0
        while drawn < budget:
            have = len({t.group_id for t in used})
            fresh = self.stream.take(min(want - have if config.algorithm.dynamic_sampling else want, budget - drawn))
            episodes = collect(
                self.engine,
                self.pool,
                fresh,
                size,
                chat=self.job.chat,
                config=config.rollout,
                prefix=f"{n}.{drawn}/",
                seed=config.seed,
                correct_threshold=config.algorithm.correct_threshold,
            )
            drawn += len(fresh)
            task_of |= {t.group_id: fresh[i // size] for i, t in enumerate(episodes)}
            everything += episodes
            used += _comparable(episodes, drop_equal=config.algorithm.dynamic_sampling)
            if not config.algorithm.dynamic_sampling or len({t.group_id for t in used}) >= want:
                break
        if not used:  # no contrast anywhere: keep what there is, the update will be zero
            used = _comparable(everything, drop_equal=False)
        if not used:
            errors = sorted({t.error for t in everything if t.error})[:3]
            raise RunError(
                f"step {n}: all {len(everything)} rollouts failed ({'; '.join(errors)}). "
                "Mend the tool or server, then resume the run."
            )
        return Rollouts(task_of, everything, used, pack(used, self.engine.tokenizer.pad_token_id))

    def advantages(self, batch: TokenBatch, scored: ScoreResult) -> Tensor:
        """(B, S): `algorithm.name`'s, times NTHR's factor where it is on, times `algorithm.token_weights`."""
        a = self.config.algorithm
        per_response = compute_advantages(a.name, batch.rewards, batch.group_ids, k=a.k, correct=batch.correct)
        adv = per_response[:, None] * batch.action_mask
        nthr = [] if scored.nthr_factor is None else ["nthr"]
        return weigh_tokens([*nthr, *a.token_weights], adv, batch, scored)

    def update(
        self,
        n: int,
        batch: TokenBatch,
        adv: Tensor,
        old: Tensor,
        reference: Tensor | None,
        *,
        loss: LossConfig,
        fill: ScoreResult | None = None,
    ) -> dict[str, float]:
        """All optimiser steps on this batch; means of their metrics, and largest values where the name says so.

        `fill`: scores that the one update of the batch is to fill.
        """
        config = self.config
        rows: list[dict[str, float]] = []
        for epoch in range(config.train.epochs):
            generator = torch.Generator().manual_seed(_mix(config.seed, n, epoch))
            order = torch.randperm(len(batch), generator=generator) if fill is None else torch.arange(len(batch))
            for index in order.chunk(config.train.mini_batches):
                part = batch.rows(index)
                S = part.action_mask.shape[1]
                rows.append(
                    self.engine.update(
                        part,
                        adv[index, :S],
                        old[index, :S],
                        loss=loss,
                        temperature=config.rollout.temperature,
                        reference_logprobs=None if reference is None else reference[index, :S],
                        **({} if fill is None else {"scores": fill}),
                    )
                )
        skipped = sum("nonfinite" in r for r in rows)
        self._watch_nonfinite(n, skipped, batch, adv, old)
        out: dict[str, float] = {"skipped_updates": float(skipped)}
        for name in {k for r in rows for k in r if k != "nonfinite"}:
            values = [r[name] for r in rows if name in r]
            out[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
        out["grad_norm_max"] = max(r["grad_norm"] for r in rows)
        return out

    def delta(self, n: int, batch: TokenBatch, old: Tensor) -> tuple[dict[str, float], dict[int, float], Tensor | None]:
        """Likelihood displacement of correct responses of mixed groups, from a second scoring pass."""
        if not self.config.train.delta_every or n % self.config.train.delta_every:
            return {}, {}, None
        index = (M.mixed_rows(batch) & batch.correct).nonzero()[:, 0]
        if not len(index):
            return {}, {}, None
        part = batch.rows(index)
        S = part.action_mask.shape[1]
        new = self.engine.score(part, temperature=self.config.rollout.temperature).logprobs
        values, by_group = M.delta_metrics(part, old[index, :S], new)
        full = torch.full(old.shape, float("nan"))
        full[index, :S] = new - old[index, :S]
        return values, by_group, full

    def probe_logprob(self, n: int, trajectories: list[Trajectory]) -> dict[str, float]:
        """Mean log π per action token of a fixed set of stored correct responses (LLDS §5)."""
        size, every = self.config.train.probe_size, self.config.train.probe_every
        if not size or not every:
            return {}
        if len(self.probe) < size:
            self.probe += [t for t in trajectories if t.correct][: size - len(self.probe)]
        if len(self.probe) < size or n % every:
            return {}
        batch = pack(self.probe, self.engine.tokenizer.pad_token_id)
        logp = self.engine.score(batch, temperature=self.config.rollout.temperature).logprobs
        return {"probe_logprob": float(logp[batch.action_mask].mean())}

    def evaluate(self) -> dict[str, Any]:
        """Held-out evaluation under the current weights, written to the run directory."""
        result = self.ahead.run(lambda: evaluate(self.job, self.pool, step=self.step_number))
        self.run.evaluation(result.summary)
        rows = eval_rows(result.trajectories, self.job.test_tasks, self.config.eval.samples)
        self.run.write_eval_rollouts(self.step_number, rows)
        em = result.summary.get("em")
        if em is not None:
            self.say(f"held-out after {self.step_number} steps: {em:.3f} on {result.summary['n']} questions")
        return result.summary

    # ------------------------------------------------------------------------------------------------- saving, resuming

    def save(self) -> Path:
        """A checkpoint that `restore` continues from exactly."""
        state = {
            "step": self.step_number,
            "tokens": self.tokens,
            "data": self.ahead.position(),
            "probe": [trajectory_to_json(t) for t in self.probe],
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
        }
        if self.monitor is not None:
            state["monitor"] = self.monitor.state_dict()
        if self.guard is not None:
            state["guard"] = self.guard.state_dict()
        keep = self.config.log.keep_checkpoints
        return save_checkpoint(self.run.path, self.step_number, self.engine.save, state, keep=keep)

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.engine.load(path)
        self.step_number, self.tokens = state["step"], state["tokens"]
        self.stream.load_state_dict(state["data"])
        self.probe = [trajectory_from_json(t) for t in state["probe"]]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        if self.monitor is not None and "monitor" in state:
            self.monitor.load_state_dict(state["monitor"])
        if self.guard is not None and "guard" in state:
            self.guard.load_state_dict(state["guard"])

    # --------------------------------------------------------------------------------------------------------- internal

    def _loss_config(self, used: list[Trajectory]) -> LossConfig:
        """The configured loss with the guard's λ, and LLDS-MA's scheduled answer weight of this step's episodes."""
        loss = self.config.algorithm.loss
        if self.guard is not None:
            loss = self.guard.loss(loss)
        return with_answer_weight(loss, M.valid_searches(used))

    def _watch_nonfinite(self, n: int, skipped: int, batch: TokenBatch, adv: Tensor, old: Tensor) -> None:
        if not skipped:
            self.nonfinite_in_a_row = 0
            return
        self.nonfinite_in_a_row += 1
        from safetensors.torch import save_file

        tensors = {k: v.contiguous() for k, v in vars(batch).items()} | {"advantages": adv, "old_logprobs": old}
        folder = self.run.path / "dumps"
        with writing(folder):
            folder.mkdir(exist_ok=True)
            save_file(tensors, str(folder / f"step-{n:06d}.safetensors"))
        if self.nonfinite_in_a_row >= self.config.train.max_nonfinite:
            self.run.set_status("failed", step=n, steps=self.config.train.steps, message="non-finite gradients")
            raise NonFiniteError(
                f"loss or gradient was not finite in {self.nonfinite_in_a_row} steps in a row; the batches are in "
                f"{folder}. Nothing of them was saved: lower optim.lr (now {self.config.optim.lr:g}) in "
                f"{self.run.path / 'config.yaml'} and resume"
            )

    def _trace(
        self, rollouts: Rollouts, adv: Tensor, scored: ScoreResult, change: Tensor | None, named: set[str]
    ) -> list[dict[str, Any]]:
        """The rows of the step's rollout file: whole groups, failed rollouts included; a sample and those `named`."""
        tokens = self.engine.tokenizer.convert_ids_to_tokens
        return rollout_rows(
            rollouts.all, rollouts.used, rollouts.task_of, tokens, groups=self.config.log.rollout_groups,
            also=named, columns={
                "old_logprobs": scored.logprobs, "advantages": adv, "entropy": scored.entropy,
                "nthr_scores": scored.nthr_scores, "nthr_selected": scored.nthr_selected, "delta_logprobs": change,
            },
        )  # fmt: skip


def _comparable(trajectories: list[Trajectory], drop_equal: bool) -> list[Trajectory]:
    """Without failed rollouts and groups that lost all but one; with `drop_equal` also without groups of one reward."""
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        if t.error is None:
            groups.setdefault(t.group_id, []).append(t)
    kept = [g for g in groups.values() if len(g) > 1 and not (drop_equal and len({t.reward for t in g}) == 1)]
    return [t for g in kept for t in g]


def _due(n: int, every: int) -> bool:
    return every > 0 and n % every == 0


def _mix(*numbers: int) -> int:
    """One seed from several numbers, the same on every machine."""
    import numpy as np

    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)


class _Clock:
    """Seconds per part of a step."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now

    def result(self) -> dict[str, float]:
        return self.laps | {"t_step_s": self.last - self.start}


class _interruptible:
    """While entered, the first Ctrl-C asks the trainer to stop after the step; the second interrupts at once."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        def handler(signum: int, frame: FrameType | None) -> None:
            if self.trainer.stop_requested and not self.trainer.pool.interrupt():
                raise KeyboardInterrupt
            self.trainer.stop_requested = True
            with suppress(RuntimeError):  # the signal may come in the middle of a write
                self.trainer.say("finishing this step, then saving; Ctrl-C again stops at once and loses the step")

        try:
            self.previous = signal.signal(signal.SIGINT, handler)
        except ValueError:  # not the main thread: whoever runs us there handles Ctrl-C
            self.previous = None

    def __exit__(self, *exc: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
