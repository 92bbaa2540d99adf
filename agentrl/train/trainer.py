"""The training loop: one step is rollouts, pack, score, advantages, update, sync, and the record of what happened.

Everything a step draws at random depends on the run's seed and the step number alone, so that a resumed run continues
bit for bit on a CPU without any generator state in the checkpoint.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from agentrl.algorithms import advantages as compute_advantages
from agentrl.algorithms import displacement, settled, weigh_tokens, with_answer_weight
from agentrl.batch import TokenBatch, pack
from agentrl.config import LossConfig
from agentrl.data.mixture import MixedStream
from agentrl.engines.base import ScoreResult
from agentrl.engines.shared.loading import BUILTIN
from agentrl.engines.shared.scoring import whole_groups_fit
from agentrl.engines.shared.text import shown_tokens
from agentrl.errors import NonFiniteError, RunError
from agentrl.monitors import Monitor
from agentrl.rewards import all_equal
from agentrl.rollouts.ahead import Ahead
from agentrl.rollouts.play import CONTEXT, lost_its_tool
from agentrl.runs.checkpoint import save_checkpoint
from agentrl.runs.episodes import eval_rows, rollout_rows, trajectory_from_json, trajectory_to_json
from agentrl.runs.files import writing
from agentrl.runs.log import RunLog, Status
from agentrl.runs.read import beats_best, how_to_go_on, read_evals
from agentrl.train import measure as M
from agentrl.train.build import Job
from agentrl.train.diversity import control_tokens, diversity
from agentrl.train.entries import Entries, correct_shares
from agentrl.train.evaluate import as_signals, evaluate, failures_alarm, in_words
from agentrl.train.guard import Guarding
from agentrl.train.patience import Patience, Stopped
from agentrl.train.trackers import tell
from agentrl.types import Alarm, StepRecord, Task, Trajectory

Observer = Callable[[StepRecord], list[Alarm]]


@dataclass
class TrainResult:
    """How a run ended."""

    status: Status  # finished or stopped
    steps: int
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    signal: int | None = None  # the one that has stopped it


@dataclass
class Rollouts:
    """The episodes of one step."""

    task_of: dict[str, Task]  # by group id
    all: list[Trajectory]
    used: list[Trajectory]  # no failed ones, no groups that cannot be compared
    shares: dict[str, float] = field(default_factory=dict)  # of several environments: with which they were drawn


@dataclass
class Step:
    """What one step works on. Each method of the loop adds its part; the comment says which."""

    number: int
    rollouts: Rollouts
    sampled: int  # tokens
    batch: TokenBatch = field(init=False)  # pack
    fused: bool = field(init=False)  # score: the one update of this batch fills `scores` from its own forward pass
    scores: ScoreResult = field(init=False)  # score, or update where fused; its log-probabilities are π_old
    reference: Tensor | None = field(init=False)  # score: (B, S) log π of the frozen initial policy
    advantages: Tensor = field(init=False)  # advantages: (B, S), 0 off action
    updates: dict[str, float] = field(init=False)  # update
    delta: dict[str, float] = field(default_factory=dict)  # displacement, as signals
    delta_of: dict[int, float] = field(default_factory=dict)  # displacement: Δ(x) per token by group id of the batch
    change: Tensor | None = None  # displacement: (B, S) of log π by the update, NaN where it was not measured
    seconds: dict[str, float] = field(default_factory=dict)  # by part, as signals


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
        self.stream = job.stream(self.config.seed)
        self._special = frozenset(getattr(self.engine.tokenizer, "all_special_ids", ()))
        self.pool = job.pool()
        self.player = job.player(self.pool, seed=self.config.seed)
        self.monitor = monitor  # saved with the run, so that a resumed run raises the same alarms
        self.observe = observe or (monitor.observe if monitor is not None else None)
        self.progress, self.say, self.writers = progress, say, writers
        guard = Guarding(self.config.guard, self.engine, run, monitor, save=lambda: self.save(), say=say)
        self.guard = guard if self.config.guard.enabled else None
        self.entries = Entries(list(job.sources), monitor, self.config.monitors.rules)
        guard.others = list(self.entries.monitors.values())
        self.step_number = 0
        self.tokens = 0
        self.nonfinite_in_a_row = 0
        self.moved = False  # the policy is no longer the one that the run began with
        self.noise = 0.0  # of two scoring passes over one policy, nats per √token; measured where LLDS is on
        self.probe: list[Trajectory] = []
        self._warned: set[str] = set()  # lines about trackers
        self.stop_requested = False
        self.signal: int | None = None  # the first that asked for the stop
        self.whole = True  # False while weights and records are between two steps
        self._saved = -1  # the step of the newest checkpoint
        self._position: dict[str, Any] | None = None  # in the questions, where the step in progress began
        self.stopping = threading.Event()
        self.patience = Patience(self.config.rollout.outage_wait_s, say, self._outage, self.stopping)
        self.ahead = Ahead(
            lambda n: self.rollouts(n),
            self.stream.state_dict,
            depth=self.engine.samples_ahead,
            last=self.config.train.steps,
        )

    # ------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> TrainResult:
        """Run to the configured number of steps. Whatever ends it before, the last whole step is saved.

        Ctrl-C finishes the step, saves, and returns `stopped`; SIGTERM and SIGHUP leave the step at the next point
        where that loses nothing but the step.
        """
        config = self.config
        evaluations: list[dict[str, Any]] = []
        self.run.set_status("running", step=self.step_number, steps=config.train.steps)
        with interruptible(self):
            try:
                self._loop(evaluations)
            except Stopped:
                pass
            except BaseException as error:
                if not (isinstance(error, KeyboardInterrupt) and self.signal in LEAVES_STEP):
                    self._rescue()
                    raise
            finished = self.step_number >= config.train.steps and not self._owes_evaluation()
            if self._saved != self.step_number:
                self.save()
        status: Status = "finished" if finished else "stopped"
        self.run.set_status(
            status, step=self.step_number, steps=config.train.steps, message=None if finished else self._why_stopped()
        )
        return TrainResult(status, self.step_number, evaluations, None if finished else self.signal)

    def _loop(self, evaluations: list[dict[str, Any]]) -> None:
        config = self.config
        dear = config.warm_start is not None and config.model.path != BUILTIN  # it took minutes
        if self.step_number == 0 and (self.guard is not None or self.engine.needs_first_checkpoint or dear):
            self.save()  # there must be something to go back to, after a worker's death too
        if self._owes_evaluation():  # before the first step, or where a run was stopped in it
            evaluations.append(self.evaluate())
        while self.step_number < config.train.steps and not self.stop_requested:
            self.step()
            if self._owes_evaluation() and self.signal not in LEAVES_STEP:
                evaluations.append(self.evaluate())
            if self.step_number == config.train.steps or _due(self.step_number, config.log.checkpoint_every):
                if self._saved != self.step_number:
                    self.save()

    def _owes_evaluation(self) -> bool:
        """Whether the held-out questions are due after this number of steps and were not played."""
        n, config = self.step_number, self.config
        due = n in (0, config.train.steps) or _due(n, config.eval.every)
        return bool(
            due
            and config.eval.questions
            and self.job.test_tasks
            and not any(row.get("step") == n for row in read_evals(self.run.path))
        )

    def _held_out(self, n: int) -> dict[str, float]:
        """What the evaluation after n steps said: of the same weights that have sampled step n."""
        if not (n == 0 or _due(n, self.config.eval.every)):
            return {}
        rows = [row for row in read_evals(self.run.path) if row.get("step") == n]
        return as_signals(rows[-1]) if rows else {}

    def _rescue(self) -> None:
        """Save the last whole step, where there is one that is not saved; why the run ends is raised by the caller."""
        n = self.step_number
        if n and n != self._saved and self.whole:
            try:
                self.save()
            except Exception as error:  # why the run ends is what is to be shown
                self.say(f"the {n} steps that were made could not be saved: {error}")
        if self._saved >= 0:
            lost = f", {n - self._saved} steps after that are lost" if n > self._saved else ""
            self.say(f"saved are {self._saved} steps{lost}; go on with: {how_to_go_on(self.run.path)}")

    def _why_stopped(self) -> str | None:
        if self.guard is not None and self.guard.stopped:
            return self.guard.stopped
        return None if self.signal in (None, signal.SIGINT) else f"stopped by {signal.Signals(self.signal).name}"

    def _leave_if_asked(self) -> None:
        """Between two parts of a step that have changed nothing yet: SIGTERM leaves no time to finish it."""
        if self.signal in LEAVES_STEP:
            raise Stopped

    def _outage(self, message: str) -> None:
        """An alarm beside the monitors': no step was made that they could look at."""
        alarm = Alarm(
            id=f"tool_outage-{self.step_number:06d}-warn-{time.time_ns()}",
            step=self.step_number,
            rule="tool_outage",
            level="warn",
            message=message,
            remedy="Look at the tool or server; the run goes on by itself when it answers. See docs/runs.md.",
        )
        self.run.alarm(alarm)
        for sink in self.monitor.sinks if self.monitor is not None else ():
            sink(alarm)

    def close(self) -> None:
        """Close environments and writers; the run directory is its owner's."""
        self.ahead.close()
        self.pool.close()
        self.tell("close")

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of the trackers; what one raises is said once and ends nothing."""

        def once(line: str) -> None:
            if line not in self._warned:
                self._warned.add(line)
                self.say(line)

        tell(self.writers, method, *arguments, say=once)

    def step(self) -> StepRecord:
        """One training step: the README's picture, from left to right, then what it did is measured and recorded."""
        clock = _Clock()
        before = self.engine.sampled_tokens
        self._position = self.ahead.position()
        rollouts = self.ahead.take(self.step_number)
        step = Step(self.step_number, rollouts, sampled=self.engine.sampled_tokens - before)
        if self.engine.samples_ahead:  # the engine has counted the next steps', too
            step.sampled = sum(t.action_tokens for t in rollouts.all)
        self.pack(step)
        clock.lap("t_rollout_s")
        self._leave_if_asked()
        self.score(step)
        clock.lap("t_score_s")
        self.advantages(step)
        self._leave_if_asked()
        self.whole = False
        self.update(step)
        self.sync()
        clock.lap("t_update_s")
        self.displacement(step)
        probe = self.probe_logprob(step)
        clock.lap("t_delta_s")
        step.seconds = clock.result()
        return self.record(step, probe)

    # --------------------------------------------------------------------------------------- the six parts of a step

    def rollouts(self, n: int) -> Rollouts:
        """Play step n's episodes; with dynamic sampling draw prompts until enough groups have contrast.

        It reads nothing of the step before: an engine that samples ahead plays it while that one trains.
        """
        config = self.config
        want, size = config.rollout.prompts_per_step, config.rollout.group_size
        budget = want * (config.algorithm.dynamic_sampling_max if config.algorithm.dynamic_sampling else 1)
        task_of: dict[str, Task] = {}
        everything: list[Trajectory] = []
        used: list[Trajectory] = []
        drawn = 0
        shares = self.stream.shares() if isinstance(self.stream, MixedStream) else {}
        while drawn < budget:
            self._leave_if_asked()
            have = len({t.group_id for t in used})
            fresh = self.stream.take(min(want - have if config.algorithm.dynamic_sampling else want, budget - drawn))
            episodes = self.patience.collect(self.player, fresh, size, prefix=f"{n}.{drawn}/", what=f"step {n}")
            drawn += len(fresh)
            task_of |= {t.group_id: fresh[i // size] for i, t in enumerate(episodes)}
            everything += episodes
            used += _comparable(episodes, drop_equal=config.algorithm.dynamic_sampling)
            if not config.algorithm.dynamic_sampling or len({t.group_id for t in used}) >= want:
                break
        if not used:  # no contrast anywhere: keep what there is, the update will be zero
            used = _comparable(everything, drop_equal=False)
        if not used:
            raise RunError(_nothing_left(n, everything))
        if isinstance(self.stream, MixedStream):
            self.stream.learn(correct_shares(everything, task_of))
        return Rollouts(task_of, everything, used, shares)

    def pack(self, step: Step) -> None:
        """The episodes that are learned from, as tensors."""
        step.batch = pack(step.rollouts.used, self.engine.tokenizer.pad_token_id)

    def score(self, step: Step) -> None:
        """log π_old, with NTHR where it is on, and log π of the reference where the loss has a KL term.

        Where the batch gets one update alone, its forward pass is under the same weights: nothing is scored twice. NTHR
        comes from that pass too, where each group fits into a micro-batch.
        """
        config, engine, batch = self.config, self.engine, step.batch
        nthr = config.algorithm.nthr if config.algorithm.nthr.enabled else None
        updates = config.train.mini_batches * config.train.epochs
        apart = bool(config.algorithm.token_weights) or config.algorithm.mask_truncated
        if nthr is not None:
            apart = apart or not whole_groups_fit(batch, config.train.micro_batch_tokens)
        step.fused = updates == 1 and not apart and engine.scores_while_updating
        if step.fused:
            step.scores = ScoreResult(torch.zeros(batch.action_mask.shape), torch.zeros(batch.action_mask.shape))
        else:
            step.scores = engine.score(batch, temperature=config.rollout.temperature, nthr=nthr, entropy=True)
        step.reference = None
        if config.algorithm.loss.kl_coef > 0:
            step.reference = engine.score(batch, temperature=config.rollout.temperature, reference=True).logprobs

    def advantages(self, step: Step) -> None:
        """`algorithm.name`'s, times NTHR's factor where it is on, times `algorithm.token_weights`."""
        a, batch = self.config.algorithm, step.batch
        per_response = compute_advantages(a.name, batch.rewards, batch.group_ids, k=a.k, correct=batch.correct)
        nthr = [] if step.scores.nthr_factor is None else ["nthr"]
        adv = per_response[:, None] * batch.action_mask
        step.advantages = weigh_tokens([*nthr, *a.token_weights], adv, batch, step.scores)

    def update(self, step: Step) -> None:
        """All optimiser steps on the batch; means of their metrics, and largest values where the name says so."""
        train, loss = self.config.train, self._loss_config(step.rollouts.used)
        rows: list[dict[str, float]] = []
        unchanged = True  # the policy is the one that was scored
        cut = torch.tensor([t.truncated for t in step.rollouts.used])  # (B,)
        learned = ~cut if self.config.algorithm.mask_truncated else torch.ones_like(cut)
        for epoch in range(train.epochs):
            for index in self._order(step, epoch).tensor_split(train.mini_batches):
                index = index[learned[index]]
                if not len(index):  # fewer responses than mini-batches: failed or truncated ones, no contrast
                    continue
                how = settled(loss, unchanged=unchanged, noise=self.noise, moved=self.moved)
                row = self._update_rows(step, index, how)
                squared = row.pop("llds_noise", None)
                if unchanged and squared is not None:
                    self.noise = math.sqrt(squared)
                if loss.kl_coef and not how.kl_coef:
                    row["kl"] = 0.0  # the policy is the reference
                if self._changes_weights(row):
                    unchanged, self.moved = False, True
                rows.append(row)
        skipped = sum("nonfinite" in r for r in rows)
        self._watch_nonfinite(step, skipped)
        out: dict[str, float] = {"skipped_updates": float(skipped)}
        for name in {k for r in rows for k in r if k != "nonfinite"}:
            values = [r[name] for r in rows if name in r]
            out[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
        if rows:
            out["grad_norm_max"] = max(r["grad_norm"] for r in rows)
        if self.config.algorithm.mask_truncated:
            out["truncated_masked_share"] = float(cut.float().mean())
        if loss.llds.enabled:
            out["llds_noise"] = self.noise
        if step.fused and step.scores.nthr_factor is not None:  # the update has multiplied by it: for the record
            step.advantages = weigh_tokens(["nthr"], step.advantages, step.batch, step.scores)
        step.updates = out

    def sync(self) -> None:
        """Hand the new weights to the sampler."""
        self.engine.sync()

    # ------------------------------------------------------------------------------------------- what the step has done

    def displacement(self, step: Step) -> None:
        """Likelihood displacement of correct responses of mixed groups, from a second scoring pass."""
        batch, old, every = step.batch, step.scores.logprobs, self.config.train.delta_every
        if not every or step.number % every:
            return
        index = (M.mixed_rows(batch) & batch.correct).nonzero()[:, 0]
        if not len(index):
            return
        part = batch.rows(index)
        S = part.action_mask.shape[1]
        new = self.engine.score(part, temperature=self.config.rollout.temperature).logprobs
        moved = displacement(old[index, :S], new, part.action_mask, part.group_ids, part.correct)
        step.delta, step.delta_of = M.delta_metrics(part, moved), moved.of_group
        step.change = torch.full(old.shape, float("nan"))
        step.change[index, :S] = new - old[index, :S]

    def probe_logprob(self, step: Step) -> dict[str, float]:
        """Mean log π per action token of a fixed set of stored correct responses (LLDS §5)."""
        size, every = self.config.train.probe_size, self.config.train.probe_every
        if not size or not every:
            return {}
        if len(self.probe) < size:
            self.probe += [t for t in step.rollouts.used if t.correct][: size - len(self.probe)]
        if len(self.probe) < size or step.number % every:
            return {}
        batch = pack(self.probe, self.engine.tokenizer.pad_token_id)
        logp = self.engine.score(batch, temperature=self.config.rollout.temperature).logprobs
        return {"probe_logprob": float(logp[batch.action_mask].mean())}

    def record(self, step: Step, probe: dict[str, float]) -> StepRecord:
        """Write the step down, show it to the monitors and the guard, and count it."""
        rollouts, batch, scores = step.rollouts, step.batch, step.scores
        self.tokens += step.sampled
        values = M.rollout_metrics(rollouts.all) | diversity(rollouts.all) | control_tokens(rollouts.all, self._special)
        values |= M.group_metrics(batch) | scores.metrics | step.updates
        if self.config.algorithm.needs_correct:
            values |= M.out_of_reach(batch)
            self._warn_out_of_reach(step)
        values |= step.delta | probe | M.score_metrics(batch, scores.logprobs, scores.entropy) | step.seconds
        values |= self._held_out(step.number)
        values["tokens_per_s"] = step.sampled / values["t_step_s"]
        of_entry = self.entries.measure(rollouts.all, rollouts.used, rollouts.task_of, batch, scores, step.change)
        values |= self.entries.as_metrics(of_entry, rollouts.shares)
        failed = [t for t in rollouts.all if t.error is not None]
        groups = M.group_rows(batch, rollouts.used, scores.logprobs, step.delta_of, rollouts.task_of, failed)
        record = StepRecord(step.number, values, groups)
        self.run.append(record, tokens=self.tokens)
        self.step_number, self._position, self.whole = self.step_number + 1, None, True
        self.tell("write", record)
        alarms = self.observe(record) if self.observe else []
        guarded = list(alarms)  # by what the whole batch shows
        alarms += self.entries.observe(record, of_entry)
        for alarm in alarms:
            self.run.alarm(alarm)
        named = {group for alarm in alarms for group in alarm.groups}
        self.run.write_rollouts(step.number, self._trace(step, named))
        if self.progress:
            self.progress(record, self.config.train.steps)
        if self.guard is not None and self.guard.after(record, guarded):
            self.stop_requested = True
        return record

    def evaluate(self) -> dict[str, Any]:
        """Held-out evaluation under the current weights, written to the run directory."""
        step, patience = self.step_number, self.patience
        result = self.ahead.run(lambda: evaluate(self.job, self.pool, step=step, patience=patience))
        best = self._beats_best(result.summary)
        self.run.evaluation(result.summary)
        rows = eval_rows(result.trajectories, result.tasks, self.config.eval.samples)
        self.run.write_eval_rollouts(self.step_number, rows)
        self.tell("evaluation", result.summary)
        if alarm := failures_alarm(result.summary):
            self.run.alarm(alarm)
            for sink in self.monitor.sinks if self.monitor is not None else ():
                sink(alarm)
        self.say(f"held-out after {self.step_number} steps: {in_words(result.summary, self.config.rollout)}")
        if best:
            self.save(best=True)
        return result.summary

    def _beats_best(self, summary: dict[str, Any]) -> bool:
        """Whether `log.keep_best` is on, and this is the best so far. A tie is not better."""
        metric = self.config.log.keep_best
        if metric is None:
            return False
        if metric not in summary:
            known = ", ".join(k for k, v in summary.items() if isinstance(v, float) and k != "seconds")
            self.say(f"log.keep_best is {metric}, which this evaluation has not measured; it has {known or 'nothing'}")
            return False
        return beats_best(self.run.path, metric, summary[metric])

    # ------------------------------------------------------------------------------------------------- saving, resuming

    def save(self, *, best: bool = False) -> Path:
        """A checkpoint that `restore` continues from exactly. `best`: the best one so far."""
        state = {
            "step": self.step_number,
            "tokens": self.tokens,
            "data": self.ahead.position() if self._position is None else self._position,
            "probe": [trajectory_to_json(t) for t in self.probe],
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "moved": self.moved,
            "noise": self.noise,
        }
        if self.monitor is not None:
            state["monitor"] = self.monitor.state_dict()
            state |= {"monitors_of": self.entries.state_dict()} if self.entries.monitors else {}
        if self.guard is not None:
            state["guard"] = self.guard.state_dict()
        keep = self.config.log.keep_checkpoints
        path = save_checkpoint(self.run.path, self.step_number, self.engine.save, state, keep=keep, best=best)
        self._saved = self.step_number
        return path

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.engine.load(path)
        self.step_number, self.tokens = state["step"], state["tokens"]
        self._saved = self.step_number
        self.stream.load_state_dict(state["data"])
        self.probe = [trajectory_from_json(t) for t in state["probe"]]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        self.moved, self.noise = state.get("moved", True), state.get("noise", 0.0)  # earlier checkpoints have neither
        if self.monitor is not None and "monitor" in state:
            self.monitor.load_state_dict(state["monitor"])
            self.entries.load_state_dict(state.get("monitors_of", {}))
        if self.guard is not None and "guard" in state:
            self.guard.load_state_dict(state["guard"])

    # --------------------------------------------------------------------------------------------------------- internal

    def _loss_config(self, used: list[Trajectory]) -> LossConfig:
        """The configured loss with the guard's λ, and LLDS-MA's scheduled answer weight of this step's episodes."""
        loss = self.config.algorithm.loss
        if self.guard is not None:
            loss = self.guard.loss(loss)
        return with_answer_weight(loss, M.valid_searches(used))

    def _warn_out_of_reach(self, step: Step) -> None:
        """At the first step, where rewards vary and none of them makes a response correct."""
        rewards, a = [t.reward for t in step.rollouts.used], self.config.algorithm
        if step.number == 0 and not all_equal(rewards) and not any(t.correct for t in step.rollouts.used):
            self.say(
                f"warning: rewards vary from {min(rewards):g} to {max(rewards):g} and none reaches "
                f"algorithm.correct_threshold = {a.correct_threshold:g}, so that no response is correct, which "
                f"{a.name}{' with NTHR' if a.nthr.enabled else ''} needs; set it to the reward of a correct response"
            )

    def _changes_weights(self, row: dict[str, float]) -> bool:
        """Whether an optimiser step may have: a gradient of zero does where there was one before (AdamW's momentum)."""
        decays = self.config.optim.weight_decay > 0
        return "nonfinite" not in row and (row["grad_norm"] != 0 or self.moved or decays)

    def _order(self, step: Step, epoch: int) -> Tensor:
        """The batch's rows in the order that this epoch's mini-batches take them."""
        if step.fused:
            return torch.arange(len(step.batch))
        generator = torch.Generator().manual_seed(_mix(self.config.seed, step.number, epoch))
        return torch.randperm(len(step.batch), generator=generator)

    def _update_rows(self, step: Step, index: Tensor, loss: LossConfig) -> dict[str, float]:
        """One optimiser step on the rows `index`."""
        part = step.batch.rows(index)
        S = part.action_mask.shape[1]
        return self.engine.update(
            part,
            step.advantages[index, :S],
            step.scores.logprobs[index, :S],
            loss=loss,
            temperature=self.config.rollout.temperature,
            reference_logprobs=None if step.reference is None else step.reference[index, :S],
            scores=step.scores if step.fused else None,
            nthr=self.config.algorithm.nthr if step.fused and self.config.algorithm.nthr.enabled else None,
        )

    def _watch_nonfinite(self, step: Step, skipped: int) -> None:
        if not skipped:
            self.nonfinite_in_a_row = 0
            return
        self.nonfinite_in_a_row += 1
        from safetensors.torch import save_file

        tensors = {k: v.contiguous() for k, v in vars(step.batch).items()}
        tensors |= {"advantages": step.advantages, "old_logprobs": step.scores.logprobs}
        folder = self.run.path / "dumps"
        with writing(folder):
            folder.mkdir(exist_ok=True)
            save_file(tensors, str(folder / f"step-{step.number:06d}.safetensors"))
        if self.nonfinite_in_a_row >= self.config.train.max_nonfinite:
            self.run.set_status(
                "failed", step=step.number, steps=self.config.train.steps, message="non-finite gradients"
            )
            raise NonFiniteError(
                f"loss or gradient was not finite in {self.nonfinite_in_a_row} steps in a row; the batches are in "
                f"{folder}. Nothing of them was saved: lower optim.lr (now {self.config.optim.lr:g}) in "
                f"{self.run.path / 'config.yaml'} and resume"
            )

    def _trace(self, step: Step, named: set[str]) -> list[dict[str, Any]]:
        """The rows of the step's rollout file: whole groups, failed rollouts included; a sample and those `named`."""
        rollouts, scores = step.rollouts, step.scores
        tokens = partial(shown_tokens, self.engine.tokenizer)
        return rollout_rows(
            rollouts.all, rollouts.used, rollouts.task_of, tokens, groups=self.config.log.rollout_groups,
            also=named, columns={
                "old_logprobs": scores.logprobs, "advantages": step.advantages, "entropy": scores.entropy,
                "nthr_scores": scores.nthr_scores, "nthr_selected": scores.nthr_selected,
                "delta_logprobs": step.change,
            },
        )  # fmt: skip


def _nothing_left(n: int, everything: list[Trajectory]) -> str:
    """Why a step has nothing to learn from: the true counts, and what to do about the kind of failure."""
    failed = [t for t in everything if t.error is not None]
    errors = sorted({str(t.error) for t in failed})
    if any(lost_its_tool(t) for t in failed):
        remedy = "Fix the tool or server"
    elif any(e.startswith(CONTEXT) for e in errors):
        remedy = "Raise rollout.max_context, or leave the long questions out"
    else:
        remedy = "Fix the environment's reward"
    return (
        f"step {n}: {len(failed)} of {len(everything)} rollouts failed ({'; '.join(errors[:3])}), and no question has "
        f"two left to compare. {remedy}"
    )


def _comparable(trajectories: list[Trajectory], drop_equal: bool) -> list[Trajectory]:
    """Without failed rollouts and groups that lost all but one; with `drop_equal` without equal rewards, too."""
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        if t.error is None:
            groups.setdefault(t.group_id, []).append(t)
    kept = [g for g in groups.values() if len(g) > 1 and not (drop_equal and all_equal(t.reward for t in g))]
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


LEAVES_STEP = (signal.SIGTERM, getattr(signal, "SIGHUP", None))  # whoever sends them waits for half a minute


class interruptible:
    """While entered, signals ask the trainer to stop, and nothing is lost.

    The first Ctrl-C lets it finish the step; the second leaves the step. SIGTERM (Slurm, Kubernetes) and SIGHUP leave
    it, too, unless the weights are just being changed. A signal that was ignored (nohup) stays ignored.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, *(n for n in LEAVES_STEP if n is not None)):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            with suppress(ValueError):  # not the main thread: whoever runs us there handles signals
                self.previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        trainer = self.trainer
        again = trainer.stop_requested
        trainer.stop_requested = True
        trainer.stopping.set()
        if number != signal.SIGINT:
            if trainer.signal not in LEAVES_STEP:
                trainer.signal = number
            trainer.pool.interrupt()
            text = f"{signal.Signals(number).name}: saving the last whole step"
        elif again:
            if not trainer.pool.interrupt():
                raise KeyboardInterrupt
            return
        else:
            trainer.signal = trainer.signal or number
            text = "finishing this step, then saving; Ctrl-C again stops at once and loses the step"
        with suppress(RuntimeError):  # the signal may come in the middle of a write
            trainer.say(text)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            if handler is not None:  # one that was not set from Python
                signal.signal(number, handler)
