"""The run configuration: one pydantic model per part, unknown keys refused. No torch.

A config file is YAML of `RunConfig`; `agentrl.config.files` reads it, applies `--set` and explains what is wrong with
it. Rules over several parts are in `agentrl.config.checks`. Each option lives in one place. Units are in the name or
the description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from agentrl import plugins
from agentrl.config import advantages
from agentrl.config.base import Part, PositiveInt, Share, plugin_name
from agentrl.config.cluster import OpenRLHFConfig
from agentrl.config.monitors import MonitorsConfig
from agentrl.config.sampling import VLLMConfig
from agentrl.errors import PluginError

# ---------------------------------------------------------------------------------------------------------- model


class LoraConfig(Part):
    """Low-rank adapters (peft). The base weights stay frozen."""

    rank: PositiveInt = Field(16, description="of the two factors of a change of weights")
    alpha: float = Field(32.0, description="the change is scaled by alpha / rank")
    dropout: Share = Field(0.0, description="of the adapters' input while they are trained")
    targets: str | list[str] = Field(
        "all-linear", description="names of the layers that get adapters, as peft takes them"
    )


class TinyModelConfig(Part):
    """The built-in Qwen2-architecture model for machines without a GPU; used where `model.path` is `builtin:tiny`."""

    hidden_size: PositiveInt = Field(128, description="width")
    layers: PositiveInt = Field(2, description="transformer blocks")
    heads: PositiveInt = Field(2, description="attention heads of a layer")
    kv_heads: PositiveInt = Field(2, description="key/value heads of a layer")
    intermediate_size: PositiveInt = Field(128, description="width inside a feed-forward part")
    max_positions: PositiveInt = Field(512, description="tokens that a context may have")
    init_std: float = Field(0.03, gt=0, description="of the weight matrices")
    embedding_std: float = Field(0.1, gt=0, description="of the embedding, at the start")


class ModelConfig(Part):
    """Which model, and how it is held in memory."""

    path: str = Field("builtin:tiny", description="a folder in Hugging Face format, a hub id, or builtin:tiny")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id; null: its newest")
    tiny: TinyModelConfig = TinyModelConfig()
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 is autocast over fp32 weights")
    device: str = Field(
        "auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N", pattern=r"^(auto|cpu|cuda(:\d+)?)$"
    )
    threads: int = Field(0, ge=0, description="torch CPU threads; 0 = all cores")
    fast_path: Literal["auto", "off"] = Field("auto", description="hand-written forward for small Llama and Qwen2")
    head: str | None = Field(None, description="module name of the output head, where it cannot be found")
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = Field(False, description="less memory for activations, a third more computing")
    trust_remote_code: bool = Field(
        False, description="run Python code that the model's folder brings; it can do anything"
    )


class WarmStartConfig(Part):
    """Supervised demonstrations before RL: from a file, or written by the world. Practice is the built-in model's."""

    file: str | None = Field(
        None, description="JSONL of demonstrations (docs/real_model.md); else the world writes `demonstrations` of them"
    )
    held_out: Share = Field(0.1, description="share kept back to measure accuracy, at most 32; not builtin:tiny")
    lookup_steps: int = Field(
        600, ge=0, description="steps of practice: looking up throw-away facts, or the table of arithmetic"
    )
    lookup_batch: PositiveInt = Field(16, description="sequences of a step of practice")
    lookup_lr: float = Field(3e-3, gt=0, description="learning rate of practice")
    lookup_decay: Share = Field(0.0, description="share of lookup_lr that is gone at the last step, falling linearly")
    lookup_stop_accuracy: Share = Field(0.97, description="practice ends when this share is looked up correctly")
    demonstrations: PositiveInt = Field(3000, description="how many the world writes, where there is no file")
    epochs: float = Field(3.0, gt=0, description="passes over the demonstrations; may be a fraction")
    batch: PositiveInt = Field(32, description="demonstrations of an optimiser step")
    bucket: PositiveInt = Field(1024, description="demonstrations sorted by length together; 1 = mixed lengths")
    lr: float | None = Field(
        None, gt=0, description="null: 2e-3 for builtin:tiny, 2e-5 for other models, 2e-4 with LoRA"
    )
    context_weight: Share = Field(
        0.1, description="loss weight of tokens that are not actions; builtin:tiny alone, 0 for other models"
    )
    threads: int = Field(0, ge=0, description="torch CPU threads of the warm start; 0: as model.threads")


# ----------------------------------------------------------------------------------------------------------- task


class WorldConfig(Part):
    """A task made from a seed. `search` is a made-up encyclopedia, `arithmetic` is math, `geography` real facts.

    `search_tools` is `search` with native tool calls.
    """

    kind: Annotated[str, plugin_name("world")] = Field(
        "search", description="search, search_tools, arithmetic, geography, or a plug-in's name"
    )
    kwargs: dict[str, Any] = Field({}, description="of a plug-in world, passed to it as they are")
    seed: int | None = Field(None, description="defaults to the run's seed")
    people: PositiveInt = Field(120, description="search: people of the encyclopedia")
    companies: PositiveInt = Field(50, description="search: companies of it")
    cities: PositiveInt = Field(32, description="search: cities of it")
    regions: PositiveInt = Field(12, description="search: regions of it")
    hops: list[int] = Field([1, 2], description="lengths of the question chains, 1 to 4")
    name_tokens: int = Field(1, ge=1, le=4, description="words per name")
    gold: bool = Field(False, description="search, search_tools: questions name their gold passages, for gold_recall")
    levels: list[int] = Field([1, 2], description="arithmetic: difficulty levels, 1 to 4")
    passages: PositiveInt = Field(8000, description="geography: passages in all, 6000 to 30000")
    comparisons: Share = Field(0.15, description="geography: share of the questions that compare two places")

    @model_validator(mode="after")
    def _hops(self) -> Self:
        if not self.hops or any(not 1 <= h <= 4 for h in self.hops):
            raise ValueError(f"hops is {self.hops}; each must be 1 to 4, for example [1, 2]")
        if not self.levels or any(not 1 <= v <= 4 for v in self.levels):
            raise ValueError(f"levels is {self.levels}; each must be 1 to 4, for example [1, 2]")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """What the world is made with, besides the seed."""
        built_in = self.kind in plugins.BUILTIN["world"]
        return self.model_dump(exclude={"kind", "seed", "kwargs"}) if built_in else dict(self.kwargs)

    @model_validator(mode="after")
    def _own_parameters(self) -> Self:
        if self.kind in plugins.BUILTIN["world"]:
            if self.kwargs:
                raise ValueError(f"kwargs is for worlds of your own; {self.kind} has keys of its own: drop kwargs")
            return self
        keys = set(WorldConfig.model_fields) - {"kind", "seed", "kwargs"}
        changed = [k for k in sorted(keys) if getattr(self, k) != WorldConfig.model_fields[k].default]
        if changed:
            raise ValueError(f"{', '.join(changed)} belong to the built-in worlds; {self.kind} takes kwargs: {{...}}")
        return self


class DataConfig(Part):
    """Questions. Not needed where `world` is set."""

    train: str | None = Field(None, description="JSONL or Parquet file, folder, hub id, or recipe:NAME")
    test: str | None = Field(None, description="held-out questions, named as train is; null: no evaluation")
    train_split: str = Field("train", description="of a hub data set or a folder of several")
    test_split: str = Field("test", description="the same for held-out questions")
    limit: PositiveInt | None = Field(None, description="use only the first N rows of each set")


class RetrieverConfig(Part):
    """Where the search environment looks. Not needed where `world` is set."""

    url: str | None = Field(None, description="of `agentrl retriever serve` or any Search-R1 server")
    index: str | None = Field(None, description="folder written by `agentrl retriever build`")
    kind: str | None = Field(
        None, description="of the index made for `world`: bm25, or with an encoder flat, hybrid, ..."
    )
    encoder: str | None = Field(
        None, description="folder or hub id of a sentence encoder: `world` is searched by meaning"
    )
    threads: int = Field(1, ge=1, description="CPU threads that encode queries, in the index's own process")
    wait_s: float = Field(60.0, ge=0, description="how long to wait for a server at start")
    timeout_s: float = Field(10.0, gt=0, description="deadline of one call, retries included")
    retries: int | None = Field(
        None, ge=0, description="of one call that fails (refused, timeout, 5xx); null: until timeout_s has passed"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.url and self.index:
            raise ValueError("both url and index are set; keep the one you mean")
        return self


class EnvConfig(Part):
    """The environment: any registered Gymnasium id whose observations and actions are text, or a plug-in's name."""

    id: str = Field("agentrl/Search-v0", description="'module:Namespace/Name-v0' imports the module first")
    kwargs: dict[str, Any] = Field({}, description="passed to gymnasium.make as they are (topk, max_turns, ...)")


class RolloutConfig(Part):
    """How episodes are played."""

    style: Literal["tag", "chat"] = Field("tag", description="tag: one raw continuation; chat: one message per turn")
    prompt: Literal["auto", "chat", "raw"] = Field("auto", description="auto: chat where the tokenizer has a template")
    stop: list[str] = Field([], description="stop strings; empty takes the environment's own")
    tools: Literal["text", "native"] = Field(
        "text", description="native: calls in the model's own format, tools and results by its own chat template"
    )
    call_format: Annotated[str, plugin_name("call format")] | None = Field(
        None, description="of native tools; by default the one that the model's template writes"
    )
    prompts_per_step: PositiveInt = Field(12, description="questions of a training step")
    group_size: int = Field(8, description="responses per question, at least 2")
    temperature: float = Field(1.0, ge=0, description="of sampling in training; the loss is at the same temperature")
    max_turns: PositiveInt = Field(6, description="a safety cap; the environment has its own limit")
    max_tokens_per_turn: PositiveInt = Field(22, description="sampled tokens of one turn; what is longer is cut")
    max_observation_tokens: PositiveInt = Field(500, description="tokens of one tool result; what is longer is cut")
    max_context: PositiveInt = Field(300, description="tokens of an episode, prompt and tool results included")
    concurrency: PositiveInt = Field(256, description="episodes in flight at once")
    tool_timeout_s: float = Field(60.0, gt=0, description="an environment step that takes longer is a failed rollout")
    outage_wait_s: float = Field(
        600.0, ge=0, description="how long to wait for a tool that most episodes have lost; 0: not at all"
    )
    sampler: Literal["torch", "vllm", "auto"] | None = Field(
        None,
        description="of engine local: torch, vllm, or auto (vllm where it is installed and has a GPU); null: torch",
    )
    vllm: VLLMConfig = VLLMConfig()

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}; a group-relative advantage needs at least 2, usual is 5 to 16"
            )
        if self.tools == "native" and (self.style != "chat" or self.prompt == "raw"):
            key, value = ("style", self.style) if self.style != "chat" else ("prompt", self.prompt)
            raise ValueError(
                f"tools is native, which needs the model's chat template, but {key} is {value}; set style: chat and "
                "prompt: auto, or tools: text"
            )
        if self.call_format is not None and self.tools == "text":
            raise ValueError(
                f"call_format is {self.call_format}, which is of native tools: set tools: native, or drop it"
            )
        if self.max_tokens_per_turn >= self.max_context:
            raise ValueError(
                f"max_context is {self.max_context} but one turn may take max_tokens_per_turn = "
                f"{self.max_tokens_per_turn}; set max_context to at least {2 * self.max_tokens_per_turn}"
            )
        return self


class EntryData(Part):
    """`data` of one environment among several; null takes the run's."""

    train: str | None = Field(None, description="as data.train")
    test: str | None = Field(None, description="as data.test")
    train_split: str | None = Field(None, description="as data.train_split")
    test_split: str | None = Field(None, description="as data.test_split")
    limit: PositiveInt | None = Field(None, description="as data.limit")


class EntryRetriever(Part):
    """`retriever` of one environment among several; null takes the run's."""

    url: str | None = Field(None, description="as retriever.url; the run's index is then not taken")
    index: str | None = Field(None, description="as retriever.index; the run's url is then not taken")
    kind: str | None = Field(None, description="as retriever.kind")
    encoder: str | None = Field(None, description="as retriever.encoder")
    threads: PositiveInt | None = Field(None, description="as retriever.threads")
    wait_s: float | None = Field(None, ge=0, description="as retriever.wait_s")
    timeout_s: float | None = Field(None, gt=0, description="as retriever.timeout_s")
    retries: int | None = Field(None, ge=0, description="as retriever.retries")


class EntryRollout(Part):
    """The lengths and turns of one environment among several; null takes the run's."""

    stop: list[str] | None = Field(None, description="as rollout.stop")
    max_turns: PositiveInt | None = Field(None, description="as rollout.max_turns")
    max_tokens_per_turn: PositiveInt | None = Field(None, description="as rollout.max_tokens_per_turn")
    max_observation_tokens: PositiveInt | None = Field(None, description="as rollout.max_observation_tokens")
    max_context: PositiveInt | None = Field(None, description="as rollout.max_context")
    tool_timeout_s: float | None = Field(None, gt=0, description="as rollout.tool_timeout_s")


class EnvEntry(Part):
    """One environment among several. What does not stand here comes from the top of the config."""

    id: str | None = Field(None, description="as env.id; a world brings its own")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]+$", description="what its metrics are called; by default from its world or id"
    )
    weight: float = Field(1.0, ge=0, description="of the questions that a step draws, this share comes from it")
    demonstrations: float = Field(
        1.0,
        ge=0,
        description="of the warm start's demonstrations, this share is of its world, beside the others' shares",
    )
    kwargs: dict[str, Any] = Field({}, description="passed to gymnasium.make as they are")
    world: WorldConfig | None = Field(None, description="where its questions come from; null: data, or the run's world")
    data: EntryData = EntryData()
    retriever: EntryRetriever = EntryRetriever()
    rollout: EntryRollout = EntryRollout()

    @property
    def default_name(self) -> str:
        """`agentrl/Math-v0` is math, the world search is search."""
        if self.world is not None:
            return self.world.kind.rpartition(":")[2]
        return (self.id or "").rpartition("/")[2].rpartition(":")[2].rpartition("-v")[0].lower() or "env"


class CurriculumConfig(Part):
    """Weights of several environments that follow how often their episodes are correct."""

    enabled: bool = Field(False, description="an environment's weight is multiplied by 4 p (1 - p), p: share correct")
    floor: float = Field(0.2, gt=0, le=1, description="the least that a weight is multiplied by; 1 is the most")
    memory: PositiveInt = Field(10, description="steps over which p is averaged, exponentially")


def _form(value: Any) -> str:
    return "list" if isinstance(value, list) else "mapping"


#: `env` as it is written: a mapping for one environment, or a list of several.
Environments = Annotated[
    Annotated[EnvConfig, Tag("mapping")] | Annotated[list[EnvEntry], Tag("list")], Discriminator(_form)
]


# ------------------------------------------------------------------------------------------------------ algorithm


class NTHRConfig(Part):
    """Negative Token Hidden Reward (NTHR §5)."""

    enabled: bool = Field(False, description="soften the penalty on tokens that correct responses share")
    method: Literal["auto", "exact", "vstar"] = Field(
        "auto",
        description="scores over the whole vocabulary, or over V* alone (faster); auto: whichever is cheaper here",
    )
    beta: float = Field(1.0, allow_inf_nan=True, description="threshold factor; -inf selects every incorrect token")
    eta: Literal["2|0.5-p|", "0", "p", "1-p"] | Annotated[float, Field(allow_inf_nan=True)] = Field(
        "2|0.5-p|", description="factor of the penalty on selected tokens; p is the group's share of correct responses"
    )
    baseline: Literal["random"] | None = Field(None, description="random: as many tokens, chosen uniformly")

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if math.isnan(self.beta):
            raise ValueError("beta is not a number; 1 is usual, -inf selects every incorrect token")
        if self.beta == math.inf:
            raise ValueError(
                "beta is inf, above which no score lies: 1 is usual; to soften nothing, set enabled: false"
            )
        if isinstance(self.eta, float) and not 0 <= self.eta < math.inf:
            raise ValueError(
                f"eta is {self.eta}; it multiplies the penalty of selected tokens and must be finite and not negative, "
                "for example 0.5"
            )
        if self.baseline is not None and not self.enabled:
            raise ValueError(
                f"baseline is {self.baseline}, which chooses tokens in place of NTHR, but enabled is false: set "
                "enabled: true, or drop baseline"
            )
        return self


class LLDSConfig(Part):
    """Likelihood preservation (LLDS §5.5)."""

    enabled: bool = Field(False, description="penalise a fall of the likelihood of responses that are not penalised")
    weight: float = Field(0.2, ge=0, description="λ, the factor of the penalty")
    gate: Literal["action", "response", "token"] = Field(
        "action", description="what must have lost likelihood as a whole before its tokens count"
    )
    answer_weight: float | Literal["schedule"] = Field(1.0, description="LLDS-MA's β_ans; schedule: min(V_s/2, 1)")

    margin: float | Literal["measured"] = Field(
        "measured",
        description="nats per √token that a gate's decrease must exceed; measured: 3 times the rounding noise",
    )

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.enabled and self.weight == 0:
            raise ValueError("weight (λ) is 0, so that llds adds nothing: 0.2 is usual, or set enabled: false")
        if isinstance(self.margin, float) and self.margin < 0:
            raise ValueError(f"margin is {self.margin}; use 0 (the paper's gate), a positive number, or measured")
        if isinstance(self.answer_weight, float) and self.answer_weight < 0:
            raise ValueError(
                f"answer_weight is {self.answer_weight}; a negative weight would lower the likelihood of answers: use "
                "0 or more, or schedule"
            )
        return self


class LossConfig(Part):
    """The clipped surrogate, or another loss by name, and what is added to it (docs/algorithms.md)."""

    name: Annotated[str, plugin_name("loss")] = Field("clipped", description="the loss of one token")
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = Field(
        "token-mean", description="how the losses of tokens become one: over all tokens, or response by response"
    )
    clip_low: float = Field(0.2, ge=0, description="ε below: a ratio under 1 - clip_low is clipped")
    clip_high: float = Field(0.2, ge=0, description="ε above: a ratio over 1 + clip_high is clipped")
    dual_clip: float | None = Field(None, description="bound c > 1 on the loss of negative advantages")
    ratio: Literal["token", "sequence"] = Field("token", description="sequence: GSPO")
    kl_coef: float = Field(0.0, ge=0, description="k3 KL to the frozen initial policy")
    nll_coef: float = Field(0.0, ge=0, description="negative log-likelihood of correct responses (NTHR §7.8)")
    entropy_coef: float = Field(0.0, description="bonus on the entropy of sampled tokens")
    tis_cap: float | None = Field(None, gt=0, description="cap of truncated importance weights against the sampler")
    llds: LLDSConfig = LLDSConfig()

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if self.clip_low > 1:
            raise ValueError(f"clip_low is {self.clip_low}; a ratio cannot fall below 0, so use 1 (no clip) or less")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip is {self.dual_clip}; it must be above 1 (3 is usual), or null for none")
        if self.tis_cap is not None and self.tis_cap < 1:
            raise ValueError(
                f"tis_cap is {self.tis_cap}; the weights are 1 where sampler and trainer agree, and a cap below that "
                "scales every token down: 2 is usual"
            )
        return self


class AlgorithmConfig(Part):
    """Advantages and what changes them (docs/algorithms.md)."""

    name: Annotated[str, plugin_name("advantage")] = Field("grpo", description="the advantage (docs/algorithms.md)")
    k: PositiveInt = Field(1, description="K of the pass@K advantages")
    correct_threshold: float = Field(1.0, description="a response with at least this reward is correct")
    mask_truncated: bool = Field(
        False, description="episodes that a limit has cut are left out of the loss (DAPO's overlong filtering)"
    )
    dynamic_sampling: bool = Field(False, description="drop groups with equal rewards and draw more prompts")
    dynamic_sampling_max: PositiveInt = Field(
        3, description="prompts drawn per step, as a multiple of prompts_per_step"
    )
    nthr: NTHRConfig = NTHRConfig()
    token_weights: list[Annotated[str, plugin_name("token weight")]] = Field(
        [], description="multipliers of the advantages, token by token, besides NTHR"
    )
    loss: LossConfig = LossConfig()

    @property
    def advantage(self) -> advantages.Advantage:
        """What `name` is."""
        return advantages.find(self.name)

    @property
    def needs_correct(self) -> bool:
        """Whether which responses are correct decides what is learned, and not their rewards alone."""
        row = self.advantage
        return row.counts_correct or row.incorrect == "zero" or self.nthr.enabled or self.loss.nll_coef > 0

    @model_validator(mode="after")
    def _sane(self) -> Self:
        try:
            row = self.advantage
        except PluginError as error:
            raise ValueError(str(error)) from error
        if row.takes_k and self.k < 2:
            raise ValueError(f"name is {self.name}, a pass@K advantage, but k is {self.k}; set k to 2 or more")
        if not row.takes_k and self.k != 1:
            rows = ", ".join(name for name, other in advantages.built_in().items() if other.takes_k)
            raise ValueError(f"k is {self.k} but {self.name} has no K; use one of {rows} or drop k")
        for_zero = " for rewards of 0" if row.incorrect == "reward" else ""
        if self.nthr.enabled and not row.penalises:
            raise ValueError(
                f"nthr softens the penalty on incorrect responses, and {self.name} has none{for_zero}; "
                "use grpo with nthr"
            )
        if self.loss.llds.enabled and not row.penalises:
            raise ValueError(
                f"llds protects every response whose advantage is not negative, with {self.name} incorrect ones, too; "
                "use grpo with llds"
            )
        if self.loss.dual_clip is not None and row.incorrect == "zero":
            raise ValueError(
                f"loss.dual_clip bounds the loss of negative advantages, and {self.name} has none; drop it"
            )
        if "nthr" in self.token_weights:
            raise ValueError(
                "token_weights has nthr, which nthr.enabled: true switches on: set that, and drop nthr here"
            )
        return self


class OptimConfig(Part):
    """AdamW."""

    lr: float = Field(5e-4, gt=0, description="learning rate, after the warm-up")
    warmup_steps: int = Field(
        0, ge=0, description="optimiser steps, of which a training step makes train.mini_batches x train.epochs"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up, to 0 at the last step"
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay rates of the two moments")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; norms and biases are left alone")
    max_grad_norm: float | None = Field(1.0, gt=0, description="null: no clipping")


class TrainConfig(Part):
    """The loop."""

    steps: int = Field(50, ge=0, description="training steps; 0 evaluates alone")
    mini_batches: PositiveInt = Field(2, description="optimiser steps per epoch over a rollout batch, in equal parts")
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
    temperature: float = Field(0.0, ge=0, description="of evaluation; 0: greedy")
    samples: PositiveInt = Field(1, description="responses per question (avg@n, pass@k)")
    batch: PositiveInt = Field(256, description="episodes in flight")


class LogConfig(Part):
    """The run directory."""

    runs_dir: str = Field("runs", description="folder of all runs")
    name: str | None = Field(None, description="folder name under runs_dir; default: config name, time and seed")
    checkpoint_every: int = Field(50, ge=0, description="steps; 0 = at the end only")
    keep_checkpoints: PositiveInt = Field(3, description="the newest ones; older ones are deleted")
    keep_best: str | None = Field(
        None, description="held-out metric (em): its best checkpoint is kept, as checkpoints/best"
    )
    rollout_groups: int = Field(4, ge=-1, description="groups stored per step, besides those an alarm names; -1 = all")
    trackers: list[Annotated[str, plugin_name("tracker")]] = Field(
        [], description="where metrics go besides the folder"
    )
    tensorboard: bool = Field(False, description="the same as trackers: [tensorboard]")
    wandb: bool = Field(False, description="the same as trackers: [wandb]")
    wandb_project: str = Field("agentrl", description="of the tracker wandb")
    sinks: list[str] = Field([], description="where alarms go besides console and alarms.jsonl: NAME or NAME=ARGUMENT")

    @field_validator("sinks")
    @classmethod
    def _sinks(cls, specs: list[str]) -> list[str]:
        if found := [p for s in specs if (p := plugins.problem_with("sink", s.partition("=")[0]))]:
            raise ValueError("\n".join(found))
        return specs

    @property
    def all_trackers(self) -> list[str]:
        """Names of the trackers, each once."""
        switched = [name for name in ("tensorboard", "wandb") if getattr(self, name)]
        return list(dict.fromkeys([*self.trackers, *switched]))


class GuardConfig(Part):
    """What the run may do about its own alarms (`agentrl.monitors.stop_rule`)."""

    enabled: bool = Field(False, description="act on alarms: false only raises them")
    rules: list[str] = Field(["collapse", "death_spiral"], description="alarms that count")
    llds_weight: float = Field(0.2, gt=0, description="λ of LLDS once a warning came; doubled by each further one")
    lr_factor: float = Field(0.5, gt=0, le=1, description="at each warning, of the learning rate; it stays below that")
    patience: int = Field(10, ge=0, description="steps a protection is given before another warning adds to it")
    on_warn: Literal["protect", "nothing"] = Field("protect", description="protect: LLDS on, learning rate down")
    on_critical: Literal["rollback", "stop", "protect"] = Field(
        "rollback", description="rollback: back to weights from before the trouble, protected"
    )
    max_rollbacks: int = Field(3, ge=0, description="then the run stops")
    release_after: int = Field(0, ge=0, description="quiet steps after which a protection is taken back; 0 = never")

    @property
    def protects(self) -> bool:
        """Whether it may switch LLDS on."""
        return self.enabled and (self.on_warn == "protect" or self.on_critical != "stop")


class RunConfig(Part):
    """Everything a run depends on."""

    name: str = Field("run", description="of the config, in the names of its runs")
    seed: int = Field(0, ge=0, description="of questions, sampling and everything else that is drawn")
    engine: Annotated[str, plugin_name("engine")] = Field(
        "local", description="local: this process; openrlhf: a Ray cluster; or a plug-in"
    )
    model: ModelConfig = ModelConfig()
    world: WorldConfig | None = None
    warm_start: WarmStartConfig | None = None
    data: DataConfig = DataConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    env: Environments = EnvConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    monitors: MonitorsConfig = MonitorsConfig()
    guard: GuardConfig = GuardConfig()
    openrlhf: OpenRLHFConfig = OpenRLHFConfig()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            alone = self.alone()
        except ValidationError as error:  # an entry's limits beside those of the top
            raise ValueError(
                "\n".join(f"env: {e['msg'].removeprefix('Value error, ')}" for e in error.errors())
            ) from None
        found = {name: [p for check in RULES for p in check(config)] for name, config in alone.items()}
        shared = set.intersection(*map(set, found.values())) if found else set()
        said = [
            problem if problem in shared or not name else f"env.{i} ({name}): {problem}"
            for i, (name, problems) in enumerate(found.items())
            for problem in problems
        ]
        if problems := list(dict.fromkeys([*self._weights(), *said])):
            raise ValueError("\n".join(problems))
        return self

    def _weights(self) -> Iterable[str]:
        """What is wrong with several environments as a whole."""
        entries = self.env if isinstance(self.env, list) else None
        if entries is None:
            if self.curriculum.enabled:
                yield "curriculum.enabled weighs several environments, and env is one: make env a list, or drop it"
            return
        if not entries:
            yield "env is an empty list: give at least one entry, for example {id: agentrl/Search-v0, weight: 1}"
        elif not any(e.weight for e in entries):
            yield f"env: the {len(entries)} weights sum to nothing: give at least one entry a weight above 0"
        if entries and self.warm_start is not None and not any(e.demonstrations for e in entries):
            yield "env: no entry has demonstrations for warm_start: give one a share above 0, or drop warm_start"
        names = [e.name for e in entries if e.name is not None]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            yield f"env: two entries have the name {twice[0]}: their metrics would be one; give each its own"

    @property
    def environment(self) -> EnvConfig:
        """`env` of a run with one environment; of several, `alone` gives each its own config."""
        assert isinstance(self.env, EnvConfig), "several environments: ask alone()"
        return self.env

    @property
    def weights(self) -> dict[str, float]:
        """Of each environment, by its name as in `alone`."""
        return {name: e.weight for name, e in zip(self.alone(), self.env)} if isinstance(self.env, list) else {"": 1.0}

    @property
    def demonstrated(self) -> dict[str, float]:
        """The share of each environment's world in the warm start, named as in `alone`."""
        if not isinstance(self.env, list):
            return {"": 1.0}
        return {name: entry.demonstrations for name, entry in zip(self.alone(), self.env)}

    def alone(self) -> dict[str, RunConfig]:
        """Name -> the config as if that environment were the only one. `{"": self}` where `env` is a mapping."""
        if isinstance(self.env, EnvConfig):
            return {"": self}
        out: dict[str, RunConfig] = {}
        for entry in self.env:
            name = first = entry.name or entry.default_name
            n = 1
            while name in out:
                n += 1
                name = f"{first}-{n}"
            out[name] = self._with(entry)
        return out

    def _with(self, entry: EnvEntry) -> RunConfig:
        own_questions = entry.data.train is not None
        data = DataConfig() if entry.world is not None else self.data
        found_at = entry.retriever.url or entry.retriever.index
        retriever = self.retriever.model_copy(update={"url": None, "index": None}) if found_at else self.retriever
        env = {"kwargs": entry.kwargs} | ({} if entry.id is None else {"id": entry.id})
        return self.model_copy(
            update={
                "env": EnvConfig(**env),
                "world": entry.world or (None if own_questions else self.world),
                "data": _over(data, entry.data),
                "retriever": _over(retriever, entry.retriever),
                "rollout": _over(self.rollout, entry.rollout),
                "curriculum": CurriculumConfig(),
            }
        )

    def widest(self) -> RunConfig:
        """One environment with the largest limits of all: what an engine must have room for."""
        configs = list(self.alone().values())
        if isinstance(self.env, EnvConfig) or not configs:
            return self
        limits = ("max_turns", "max_tokens_per_turn", "max_observation_tokens", "max_context")
        most = {name: max(getattr(c.rollout, name) for c in configs) for name in limits}
        rollout = configs[0].rollout.model_copy(update=most)
        env = EnvConfig(id=configs[0].environment.id)
        return configs[0].model_copy(update={"env": env, "rollout": rollout})


P = TypeVar("P", bound=Part)


def _over(top: P, own: Part) -> P:
    """`top` with what stands in `own`."""
    return type(top).model_validate(top.model_dump() | own.model_dump(exclude_none=True))


Rule = Callable[[RunConfig], Iterable[str]]

#: Rules over a whole config; `agentrl.config.checks` fills the list. Each yields one line for each problem.
RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """Decorator: the rule holds for every RunConfig that is made, from a file or in Python."""
    RULES.append(check)
    return check
