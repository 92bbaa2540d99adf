"""Start or resume a run: from a config to a finished run directory. What the CLI and the quickstart call."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from agentrl.config import RunConfig
from agentrl.config.files import load_config
from agentrl.console import Progress
from agentrl.engines.kind import INITIAL, engine_kind, ready_kind
from agentrl.engines.shared.loading import BUILTIN
from agentrl.errors import RunError, command
from agentrl.monitors import Monitor, notices, sinks
from agentrl.monitors.alarms import default_rules
from agentrl.monitors.bodies import about
from agentrl.monitors.told import Memory, Teller
from agentrl.runs.checkpoint import latest_checkpoint, read_checkpoint
from agentrl.runs.files import writing
from agentrl.runs.log import RunLog
from agentrl.runs.read import how_to_go_on, read_evals
from agentrl.train.build import Job, build_job, changed_questions
from agentrl.train.corpus import changed_corpus, corpus_of
from agentrl.train.trackers import make_writers
from agentrl.train.trainer import LEAVES_STEP, Trainer, TrainResult
from agentrl.train.warmstart import warmed_up
from agentrl.types import Alarm

TOLD = "told.json"  # which alarms the receivers have taken
REFERENCE = "reference"  # the frozen initial policy, kept where the loss has a KL term


@contextmanager
def terminable() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP end the program as an exception does: locks and directories are cleared up.

    The trainer has handlers of its own while it runs. A signal that was ignored (nohup) stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    for number in LEAVES_STEP:
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@dataclass
class FinishedRun:
    """Where a run is and how it ended."""

    run_dir: Path
    result: TrainResult


def train_run(config: RunConfig, *, force: bool = False, quiet: bool = False) -> FinishedRun:
    """Train `config` from the start in a new run directory. What fails before the first step leaves no directory."""
    progress = Progress(quiet)
    config = _settled(config, progress)
    name = config.log.name or f"{config.name}-s{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = RunLog.create(config.log.runs_dir, name, config, force=force, argv=sys.argv, say=progress.say)
    progress.say(f"run directory: {run.path}")
    with terminable(), run:
        try:
            kind = ready_kind(config)  # what would stop it here is said before a model is made or warmed up
            model = None if kind.warms_up_with is None else _initial_model(config, kind.warms_up_with, run, progress)
            job = build_job(config, run.path, model_path=model, say=progress.say)
            run.update_meta({"questions": job.questions(), **corpus_of(job.make_env), **_gpus(job)})
            with closing(job.engine):
                progress.say(
                    f"{len(job.train_tasks)} training and {len(job.test_tasks)} held-out questions; "
                    f"{job.engine.parameters:,} parameters on {job.engine.device}"
                )
                if kind.warms_up_with is None:
                    _warm(job, run, progress)
                if job.engine.reference is not None:  # KL is to the policy as it is here, also after a resume
                    job.engine.freeze_reference()
                    with writing(run.path):
                        job.engine.save_model(run.path / REFERENCE)
                return _train(job, run, progress, begin=lambda trainer: run.settle())
        except BaseException:
            if not run.begun:
                run.discard()
            raise


def _settled(config: RunConfig, progress: Progress) -> RunConfig:
    """The config with what the engine's kind decides by this machine, for the run's directory; aloud."""
    settle = getattr(engine_kind(config.engine), "settled", None)  # a plug-in's may have none
    if settle is None:
        return config
    config, why = settle(config)
    if why is not None:
        progress.say(why)
    return config


def _gpus(job: Job) -> dict[str, int]:
    """For meta.json: the GPUs that the run uses, by which its time is counted; nothing where it uses none."""
    gpus = getattr(job.engine, "gpus", 0)  # a plug-in's engine may not say
    return {"gpus": gpus} if gpus else {}


def _initial_model(config: RunConfig, engine: str, run: RunLog, progress: Progress) -> Path | None:
    """Where a model is to be made or warmed up for an engine of files, that is done here, by another `engine`."""
    if config.model.path != BUILTIN and config.warm_start is None:
        return None
    model = config.model.model_copy(update={"lora": None})
    job = build_job(config.model_copy(update={"engine": engine, "model": model}), run.path, say=progress.say)
    _warm(job, run, progress)
    with writing(run.path):
        job.engine.save_model(run.path / INITIAL)
    return run.path / INITIAL


def _warm(job: Job, run: RunLog, progress: Progress) -> None:
    config = job.config
    if config.warm_start is None:
        return
    measured = warmed_up(job, progress.note)
    run.update_meta({"warm_start": measured})
    progress.say(_what_it_learned(measured))


def _what_it_learned(measured: dict[str, float]) -> str:
    said = f"warm start: {measured['seconds']:.0f} s, {measured['demonstration_steps']:.0f} batches of demonstrations"
    names = {
        "demonstration_accuracy": "token accuracy",
        "demonstration_held_out_accuracy": "token accuracy on held-out ones",
        "format_rate": "valid turns when sampled",
        "held_out_correct": "correct when sampled",
    }
    return ", ".join([said, *(f"{name} {measured[key]:.2f}" for key, name in names.items() if key in measured)])


def resume_run(run_dir: Path, *, checkpoint: int | str | None = None, quiet: bool = False) -> FinishedRun:
    """Continue a stopped or killed run from its last good checkpoint, or from the one of a step, or `best`.

    A resume that fails before its first step has changed nothing.
    """
    progress = Progress(quiet)
    with terminable(), RunLog.open(run_dir, say=progress.say) as run:
        config = load_config(run.path / "config.yaml").config
        found = latest_checkpoint(run.path) if checkpoint is None else read_checkpoint(run.path, checkpoint)
        if found is None:
            raise RunError(f"{run.path} has no checkpoint to resume from; start it again: {how_to_go_on(run.path)}")
        path, state = found
        made = state["step"] >= config.train.steps
        if made and run.status().get("status") == "finished" and not _owes_last_evaluation(config, run.path):
            model = f"model.path={path / 'model'}"
            again = command("train", run.path / "config.yaml", "--set", model, "--set", "warm_start=null")
            fresh = f"; to start a new run from its model: {again} --set log.name=..."
            raise RunError(
                f"{run.path} has finished its {config.train.steps} steps; to train on, raise train.steps in "
                f"{run.path / 'config.yaml'} and resume{'' if config.model.lora else fresh}"
            )
        progress.say(f"resuming {run.path} at step {state['step']} of {config.train.steps}")
        job = build_job(config, run.path, model_path=path / "model", say=progress.say)
        for line in (*changed_questions(job, run.path), *changed_corpus(job.make_env, run.path)):
            progress.say(line)
        with closing(job.engine):
            if job.engine.reference is not None:
                job.engine.freeze_reference(run.path / REFERENCE)

            def begin(trainer: Trainer) -> None:
                trainer.restore(path, state)
                run.truncate_after(state["step"])
                run.update_meta(_gpus(job))
                trainer.tell("resume", state["step"])
                for row in (r for r in read_evals(run.path) if r["step"] == state["step"]):
                    trainer.tell("evaluation", row)  # of this very step, which is kept

            return _train(job, run, progress, begin=begin)


def _owes_last_evaluation(config: RunConfig, path: Path) -> bool:
    """Whether a run that has made all its steps was stopped in the evaluation after them."""
    held_out = any(c.world is not None or c.data.test is not None for c in config.alone().values())
    asked = config.eval.questions and held_out
    return bool(asked) and not any(row.get("step") == config.train.steps for row in read_evals(path))


def _train(job: Job, run: RunLog, progress: Progress, begin: Callable[[Trainer], None]) -> FinishedRun:
    """`begin` is called when everything stands, before the first step."""
    gc.collect()
    gc.freeze()  # what the libraries have loaded stays: looking through it again took a tenth of the rollouts' time
    config = job.config
    writers = make_writers(config, run.path)
    posted: list[sinks.Sink] = []
    hook = sinks.webhook_from_environment(about(run=run.path.name))
    if hook is not None:
        posted.append(hook)
    if "wandb" in config.log.all_trackers:
        posted.append(sinks.wandb())
    posted += [sinks.make(spec, run.path.name) for spec in config.log.sinks]
    teller = Teller([_show(progress)], posted, Memory(run.path / TOLD))  # a resume makes steps and their alarms again
    teller.begin(run.path.name)
    trainer = Trainer(
        job,
        run,
        monitor=Monitor(config.monitors.limits(), default_rules(config.monitors.rules), [teller]),
        progress=progress.step,
        say=progress.say,
        writers=writers,
    )
    try:
        begin(trainer)
        result = trainer.train()
    except Exception as error:
        if run.begun:
            why = f"{type(error).__name__}: {error}"
            teller(notices.failed(trainer.step_number, run.path.name, why, how_to_go_on(run.path), when=time.time()))
        raise
    finally:
        progress.end_line()
        trainer.close()
        for line in teller.close():
            progress.say(line)
    if result.status == "stopped":
        progress.say(f"stopped after step {result.steps} and saved; go on with: {command('resume', run.path)}")
    return FinishedRun(run.path, result)


def _show(progress: Progress) -> sinks.Sink:
    """Alarms on the console, below the progress line."""
    show = sinks.console(progress.stream)

    def write(alarm: Alarm) -> None:
        said = alarm.rule.startswith("guard_") or alarm.rule == "run_failed"  # by the guard, and by the error itself
        if not progress.quiet and not said:
            progress.end_line()
            show(alarm)

    return write
