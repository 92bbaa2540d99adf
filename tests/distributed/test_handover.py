"""Who is on a shared GPU when: the order of calls, with a GPU's memory counted. The actors are stand-ins."""

import asyncio
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from agentrl.engines.openrlhf.router import Router
from agentrl.engines.openrlhf.sync import PROBE_TEXTS, SyncError
from agentrl.errors import RunError
from tests.small import small_config

WEIGHTS, STATE, CACHE = 14, 50, 30  # GB of a 7B shape: weights on either side, the policy's optimiser, vLLM's cache
GPU = 80


class Gpu:
    """One GPU and what the calls do to it."""

    def __init__(self):
        self.held, self.log, self.most = {}, [], 0
        self.dead = False
        self.gaps = iter(())
        self.bits = {"embedding": 5}

    def put(self, **sizes):
        self.held |= sizes
        total = sum(self.held.values())
        assert total <= GPU, f"{total} GB after {self.log[-3:]}: {self.held}"

    def drop(self, *names):
        for name in names:
            self.held.pop(name, None)

    def call(self, method, *arguments):
        self.log.append(method if method != "sleep" else f"sleep {arguments[0]}")
        match method:
            case "ready":
                self.put(engine=WEIGHTS, cache=CACHE)
            case "start":
                self.put(policy=WEIGHTS, state=STATE)  # while it is built
                self.drop("state")
            case "sleep":
                self.drop("engine", "cache")
            case "wake_up":
                tags = arguments[0] if arguments else ["weights", "kv_cache"]
                self.put(**({"engine": WEIGHTS} if "weights" in tags else {}))
                self.put(**({"cache": CACHE} if "kv_cache" in tags else {}))
            case "offload":
                self.drop("state")
            case "reload":
                self.put(state=STATE)
            case "broadcast":
                assert ("engine" in self.held and "cache" not in self.held) or "state" not in self.held
                return dict(self.bits)
            case "weight_digest":
                return [{"embedding": {"": 5}}]
            case "turn":
                return [1, 2], [-1.0, -1.0], False
            case "probe":
                gap = next(self.gaps, 0.001)
                return [[-1.0 - gap] * 2 for _ in arguments[0]]
        return None


class Calls:
    """`calls.Calls` without Ray: a call is done at once."""

    def __init__(self, gpu):
        self.gpu = gpu

    def start(self, actors, method, arguments):
        return [self.gpu.call(method, *given) for given in arguments]

    def all(self, actors, method, *arguments, whom, deadline_s):
        return [self.gpu.call(method, *arguments) for _ in actors]

    def results(self, references, whom, deadline_s):
        return references


@pytest.fixture
def shared(tmp_path):
    """(hand-over, GPU) of one policy worker and one engine on one GPU, as they are once started."""
    from agentrl.engines.openrlhf.handover import HandOver

    def make(**changes):
        config = small_config(
            tmp_path, engine="openrlhf", openrlhf={"colocate": True}, train={"mini_batches": 1}, **changes
        )
        gpu = Gpu()
        cluster = SimpleNamespace(
            engines=[object()], workers=[object()], max_length=128, start_engine=lambda i: gpu.drop("engine", "cache")
        )
        handover = HandOver(config, cluster, Calls(gpu), Router(1), [3, 4], gpu.log.append)
        patch.object(handover, "_gone", lambda: [0] if gpu.dead and not gpu.__dict__.update(dead=False) else []).start()
        gpu.call("ready")
        handover.engines_to_bed()
        gpu.call("start")
        handover.sync(bump=False)
        return handover, gpu

    yield make
    patch.stopall()


def test_a_7b_starts_and_steps_on_one_gpu_and_hands_over_once_a_step(shared):
    handover, gpu = shared()
    assert gpu.log == ["ready", "sleep 2", "start"]  # nothing is handed over before somebody samples
    for step in range(3):
        gpu.log.clear()
        assert not handover.ready_to_sample
        handover.engines_awake()
        assert handover.ready_to_sample and handover.version == step
        assert set(gpu.held) == {"policy", "engine", "cache"}
        handover.engines_awake()  # the other episodes
        for _ in range(2):  # scoring and the update
            handover.policy_awake()
        handover.sync()
        for _ in range(2):  # Δ and the probe
            handover.policy_awake()
        assert set(gpu.held) == {"policy", "state"}
        moved = [c for c in gpu.log if c not in ("turn", "probe", "weight_digest")]
        offload = ["offload"] if step else []  # OpenRLHF begins with the optimiser in main memory
        assert moved == [*offload, "wake_up", "broadcast", "wake_up", "sleep 2", "reload"]


def test_a_sleeping_engine_that_was_killed_is_started_again_with_room_for_it(shared):
    handover, gpu = shared()
    handover.engines_awake()
    handover.policy_awake()
    gpu.dead = True
    gpu.log.clear()
    handover.sync()
    handover.engines_awake()
    assert handover.router.alive == [True] and handover.ready_to_sample
    assert gpu.log.index("offload") < gpu.log.index("ready") < gpu.log.index("broadcast")
    assert "vLLM engine 0 died: it is started again" in gpu.log


def test_an_engine_that_died_while_it_sampled_does_not_stop_the_policy(shared):
    handover, gpu = shared()
    handover.engines_awake()
    gpu.dead = True
    gpu.drop("engine", "cache")
    handover.policy_awake()
    assert handover.router.alive == [False] and "state" in gpu.held
    handover.engines_awake()
    assert handover.router.alive == [True]


def test_the_engine_starts_in_this_order_and_hands_over_before_the_first_sample(shared):
    from agentrl.engines.openrlhf.engine import OpenRLHFEngine

    handover, gpu = shared()
    gpu.log.clear()
    gpu.held.clear()
    engine = object.__new__(OpenRLHFEngine)
    engine.config, engine.handover, engine.calls = handover.config, handover, handover.calls
    engine.router, engine.cluster, engine._eos, engine._sampled = handover.router, handover.cluster, [0], 0
    engine.text = SimpleNamespace(decode=str)
    vars(engine.cluster).update(arguments=None, settings=None, references=[], reference_path="")
    engine._load("folder", None)
    assert gpu.log == ["ready", "sleep 2", "start"]

    async def turn(*arguments):
        assert handover.ready_to_sample
        return [5, 0], [-1.0, -1.0], True

    engine._turn = turn
    assert asyncio.run(engine.sample([1, 2], max_tokens=4)).ids == [5, 0]
    assert gpu.log.count("broadcast") == 1


def test_with_lora_the_base_model_is_kept_in_main_memory(shared):
    handover, gpu = shared(model={"lora": {"rank": 4}})
    handover.engines_awake()
    handover.policy_awake()
    assert [c for c in gpu.log if c.startswith("sleep")] == ["sleep 1"] * 2
    gpu.log.clear()
    handover.engines_awake()  # the weights have not changed: nothing is sent
    assert gpu.log == ["offload", "wake_up"] and handover.ready_to_sample


def test_the_probe_learns_forgives_once_and_then_stops(shared):
    handover, gpu = shared(model={"dtype": "bfloat16"})
    gpu.gaps = iter([0.04, 0.09, 0.15, 0.05, 0.15, 0.14])
    handover.engines_awake()
    assert handover.limit.baseline == pytest.approx(0.04) and handover.gap == pytest.approx(0.04)
    handover.sync()
    handover.engines_awake()  # 0.09 is below 2.5 x 0.04
    handover.sync()
    handover.engines_awake()  # 0.15 is not, 0.05 with another seed is
    assert handover.gap == pytest.approx(0.05) and handover.limit.baseline == pytest.approx(0.04)
    handover.sync()
    with pytest.raises(SyncError, match=r"0\.14 nats on average .*0\.04 at the first hand-over, at most 0\.1"):
        handover.engines_awake()


def test_a_digest_that_differs_stops_at_once_whatever_the_probe_says(shared):
    handover, gpu = shared()
    gpu.bits = {"embedding": 6}
    with pytest.raises(SyncError, match=r"not the trainer's: embedding"):
        handover.engines_awake()
    assert gpu.log.count("probe") == 0


def test_texts_of_a_probe_have_seeds_of_their_own(shared):
    handover, gpu = shared()
    seeds = []
    call = gpu.call

    def seen(method, *arguments):
        if method == "turn":
            seeds.append(arguments[1]["seed"])
        return call(method, *arguments)

    gpu.call = seen
    handover.engines_awake()
    handover.sync()
    handover.engines_awake()
    assert len(set(seeds)) == len(seeds) == 2 * PROBE_TEXTS


def test_after_a_hand_over_that_failed_nobody_samples(shared):
    handover, gpu = shared()
    call = gpu.call

    def failing(method, *arguments):
        if method == "broadcast":
            raise ValueError("the network")
        return call(method, *arguments)

    gpu.call = failing
    with pytest.raises(ValueError, match="the network"):
        handover.engines_awake()
    with pytest.raises(RunError, match="a hand-over of weights has failed"):
        handover.engines_awake()
