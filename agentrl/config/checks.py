"""Rules over a whole configuration: what its parts must not ask of each other. No torch.

Each rule yields one line for each problem: the key, why it cannot be, and a value that would work. A rule holds for
every `RunConfig`, from a file or built in Python: `rule` registers it with the schema.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    if run.world is None and run.warm_start is not None:
        yield "warm_start needs a built-in world, which writes the demonstrations: drop it or set world"
    if run.model.path == "builtin:tiny" and run.world is None:
        yield "model.path builtin:tiny speaks only the built-in worlds' words: set world, or another model"


@rule
def likelihood_preservation(run: RunConfig) -> Iterator[str]:
    """LLDS, configured or switched on by the guard, must be able to act."""
    llds, once = run.algorithm.loss.llds, run.train.mini_batches * run.train.epochs == 1
    if llds.enabled and once:
        yield (
            "algorithm.loss.llds is zero on the first update of a batch and train makes only one: "
            "set train.mini_batches or train.epochs to 2 or more"
        )
    single_turn = (run.world is not None and run.world.kind == "arithmetic") or "Math-v0" in run.env.id
    if (llds.enabled or run.guard.protects) and llds.answer_weight == "schedule" and single_turn:
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
    if run.guard.protects and run.algorithm.name in ("pos_only", "reinforce"):
        yield (
            f"guard.enabled protects with LLDS, which with algorithm.name {run.algorithm.name} would hold up "
            "incorrect responses, too: set algorithm.name to grpo, or guard.enabled to false"
        )
    if run.guard.enabled and run.guard.on_critical == "rollback" and not run.log.checkpoint_every:
        yield "guard.on_critical is rollback but log.checkpoint_every is 0: set it to 10, for example"


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
