"""Rules over a whole configuration: what its parts must not ask of each other. No torch.

Each rule yields one line for each problem: the key, why it cannot be, and a value that would work. A rule holds for
every `RunConfig`, from a file or built in Python: `rule` registers it with the schema.
"""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Iterator
from typing import Any

from agentrl import plugins
from agentrl.config.schema import RunConfig, rule
from agentrl.errors import PluginError


@rule
def questions(run: RunConfig) -> Iterator[str]:
    """Questions come from exactly one place, and what is made for the built-in worlds stays with them."""
    if run.world is None and run.data.train is None:
        yield "neither world nor data.train is set: say where questions come from"
    if run.world is not None and run.data.train is not None:
        yield "both world and data.train are set: keep the one you mean"
    if run.world is None and run.warm_start is not None and run.warm_start.file is None:
        yield (
            "warm_start needs demonstrations: set warm_start.file to a JSONL file of them, or world, which writes its "
            "own; or drop warm_start"
        )
    if run.model.path == "builtin:tiny" and run.world is None:
        yield "model.path builtin:tiny speaks only the built-in worlds' words: set world, or another model"


LONGEST_NAME = 200  # bytes; a file system takes 255, and seed and time, or a prefix, are added


@rule
def names(run: RunConfig) -> Iterator[str]:
    """The run's name is to be a folder's."""
    key, name = ("name", run.name) if run.log.name is None else ("log.name", run.log.name)
    size = len(name.encode(errors="surrogatepass"))
    if size > LONGEST_NAME:
        yield (
            f"{key} has {size} bytes ({name[:20]}...) and becomes a folder's name, which takes {LONGEST_NAME}: "
            "shorten it, or set log.name"
        )


@rule
def plain_values(run: RunConfig) -> Iterator[str]:
    """YAML reads some values as types that neither JSON nor an environment's server has."""
    yield from _odd(run.model_dump(), "")


def _odd(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, datetime.date):
        yield f'{key} is a date ({value}): write it in quotes, "{value}", to have it as text'
    elif isinstance(value, bytes | set):
        yield f"{key} is a YAML {type(value).__name__}: write a text or a list"
    elif isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in parts:
            if isinstance(name, datetime.date | bytes | tuple):
                yield f"{key} has a key that is a {type(name).__name__} ({name!s}): write it in quotes"
            yield from _odd(inner, f"{key}.{name!s}".lstrip("."))


@rule
def likelihood_preservation(run: RunConfig) -> Iterator[str]:
    """LLDS, configured or switched on by the guard, must be able to act."""
    llds, once = run.algorithm.loss.llds, run.train.mini_batches * run.train.epochs == 1
    if llds.enabled and once:
        yield (
            "algorithm.loss.llds is zero on the first update of a batch and train makes only one: "
            "set train.mini_batches or train.epochs to 2 or more"
        )
    if (llds.enabled or run.guard.protects) and llds.answer_weight == "schedule" and single_turn(run):
        yield (
            "algorithm.loss.llds.answer_weight schedule is min(V_s/2, 1), and a single turn has no searches: the "
            "answer's weight would be 0; set it to 1.0, or another number"
        )
    if run.guard.protects and once:
        yield (
            "guard.enabled protects with LLDS, which is zero where train makes only one update per batch: "
            "set train.mini_batches or train.epochs to 2 or more"
        )


@rule
def guard(run: RunConfig) -> Iterator[str]:
    """What the guard may do must make sense with the algorithm and the checkpoints."""
    if run.guard.protects and not run.algorithm.advantage.penalises:
        yield (
            f"guard.enabled protects with LLDS, which with algorithm.name {run.algorithm.name} would hold up "
            "incorrect responses, too: set algorithm.name to grpo, or guard.enabled to false"
        )
    names = alarm_names(run)
    for name in run.guard.rules:
        if name not in names:
            yield f"guard.rules: no alarm is called {name!r}{plugins.unknown(name, names)}"
    if run.guard.enabled and run.guard.on_critical == "rollback" and not run.log.checkpoint_every:
        yield "guard.on_critical is rollback but log.checkpoint_every is 0: set it to 10, for example"


@rule
def best(run: RunConfig) -> Iterator[str]:
    """A best checkpoint needs what it is chosen by."""
    asked = run.eval.questions and (run.world is not None or run.data.test is not None)
    if run.log.keep_best is not None and not asked:
        yield (
            f"log.keep_best is {run.log.keep_best}, which is measured on held-out questions, and there are none: "
            "set eval.questions to 200, for example, and data.test, or drop keep_best"
        )


@rule
def sizes(run: RunConfig) -> Iterator[str]:
    """A step has enough responses for what is made of them."""
    if run.algorithm.k > run.rollout.group_size:
        yield f"algorithm.k = {run.algorithm.k} is larger than rollout.group_size = {run.rollout.group_size}"
    if run.train.mini_batches > run.rollout.prompts_per_step * run.rollout.group_size:
        yield (
            f"train.mini_batches = {run.train.mini_batches} is more than the responses of a step "
            f"({run.rollout.prompts_per_step} x {run.rollout.group_size})"
        )
    turns, cap = run.environment.kwargs.get("max_turns"), run.rollout.max_turns
    if isinstance(turns, int) and turns > cap:
        yield (
            f"env.kwargs.max_turns = {turns} but rollout.max_turns = {cap} cuts every episode before: set "
            f"rollout.max_turns to {turns} or more (one more where the environment gives a last turn to answer)"
        )
    if run.eval.samples > 1 and run.eval.temperature == 0:
        yield (
            f"eval.samples = {run.eval.samples} at eval.temperature 0 gives one response {run.eval.samples} times: "
            "set eval.temperature to 1.0, for example, or eval.samples to 1"
        )
    if run.rollout.temperature == 0:
        yield "rollout.temperature is 0: all responses of a group are equal and nothing is learned; use 1.0"


@rule
def engine(run: RunConfig) -> Iterator[str]:
    """What the engine says of the whole: it is found here, and never named."""
    try:
        kind = plugins.find("engine", run.engine)
    except PluginError as error:
        yield f"engine: {error}"
        return
    if not hasattr(kind, "rules"):
        yield f"engine is {run.engine!r}, a {type(kind).__name__}: it must be an agentrl.engines.kind.EngineKind"
        return
    yield from kind.rules(run)
    samplers, asked = getattr(kind, "samplers", ()), run.rollout.sampler  # a plug-in's kind may have none
    if asked is not None and asked not in samplers:
        yield (
            f"rollout.sampler is {asked}, and engine {run.engine} "
            + (f"takes {', '.join(samplers)}" if samplers else "brings its own: set rollout.sampler to null")
            + ", or set engine to local"
        )


def alarm_names(run: RunConfig) -> list[str]:
    """The names that an alarm of this run may bear: those of its monitors' rules."""
    own = [getattr(plugins.find("monitor rule", name), "name", name) for name in run.monitors.rules]
    return [*plugins.BUILTIN["monitor rule"], *own]


def single_turn(run: RunConfig) -> bool:
    """Whether the environment says that its episodes have one turn (`single_turn = True` on its class).

    Asked of the class, so that nothing is made; an environment that cannot be imported is refused when it is made.
    """
    try:
        env_id = run.environment.id if run.world is None else plugins.find("world", run.world.kind).env_id
        return bool(getattr(_environment(env_id), "single_turn", False))
    except (PluginError, ImportError, AttributeError):
        return False


def _environment(env_id: str) -> Any:
    """The class of an environment, by its id or `module:Namespace/Name-v0`; None where it is not registered."""
    if env_id in [p.name for p in plugins.available("environment")]:
        return plugins.find("environment", env_id)
    import gymnasium

    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    spec = gymnasium.registry.get(name)
    if spec is None or spec.entry_point is None:
        return None
    return plugins.load(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
