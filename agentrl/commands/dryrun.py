"""`--dry-run`: the resolved config with each value's origin, what a step will cost, and one scripted step.

Loads no weights, and makes everything else: what cannot be made is found here.

The estimates are upper bounds for tokens (every response as long as allowed) and rough for time: operations divided by
the rate of a matrix product measured on this machine. Left out: attention over long contexts, communication, tools.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentrl.config import ModelConfig, RunConfig
from agentrl.config.files import DEFAULT, LoadedConfig, value_at
from agentrl.console import duration, table
from agentrl.engines.kind import Shape, Table, engine_kind
from agentrl.engines.shared.estimate import action_tokens, responses
from agentrl.errors import AgentRLError, MissingPackageError, ModelError, need


def tried(config: RunConfig) -> tuple[list[str], bool]:
    """Lines on what was really made: tokenizer, questions, environment, one step; and whether all of it could be.

    A search server is waited for no longer than two seconds.
    """
    from tempfile import TemporaryDirectory

    need("trying the environment", "torch", "transformers")
    from agentrl.train.build import build_world, named, one_world

    lines: list[str] = []
    config = config.model_copy(deep=True)
    config.retriever.wait_s = min(config.retriever.wait_s, 2.0)
    alone = config.alone()
    whole = True
    try:
        worlds = {name: build_world(one) for name, one in alone.items()}
        world = one_world(worlds)
    except Exception as error:
        return [_problem("world", error)], False
    with TemporaryDirectory(prefix="agentrl-dry-run-") as folder:
        for name, one in alone.items():
            say = named(lines.append, name)
            whole &= _tried_one(one, worlds[name], world, Path(folder) / name, say)
    return lines, whole


def _problem(what: str, error: Exception) -> str:
    return f"problem, {what}: {'' if isinstance(error, AgentRLError) else f'{type(error).__name__}: '}{error}"


def _tried_one(config: RunConfig, world: Any, words: Any, folder: Path, say: Callable[[str], None]) -> bool:
    """`tried` of one environment; `words` is the world whose words the tiny model knows."""
    from agentrl.engines.shared.loading import BUILTIN, load_tokenizer
    from agentrl.rollouts.chat import ChatFormat
    from agentrl.rollouts.tools import with_tools
    from agentrl.train.build import environment_maker, questions_of
    from agentrl.train.trial import fitting, one_step

    what = "questions"
    try:
        sets = questions_of(config, world, say)
        say(f"questions: {', '.join(f'{len(tasks)} {split}' for split, tasks in sets.items())}")
        what = "environment"
        make_env = environment_maker(config, world, folder, say)
        say(f"one step of {one_step(make_env, sets['train'][0])}")
        what = "tokenizer"
        tokenizer = words.tokenizer() if config.model.path == BUILTIN else load_tokenizer(config.model)
        make_env, schemas = with_tools(make_env, tokenizer, config.rollout)
        chat = ChatFormat(tokenizer, config.rollout, schemas)
        what = "questions"
        for split, tasks in sets.items():
            if tasks:
                fitting(tasks, make_env, chat, config.rollout, f"data.{split}", say)
    except Exception as error:  # the environment is somebody else's code: whatever it raises is what is to be shown
        say(_problem(what, error))
        return False
    return True


def report(loaded: LoadedConfig) -> str:
    """What a run would cost: the first part of what `agentrl train CONFIG --dry-run` prints."""
    config = loaded.config
    rows = [["key", "value", "from"]]
    rows += [[key, _short(value_at(config, key)), origin] for key, origin in loaded.origins.items()]
    rows.sort(key=lambda r: (r[2] == DEFAULT) if r[0] != "key" else -1)
    config = config.widest()  # what follows are upper bounds
    lines = [table(rows), "", table(_tokens(config))]
    if searching := _search_threads(config):
        lines += ["", table(searching)]
    kind = engine_kind(config.engine)
    for rows in kind.placement(config):
        lines += ["", table(rows)]
    try:
        shape = model_shape(loaded.config)
    except (ModelError, MissingPackageError) as error:
        lines += ["", f"memory and time are not estimated: {error}"]
        return "\n".join(lines)
    estimate = kind.estimate(config, shape)
    lines += ["", table(estimate.memory)]
    if estimate.operations is not None:
        lines += ["", table(_time(config, estimate.operations))]
    if shape.positions < config.rollout.max_context:
        lines += [
            "",
            f"rollout.max_context = {config.rollout.max_context} is more than the model's {shape.positions} positions",
        ]
    return "\n".join(lines)


def model_shape(run: RunConfig) -> Shape:
    """Read from the model's own config; a hub id that is not cached is fetched (the config file alone)."""
    need("an estimate", "torch", "transformers")
    from transformers import AutoConfig

    from agentrl.engines.shared.shape import shape_of

    config = run.model
    if config.path == "builtin:tiny":
        from agentrl.engines.shared.tiny import tiny_model_config
        from agentrl.train.build import build_world, one_world

        world = one_world({name: build_world(one) for name, one in run.alone().items()})
        model_config: Any = tiny_model_config(config.tiny, world.tokenizer())
    else:
        try:
            model_config = AutoConfig.from_pretrained(
                config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
        except Exception as e:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ModelError(f"the config of model.path = {config.path!r} cannot be read ({reason})") from e
    return shape_of(model_config, None if config.lora is None else config.lora.rank)


def _search_threads(config: RunConfig) -> Table:
    """Who gets which CPU threads, where an index is searched here; empty where it is not."""
    r = config.retriever
    if r.index is None and (config.world is None or config.world.kind not in ("search", "search_tools", "geography")):
        return []
    encodes = r.encoder is not None
    if r.index is not None:
        try:
            meta = json.loads((Path(r.index).expanduser() / "meta.json").read_text("utf-8"))
            encodes = meta.get("encoder") is not None
        except (OSError, ValueError, AttributeError):
            return [["CPU threads", ""], ["the index", f"not known: {r.index} is no index"]]
    trainer = config.model.threads or len(os.sched_getaffinity(0))
    own = (
        f"{r.threads} that encode (retriever.threads), in a process of its own"
        if encodes
        else "none: words are searched"
    )
    return [["CPU threads", ""], ["the trainer", f"{trainer} of torch (model.threads)"], ["the index", own]]


def _tokens(config: RunConfig) -> Table:
    n, r = responses(config), config.rollout
    return [
        ["tokens per step, at most", ""],
        ["responses", f"{n:,} ({r.prompts_per_step} prompts x {r.group_size})"],
        ["sampled tokens", f"{n * action_tokens(config):,}"],
        ["tokens in context", f"{n * r.max_context:,}"],
        ["optimiser steps", f"{config.train.mini_batches * config.train.epochs}"],
        ["responses per optimiser step", f"{-(-n // config.train.mini_batches)}"],
        ["sampled tokens in the run", f"{n * action_tokens(config) * config.train.steps:,}"],
    ]


def _time(config: RunConfig, operations: float) -> Table:
    """Of one step, if this machine does its `operations` as fast as a product of matrices."""
    rate, device = _matmul_rate(config.model)
    seconds = operations / rate
    return [
        ["time, rough and at most", ""],
        ["measured matrix product", f"{rate / 1e9:,.0f} GFLOP/s on {device}"],
        ["operations per step", f"{operations / 1e9:,.1f} GFLOP"],
        ["time per step", f"{seconds:.2f} s" if seconds < 10 else duration(seconds)],
        ["time for the run", duration(seconds * config.train.steps)],
    ]


def _matmul_rate(config: ModelConfig) -> tuple[float, str]:
    """FLOP/s of a (1024, 1024) product, from a tenth of a second of trying."""
    import torch

    from agentrl.engines.shared.loading import pick_device

    device = pick_device(config.device)
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    a = torch.randn(1024, 1024, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + 0.15
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best, str(device)


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
