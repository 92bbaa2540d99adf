"""The run configuration: one pydantic model per part, unknown keys refused. No torch.

A config file is YAML of `RunConfig`; `agentrl.config_io` reads it, applies `--set` and explains what is wrong with it.
Each option lives in one place. Units are in the name or the description.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

AdvantageName = Literal[
    "grpo", "pos_only", "rloo", "skew_r", "rloo_k", "grpo_tilde_k", "grpo_k", "dr_grpo", "reinforce"
]
PASS_AT_K = ("rloo_k", "grpo_tilde_k", "grpo_k")
PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Base of all parts: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


# ---------------------------------------------------------------------------------------------------------- model


class LoraConfig(Part):
    """Low-rank adapters (peft). The base weights stay frozen."""

    rank: PositiveInt = 16
    alpha: float = 32.0
    dropout: Share = 0.0
    targets: str | list[str] = "all-linear"


class TinyModelConfig(Part):
    """The built-in Qwen2-architecture model for machines without a GPU; used where `model.path` is `builtin:tiny`."""

    hidden_size: PositiveInt = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 2
    kv_heads: PositiveInt = 2
    intermediate_size: PositiveInt = 128
    max_positions: PositiveInt = 512
    init_std: float = Field(0.03, gt=0, description="of the weight matrices")
    embedding_std: float = Field(0.1, gt=0)


class ModelConfig(Part):
    """Which model, and how it is held in memory."""

    path: str = Field("builtin:tiny", description="a folder in Hugging Face format, a hub id, or builtin:tiny")
    revision: str | None = None
    tiny: TinyModelConfig = TinyModelConfig()
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 is autocast over fp32 weights")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int = Field(0, ge=0, description="torch CPU threads; 0 = all cores")
    fast_path: Literal["auto", "off"] = Field("auto", description="hand-written forward for Qwen2-like models")
    head: str | None = Field(None, description="module name of the output head, where it cannot be found")
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False


class WarmStartConfig(Part):
    """Supervised demonstrations before RL; only with the built-in worlds, which can write demonstrations."""

    lookup_steps: int = Field(600, ge=0, description="steps of look-up practice over throw-away facts (search world)")
    lookup_batch: PositiveInt = 16
    lookup_lr: float = Field(3e-3, gt=0)
    lookup_stop_accuracy: Share = 0.97
    demonstrations: PositiveInt = 3000
    epochs: float = Field(3.0, gt=0)
    batch: PositiveInt = 32
    lr: float = Field(2e-3, gt=0)
    context_weight: Share = Field(0.1, description="loss weight of tokens that are not actions")
    threads: int = Field(0, ge=0)


# ----------------------------------------------------------------------------------------------------------- task


class WorldConfig(Part):
    """A built-in task made from a seed. `kind: search` is the made-up encyclopedia, `kind: arithmetic` is math."""

    kind: Literal["search", "arithmetic"] = "search"
    seed: int | None = Field(None, description="defaults to the run's seed")
    people: PositiveInt = 120
    companies: PositiveInt = 50
    cities: PositiveInt = 32
    regions: PositiveInt = 12
    hops: list[int] = Field([1, 2], description="lengths of the question chains, 1 to 4")
    name_tokens: int = Field(1, ge=1, le=4, description="words per name")
    levels: list[int] = Field([1, 2], description="arithmetic: difficulty levels, 1 to 4")

    @model_validator(mode="after")
    def _hops(self) -> Self:
        if not self.hops or any(not 1 <= h <= 4 for h in self.hops):
            raise ValueError(f"hops is {self.hops}; each must be 1 to 4, for example [1, 2]")
        if not self.levels or any(not 1 <= v <= 4 for v in self.levels):
            raise ValueError(f"levels is {self.levels}; each must be 1 to 4, for example [1, 2]")
        return self


class DataConfig(Part):
    """Questions. Not needed where `world` is set."""

    train: str | None = Field(None, description="JSONL or Parquet file, folder, hub id, or recipe:NAME")
    test: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    limit: PositiveInt | None = Field(None, description="use only the first N rows of each set")


class RetrieverConfig(Part):
    """Where the search environment looks. Not needed where `world` is set."""

    url: str | None = Field(None, description="of `agentrl retriever serve` or any Search-R1 server")
    index: str | None = Field(None, description="folder written by `agentrl retriever build`")
    wait_s: float = Field(60.0, ge=0, description="how long to wait for a server at start")
    timeout_s: float = Field(10.0, gt=0, description="deadline of one call, retries included")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.url and self.index:
            raise ValueError("both url and index are set; keep the one you mean")
        return self


class EnvConfig(Part):
    """The environment: any registered Gymnasium id whose observations and actions are text."""

    id: str = Field("agentrl/Search-v0", description="'module:Namespace/Name-v0' imports the module first")
    kwargs: dict[str, Any] = Field({}, description="passed to gymnasium.make as they are (topk, max_turns, ...)")


class RolloutConfig(Part):
    """How episodes are played."""

    style: Literal["tag", "chat"] = Field("tag", description="tag: one raw continuation; chat: one message per turn")
    prompt: Literal["auto", "chat", "raw"] = Field("auto", description="auto: chat where the tokenizer has a template")
    stop: list[str] = Field([], description="stop strings; empty takes the environment's own")
    prompts_per_step: PositiveInt = 12
    group_size: int = Field(8, description="responses per question, at least 2")
    temperature: float = Field(1.0, ge=0)
    max_turns: PositiveInt = Field(6, description="a safety cap; the environment has its own limit")
    max_tokens_per_turn: PositiveInt = 22
    max_observation_tokens: PositiveInt = 500
    max_context: PositiveInt = 300
    concurrency: PositiveInt = Field(256, description="episodes in flight at once")
    tool_timeout_s: float = Field(60.0, gt=0, description="an environment step that takes longer is a failed rollout")

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}; a group-relative advantage needs at least 2, usual is 5 to 16"
            )
        if self.max_tokens_per_turn >= self.max_context:
            raise ValueError(
                f"max_context is {self.max_context} but one turn may take max_tokens_per_turn = "
                f"{self.max_tokens_per_turn}; set max_context to at least {2 * self.max_tokens_per_turn}"
            )
        return self


# ------------------------------------------------------------------------------------------------------ algorithm


class NTHRConfig(Part):
    """Negative Token Hidden Reward (METHODS §3)."""

    enabled: bool = False
    method: Literal["auto", "exact", "vstar"] = "auto"
    beta: float = Field(1.0, description="threshold factor; -inf selects every incorrect token")
    eta: Literal["2|0.5-p|", "0", "p", "1-p"] | float = "2|0.5-p|"
    baseline: Literal["random"] | None = Field(None, description="random: as many tokens, chosen uniformly")

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if math.isnan(self.beta):
            raise ValueError("beta is not a number; 1 is usual, -inf selects every incorrect token")
        if isinstance(self.eta, float) and not math.isfinite(self.eta):
            raise ValueError(f"eta is {self.eta}; it multiplies advantages and must be finite, for example 0.5")
        return self


class LLDSConfig(Part):
    """Likelihood preservation (METHODS §5)."""

    enabled: bool = False
    weight: float = Field(0.2, ge=0, description="λ")
    gate: Literal["action", "response", "token"] = "action"
    answer_weight: float | Literal["schedule"] = Field(1.0, description="LLDS-MA's β_ans; schedule: min(V_s/2, 1)")


class LossConfig(Part):
    """The clipped surrogate and what is added to it (METHODS §2)."""

    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = "token-mean"
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.2, ge=0)
    dual_clip: float | None = Field(None, description="bound c > 1 on the loss of negative advantages")
    ratio: Literal["token", "sequence"] = Field("token", description="sequence: GSPO")
    kl_coef: float = Field(0.0, ge=0, description="k3 KL to the frozen initial policy")
    nll_coef: float = Field(0.0, ge=0, description="negative log-likelihood of correct responses (NTHR §7.8)")
    entropy_coef: float = 0.0
    tis_cap: float | None = Field(None, gt=0, description="cap of truncated importance weights against the sampler")
    llds: LLDSConfig = LLDSConfig()

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip is {self.dual_clip}; it must be above 1 (3 is usual), or null for none")
        return self


class AlgorithmConfig(Part):
    """Advantages and what changes them (METHODS §1, §3)."""

    name: AdvantageName = "grpo"
    k: PositiveInt = Field(1, description="K of the pass@K advantages")
    correct_threshold: float = Field(1.0, description="a response with at least this reward is correct")
    dynamic_sampling: bool = Field(False, description="drop groups with equal rewards and draw more prompts")
    dynamic_sampling_max: PositiveInt = Field(
        3, description="prompts drawn per step, as a multiple of prompts_per_step"
    )
    nthr: NTHRConfig = NTHRConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.name in PASS_AT_K and self.k < 2:
            raise ValueError(f"name is {self.name}, a pass@K advantage, but k is {self.k}; set k to 2 or more")
        if self.name not in PASS_AT_K and self.k != 1:
            raise ValueError(f"k is {self.k} but {self.name} has no K; use one of {', '.join(PASS_AT_K)} or drop k")
        if self.name == "pos_only" and self.nthr.enabled:
            raise ValueError(
                "nthr softens the penalty on incorrect responses, and pos_only has none; use grpo with nthr"
            )
        if self.name == "reinforce" and self.nthr.enabled:
            raise ValueError("nthr needs negative advantages, and reinforce has none for rewards of 0; use grpo")
        return self


class OptimConfig(Part):
    """AdamW."""

    lr: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)


class TrainConfig(Part):
    """The loop."""

    steps: int = Field(50, ge=0)
    mini_batches: PositiveInt = Field(2, description="optimiser steps per epoch over a rollout batch")
    epochs: PositiveInt = Field(1, description="passes over a rollout batch")
    micro_batch_tokens: PositiveInt = Field(8192, description="padded tokens per forward and backward pass")
    delta_every: int = Field(1, ge=0, description="score the batch again after the update every k steps; 0 never")
    probe_size: int = Field(32, ge=0, description="correct responses kept as the probe set")
    probe_every: int = Field(5, ge=0, description="score the probe set every k steps; 0 never")
    max_nonfinite: PositiveInt = Field(3, description="skipped steps in a row before the run stops")


class EvalConfig(Part):
    """Held-out evaluation during training."""

    every: int = Field(0, ge=0, description="steps; 0 = before and after only")
    questions: int = Field(200, ge=0, description="0 = none")
    temperature: float = Field(0.0, ge=0)
    samples: PositiveInt = Field(1, description="responses per question (avg@n, pass@k)")
    batch: PositiveInt = Field(256, description="episodes in flight")


class LogConfig(Part):
    """The run directory."""

    runs_dir: str = "runs"
    name: str | None = Field(None, description="folder name under runs_dir; default: config name, time and seed")
    checkpoint_every: int = Field(50, ge=0, description="steps; 0 = at the end only")
    keep_checkpoints: PositiveInt = 3
    rollout_groups: int = Field(4, ge=-1, description="groups stored per step, besides those an alarm names; -1 = all")
    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "agentrl"


class GuardConfig(Part):
    """What the run may do about its own alarms (`agentrl.monitors.guard`)."""

    enabled: bool = False
    rules: list[str] = Field(["collapse", "death_spiral"], description="alarms that count")
    llds_weight: float = Field(0.2, gt=0, description="λ of LLDS once a warning came; doubled by each further one")
    lr_factor: float = Field(0.5, gt=0, le=1, description="the learning rate is multiplied by this at each warning")
    on_critical: Literal["rollback", "stop", "protect"] = "rollback"
    max_rollbacks: int = Field(3, ge=0, description="then the run stops")
    release_after: int = Field(0, ge=0, description="quiet steps after which a protection is taken back; 0 = never")


class OpenRLHFConfig(Part):
    """The cluster engine (`engine: openrlhf`): OpenRLHF's workers on Ray, DeepSpeed for updates, vLLM for sampling.

    One worker is one GPU. `nodes` x `gpus_per_node` workers hold the policy; `engines` x `tensor_parallel` GPUs sample.
    """

    nodes: PositiveInt = Field(1, description="machines with policy workers")
    gpus_per_node: PositiveInt = Field(1, description="policy workers on each of them")
    engines: PositiveInt = Field(1, description="vLLM engines")
    tensor_parallel: PositiveInt = Field(1, description="GPUs per vLLM engine")
    colocate: bool = Field(False, description="engines sleep on the policy's GPUs while it trains")
    zero_stage: Literal[2, 3] = Field(2, description="2 splits gradients and optimiser, 3 the weights too")
    adam_offload: bool = Field(False, description="optimiser state in main memory")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    packing: bool = Field(False, description="no padding in forward passes: the rows of a micro-batch in one")
    prefix_caching: bool = Field(True, description="a conversation's next turn feeds only its new tokens")
    gpu_memory: Share = Field(0.85, description="share of a GPU's memory that a vLLM engine may take")
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower")
    max_sequences: PositiveInt = Field(256, description="episodes that one vLLM engine decodes at once")
    asynchronous: bool = Field(False, description="sample the next step while this one trains; needs loss.tis_cap")
    staleness: int = Field(1, ge=1, le=8, description="asynchronous: versions that a sample may be behind")
    sync_tolerance: float | None = Field(
        None, gt=0, description="nats between vLLM and trainer on the probe; default 0.2 in bfloat16, 0.01 in float32"
    )
    ray_address: str | None = Field(None, description="of a running cluster; default RAY_ADDRESS, else a local one")
    object_store_gb: float | None = Field(None, gt=0, description="of a local Ray; default a third of main memory")
    restarts: int = Field(3, ge=0, description="vLLM engines that may be started again in a run")
    check_versions: bool = Field(True, description="refuse versions that were not tested together")
    start_timeout_s: float = Field(1800.0, gt=0, description="for all workers to load the model")
    sample_timeout_s: float = Field(600.0, gt=0, description="for one turn")
    step_timeout_s: float = Field(3600.0, gt=0, description="for one pass over a batch, or a checkpoint")
    sync_timeout_s: float = Field(600.0, gt=0, description="for handing new weights to vLLM")
    warn_after_s: float = Field(60.0, gt=0, description="then the watchdog says who waits for whom")

    @property
    def workers(self) -> int:
        """Policy workers, one GPU each."""
        return self.nodes * self.gpus_per_node

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        sampling = self.engines * self.tensor_parallel
        return max(self.workers, sampling) if self.colocate else self.workers + sampling

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.colocate and self.engines * self.tensor_parallel != self.workers:
            raise ValueError(
                f"colocate shares every GPU, but engines x tensor_parallel = {self.engines} x {self.tensor_parallel} "
                f"and there are {self.workers} policy workers; set engines to "
                f"{max(1, self.workers // self.tensor_parallel)}"
            )
        if self.colocate and self.asynchronous:
            raise ValueError(
                "colocate and asynchronous exclude each other: an engine on a training GPU sleeps; switch one off"
            )
        if self.staleness > 1 and not self.asynchronous:
            raise ValueError(f"staleness is {self.staleness} but asynchronous is off; switch it on, or drop staleness")
        return self


class RunConfig(Part):
    """Everything a run depends on."""

    name: str = "run"
    seed: int = 0
    engine: Literal["local", "openrlhf"] = Field("local", description="local: this process; openrlhf: a Ray cluster")
    model: ModelConfig = ModelConfig()
    world: WorldConfig | None = None
    warm_start: WarmStartConfig | None = None
    data: DataConfig = DataConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    env: EnvConfig = EnvConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    guard: GuardConfig = GuardConfig()
    openrlhf: OpenRLHFConfig = OpenRLHFConfig()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = []
        if self.world is None and self.data.train is None:
            problems.append("neither world nor data.train is set: say where questions come from")
        if self.world is not None and self.data.train is not None:
            problems.append("both world and data.train are set: keep the one you mean")
        if self.world is None and self.warm_start is not None:
            problems.append("warm_start needs a built-in world, which writes the demonstrations: drop it or set world")
        if self.model.path == "builtin:tiny" and self.world is None:
            problems.append(
                "model.path builtin:tiny speaks only the built-in worlds' words: set world, or another model"
            )
        llds = self.algorithm.loss.llds
        if llds.enabled and self.train.mini_batches * self.train.epochs == 1:
            problems.append(
                "algorithm.loss.llds is zero on the first update of a batch and train makes only one: "
                "set train.mini_batches or train.epochs to 2 or more"
            )
        if self.guard.enabled and self.train.mini_batches * self.train.epochs == 1:
            problems.append(
                "guard.enabled protects with LLDS, which is zero where train makes only one update per batch: "
                "set train.mini_batches or train.epochs to 2 or more"
            )
        if self.guard.enabled and self.guard.on_critical == "rollback" and not self.log.checkpoint_every:
            problems.append("guard.on_critical is rollback but log.checkpoint_every is 0: set it to 10, for example")
        if self.algorithm.k > self.rollout.group_size:
            problems.append(
                f"algorithm.k = {self.algorithm.k} is larger than rollout.group_size = {self.rollout.group_size}"
            )
        if self.train.mini_batches > self.rollout.prompts_per_step * self.rollout.group_size:
            problems.append(
                f"train.mini_batches = {self.train.mini_batches} is more than the responses of a step "
                f"({self.rollout.prompts_per_step} x {self.rollout.group_size})"
            )
        if self.rollout.temperature == 0:
            problems.append(
                "rollout.temperature is 0: all responses of a group are equal and nothing is learned; use 1.0"
            )
        if self.engine == "openrlhf":
            problems += self._cluster_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _cluster_problems(self) -> list[str]:
        """What the cluster engine cannot do, each with a value that would work."""
        c, out = self.openrlhf, []
        responses = self.rollout.prompts_per_step * self.rollout.group_size
        rows = responses // self.train.mini_batches
        if rows < c.workers:
            out.append(
                f"a mini-batch has {rows} responses ({self.rollout.prompts_per_step} x {self.rollout.group_size} in "
                f"{self.train.mini_batches} mini-batches) but openrlhf has {c.workers} policy workers: set "
                f"train.mini_batches to {max(1, responses // c.workers)} or less"
            )
        if self.rollout.prompts_per_step < c.workers and self.algorithm.nthr.enabled:
            out.append(
                f"NTHR scores whole groups and rollout.prompts_per_step = {self.rollout.prompts_per_step} leaves some "
                f"of the {c.workers} policy workers without one: set rollout.prompts_per_step to {c.workers} or more"
            )
        if self.model.lora is not None and c.zero_stage == 3:
            out.append("model.lora with openrlhf.zero_stage 3 is not supported: set openrlhf.zero_stage to 2")
        if c.adam_offload and c.colocate:
            out.append("openrlhf.adam_offload is of no use with openrlhf.colocate, which offloads all: set it to false")
        if c.asynchronous and self.algorithm.loss.tis_cap is None:
            out.append(
                "openrlhf.asynchronous trains on samples of older weights, which truncated importance weights correct: "
                "set algorithm.loss.tis_cap to 2.0"
            )
        if c.asynchronous and self.guard.enabled and self.guard.on_critical == "rollback":
            out.append(
                "guard.on_critical rollback would go back behind samples that are already in flight: "
                "set guard.on_critical to stop, or openrlhf.asynchronous to false"
            )
        return out
