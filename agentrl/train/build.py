"""From a config to the living parts of a run: world or data, tokenizer, model, engine, environments, chat format."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium

from agentrl import plugins
from agentrl.config import RetrieverConfig, RunConfig
from agentrl.data.doubts import doubts
from agentrl.data.mixture import MixedStream
from agentrl.data.tasks import TaskStream, load_tasks, questions_hash, subset, tasks_from_world
from agentrl.engines.base import Engine
from agentrl.engines.kind import Parts, ready_kind
from agentrl.engines.local.engine import LocalEngine
from agentrl.engines.shared.loading import BUILTIN, is_adapter, load_tokenizer
from agentrl.errors import AgentRLError, ConfigError, PluginError
from agentrl.rollouts.chat import ChatFormat
from agentrl.rollouts.play import EnvPool, Player
from agentrl.rollouts.tools import with_tools
from agentrl.runs.files import read_json
from agentrl.runs.read import META
from agentrl.train.trial import fitting
from agentrl.types import Task

Say = Callable[[str], None]


def _some(tasks: list[Task], n: int, world: Any) -> list[Task]:
    return tasks[:n] if world is not None or not n else subset(tasks, n)


@dataclass
class Source:
    """One environment of a run: how it is made, what is asked in it, and how its text becomes tokens."""

    make_env: Callable[[], gymnasium.Env[str, str]]
    chat: ChatFormat
    train_tasks: list[Task]
    test_tasks: list[Task]
    world: Any = None


@dataclass
class Job:
    """What training and evaluation work on."""

    config: RunConfig
    engine: Engine
    chat: ChatFormat
    make_env: Callable[[], gymnasium.Env[str, str]]
    train_tasks: list[Task]
    test_tasks: list[Task]
    world: Any = None
    sources: dict[str, Source] = field(default_factory=dict)  # of a run with several environments, by name

    def held_out(self, only: str | None = None) -> list[Task]:
        """The `eval.questions` held-out questions, none where it is 0. A world's own are in random order already.

        Of several environments, so many of each; `only` names one of them.
        """
        n = self.config.eval.questions
        if self.sources:
            asked = [s for name, s in self.sources.items() if only in (None, name)]
            return [task for s in asked for task in _some(s.test_tasks, n, s.world)]
        return _some(self.test_tasks, n, self.world)

    def pool(self) -> EnvPool:
        """Environments to play, of every kind that the run has."""
        return EnvPool({name: s.make_env for name, s in self.sources.items()} if self.sources else self.make_env)

    def stream(self, seed: int) -> TaskStream | MixedStream:
        """The training questions without end, of several environments by their weights."""
        if not self.sources:
            return TaskStream(self.train_tasks, seed)
        streams = {name: TaskStream(s.train_tasks, seed) for name, s in self.sources.items()}
        return MixedStream(streams, self.config.weights, seed, self.config.curriculum)

    def player(
        self, pool: EnvPool, *, seed: int, temperature: float | None = None, concurrency: int | None = None
    ) -> Player:
        """Plays this job's environments with its engine; where None, as the config's `rollout` says."""
        threshold = self.config.algorithm.correct_threshold
        return Player(
            self.engine, pool, self.chat, self.config.rollout, seed, temperature, concurrency, threshold,
            {name: s.chat for name, s in self.sources.items()},
        )  # fmt: skip

    def questions(self) -> dict[str, str]:
        """The hash of each set of questions: what a run notes, and a resume or an evaluation compares."""
        return {"train": questions_hash(self.train_tasks), "test": questions_hash(self.test_tasks)}

    @property
    def local(self) -> LocalEngine:
        """The engine, where what is asked needs its model in this process. ConfigError for another."""
        if not isinstance(self.engine, LocalEngine):
            raise ConfigError(
                [f"this works with engine local alone, and engine is {self.config.engine}: set it to local"]
            )
        return self.engine


def build_job(
    config: RunConfig, work_dir: Path, *, model_path: Path | None = None, say: Say = print, questions: bool = True
) -> Job:
    """Everything that the config names. `work_dir` keeps the built-in world's index; `model_path` is of a checkpoint.

    Without `questions` those of the config are not read: for who brings others.

    Raises AgentRLError for everything in the config that does not work, before anything is sampled.
    """
    kind = ready_kind(config)
    alone = config.alone()
    worlds = {name: build_world(one) for name, one in alone.items()}
    world = one_world(worlds, config.demonstrated)
    model_config = config.model
    adapter = model_path if model_path is not None and is_adapter(model_path) else None
    if model_path is not None and adapter is None:
        model_config = model_config.model_copy(update={"path": str(model_path)})
    if config.model.path == BUILTIN:
        assert world is not None  # RunConfig has checked it
        tokenizer = world.tokenizer()
    else:
        tokenizer = load_tokenizer(model_config)
    sources = {}
    for name, one in alone.items():
        with about(name):
            sources[name] = build_source(
                name, one, worlds[name], tokenizer, work_dir / name, named(say, name), questions
            )
    widest = config.widest()
    engine = kind.build(
        Parts(
            config=widest,
            model=model_config,
            adapter=adapter,
            tokenizer=tokenizer,
            run_dir=work_dir,
            total_steps=config.train.steps * config.train.epochs * config.train.mini_batches,
            say=say,
            turn_ends=tuple(dict.fromkeys(end for s in sources.values() for end in s.chat.turn_ends())),
        )
    )
    if widest.rollout.max_context > engine.context_length:
        engine.close()
        raise ConfigError(
            [
                f"rollout.max_context = {widest.rollout.max_context} but {model_config.path} has "
                f"{engine.context_length} positions; set it to {engine.context_length} or less"
            ]
        )
    first = next(iter(sources.values()))
    train = [task for s in sources.values() for task in s.train_tasks]
    test = [task for s in sources.values() for task in s.test_tasks]
    several = sources if isinstance(config.env, list) else {}
    return Job(config, engine, first.chat, first.make_env, train, test, world, several)


def build_source(
    name: str, config: RunConfig, world: Any, tokenizer: Any, work_dir: Path, say: Say, questions: bool = True
) -> Source:
    """One environment. `config` is as if it were the only one; tasks of one among several bear its `name`."""
    train, test = questions_of(config, world, say).values() if questions else ([], [])
    make_env = environment_maker(config, world, work_dir, say)
    make_env, schemas = with_tools(make_env, tokenizer, config.rollout)
    chat = ChatFormat(tokenizer, config.rollout, schemas)
    train = fitting(train, make_env, chat, config.rollout, "data.train", say) if train else []
    test = fitting(test, make_env, chat, config.rollout, "data.test", say) if test else []
    return Source(make_env, chat, belonging(train, name), belonging(test, name), world)


def belonging(tasks: list[Task], name: str) -> list[Task]:
    """The tasks as those of one environment among several: `math:12` is no question of another one."""
    return [replace(task, id=f"{name}:{task.id}", env=name) for task in tasks] if name else tasks


def one_world(worlds: dict[str, Any], demonstrated: dict[str, float] | None = None) -> Any:
    """What the model is to know the words of: the run's world, or those of its environments as one; None without.

    `demonstrated`: the share of each in the warm start, by default equal ones.
    """
    if list(worlds) == [""]:
        return worlds[""]
    made = {name: world for name, world in worlds.items() if world is not None}
    if not made:
        return None
    from agentrl.envs.worlds.several import Worlds

    try:
        return Worlds([*made.values()], [(demonstrated or {}).get(name, 1.0) for name in made])
    except ValueError as error:
        raise ConfigError([f"env: {error}"]) from error


def named(say: Say, name: str) -> Say:
    """`say` with the environment's name before each line, where it has one."""
    return (lambda line: say(f"{name}: {line}")) if name else say


@contextmanager
def about(name: str) -> Iterator[None]:
    """What is wrong inside is of the environment `name`, where a run has several."""
    try:
        yield
    except AgentRLError as error:
        if not name:
            raise
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        raise ConfigError([f"env, {name}: {problem}" for problem in problems]) from error


def questions_of(config: RunConfig, world: Any, say: Say) -> dict[str, list[Task]]:
    """The training and the held-out questions, `{"train": [...], "test": [...]}`; what is doubtful is printed."""
    if world is not None:
        return {"train": tasks_from_world(world, "train"), "test": tasks_from_world(world, "test")}
    test = load_tasks(config.data, "test", say) if config.data.test else []
    train = load_tasks(config.data, "train", say)
    for line in doubts(config.data, train, test):
        say(line)
    return {"train": train, "test": test}


def changed_questions(job: Job, run_dir: Path) -> list[str]:
    """A line for each set of questions that is not the one that the run in `run_dir` began with."""
    noted = read_json(run_dir / META).get("questions")
    noted = noted if isinstance(noted, dict) else {}
    return [
        f"the {split} questions are not those that {run_dir} began with (SHA-256 {noted[split][:12]}, now {now[:12]}): "
        "what it measures from here on is not comparable"
        for split, now in job.questions().items()
        if noted.get(split) not in (None, now)
    ]


def build_world(config: RunConfig) -> Any:
    """The world that the config names, or None. ConfigError where it cannot be made or lacks what the run asks."""
    if config.world is None:
        return None
    from agentrl.envs.worlds import make_world

    kind = config.world.kind
    seed = config.seed if config.world.seed is None else config.world.seed
    try:
        world = make_world(kind, seed, **config.world.parameters)
    except (TypeError, ValueError) as error:
        if kind not in plugins.BUILTIN["world"]:
            given = ", ".join(f"{k} = {v!r}" for k, v in config.world.kwargs.items()) or "nothing"
            raise ConfigError([f"world.kind {kind} cannot be made with world.kwargs ({given}): {error}"]) from error
        raise ConfigError([f"world: {error}"]) from error
    missing = [name for name in _asked_of_worlds(config) if not hasattr(world, name)]
    if missing:
        raise ConfigError([f"world.kind {kind} has no {', '.join(missing)}: see agentrl.envs.worlds.World"])
    return world


def _asked_of_worlds(config: RunConfig) -> list[str]:
    asked = ["env_id", "env_kwargs", "passages", "questions"]
    asked += ["tokenizer"] if config.model.path == BUILTIN else []
    if config.warm_start is None or config.warm_start.file is not None:
        return asked
    return [*asked, "demonstration", *(["practice"] if config.model.path == BUILTIN else [])]


def environment_maker(
    config: RunConfig, world: Any, work_dir: Path, say: Say = print
) -> Callable[[], gymnasium.Env[str, str]]:
    """A function that makes one environment; a search server is waited for here, aloud, before anything is sampled."""
    from agentrl import envs

    envs.register_envs()
    kwargs = dict(world.env_kwargs) if world is not None else {}
    env_id = config.environment.id
    if world is not None:
        env_id = world.env_id
        if world.passages:
            kwargs["retriever"] = _world_index(world, work_dir, config.retriever, say)
    elif config.retriever.url:
        from agentrl.retriever.client import RetrieverClient

        client = RetrieverClient(
            config.retriever.url, timeout_s=config.retriever.timeout_s, retries=config.retriever.retries
        )
        client.wait_until_ready(config.retriever.wait_s, say=say)
        kwargs["retriever"] = client
    elif config.retriever.index:
        kwargs["retriever"] = _index(config.retriever.index, config.retriever, say)
    elif env_id == "agentrl/Search-v0" and "retriever" not in config.environment.kwargs:
        raise ConfigError(
            [
                "env.id is agentrl/Search-v0 but no retriever is set: give retriever.url or retriever.index "
                "(`agentrl retriever build CORPUS INDEX` makes one)"
            ]
        )
    kwargs.update(config.environment.kwargs)

    def make(**stand_in: Any) -> gymnasium.Env[str, str]:
        return envs.made_or_told(env_id, kwargs | stand_in)

    try:
        make().close()
    except envs.NotRegistered as error:
        raise ConfigError([f"env.id: {error}"]) from error
    except (TypeError, ValueError, ImportError, gymnasium.error.Error, PluginError) as error:
        if unknown := _unknown_parameters(env_id, kwargs):
            raise ConfigError(unknown) from error
        given = ", ".join(f"{k} = {v!r}" for k, v in config.environment.kwargs.items()) or "nothing"
        raise ConfigError([f"env.id {env_id} cannot be made with env.kwargs ({given}): {error}"]) from error
    return make


def _unknown_parameters(env_id: str, kwargs: dict[str, Any]) -> list[str]:
    """A line for each of `kwargs` that the environment's class has no parameter for."""
    spec = gymnasium.registry.get(env_id.rpartition(":")[2])
    made: Any = None if spec is None else spec.entry_point
    made = plugins.load(made) if isinstance(made, str) else made
    if made is None:
        return []
    parameters = inspect.signature(made).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    return [
        f"env.kwargs.{name}: {env_id} has no such parameter{plugins.unknown(name, list(parameters))}"
        for name in kwargs
        if name not in parameters
    ]


def _world_index(world: Any, work_dir: Path, config: RetrieverConfig, say: Say) -> Any:
    """The world's passages as an index on disk, built once."""
    from agentrl.retriever.building import Plan, build_index
    from agentrl.retriever.corpus import Passage
    from agentrl.retriever.encoders.spec import resolve

    path = work_dir / "index"
    if not path.exists():
        plan = Plan(config.kind, resolve(config.encoder) if config.encoder else None, threads=config.threads)
        build_index((Passage(p["id"], p["title"], p["text"]) for p in world.passages), path, plan)
    return _index(str(path), config, say)


def _index(path: str, config: RetrieverConfig, say: Say) -> Any:
    """The index in a folder; one with an encoder in a process of its own."""
    from agentrl.retriever.process import open_beside

    return open_beside(path, threads=config.threads, timeout_s=config.timeout_s, wait_s=config.wait_s, say=say)
