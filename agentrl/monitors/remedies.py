"""Remedies name agentrl's options; here is what other trainers call them.

Names are from the trainers' own configuration: TRL `GRPOConfig`, verl `ppo_trainer.yaml`, OpenRLHF `train_ppo_ray.py`,
SkyRL `ppo_base_config.yaml`. A method that they do not have is said to be agentrl's.
"""

from __future__ import annotations

_TRL = {
    "optim.lr": "learning_rate",
    "optim.max_grad_norm": "max_grad_norm",
    "train.epochs": "num_iterations",
    "train.mini_batches": "steps_per_generation",
    "algorithm.loss.entropy_coef": "entropy_coef",
    "algorithm.loss.clip_high": "epsilon_high",
    "algorithm.loss.tis_cap": "vllm_importance_sampling_clip_max",
    "rollout.temperature": "temperature",
    "rollout.max_tokens_per_turn": "max_completion_length",
}
_VERL = {
    "optim.lr": "actor_rollout_ref.actor.optim.lr",
    "optim.max_grad_norm": "actor_rollout_ref.actor.grad_clip",
    "train.epochs": "actor_rollout_ref.actor.ppo_epochs",
    "train.mini_batches": "data.train_batch_size / actor_rollout_ref.actor.ppo_mini_batch_size",
    "algorithm.loss.entropy_coef": "actor_rollout_ref.actor.entropy_coeff",
    "algorithm.loss.clip_high": "actor_rollout_ref.actor.clip_ratio_high",
    "rollout.temperature": "actor_rollout_ref.rollout.temperature",
    "rollout.max_tokens_per_turn": "data.max_response_length",
}
_OPENRLHF = {
    "optim.lr": "--actor_learning_rate",
    "optim.max_grad_norm": "--max_norm",
    "train.epochs": "--max_epochs",
    "train.mini_batches": "--rollout_batch_size / --train_batch_size",
    "algorithm.loss.entropy_coef": "--entropy_loss_coef",
    "algorithm.loss.clip_high": "--eps_clip_low_high",
    "rollout.temperature": "--temperature",
    "rollout.max_tokens_per_turn": "--generate_max_len",
    "algorithm.dynamic_sampling": "--dynamic_filtering",
}
_SKYRL = {
    "optim.lr": "trainer.policy.optimizer_config.lr",
    "optim.max_grad_norm": "trainer.policy.optimizer_config.max_grad_norm",
    "train.epochs": "trainer.update_epochs_per_batch",
    "train.mini_batches": "trainer.train_batch_size / trainer.policy_mini_batch_size",
    "algorithm.loss.clip_high": "trainer.algorithm.eps_clip_high",
    "rollout.temperature": "generator.sampling_params.temperature",
    "rollout.max_tokens_per_turn": "generator.sampling_params.max_generate_length",
}
OPTIONS: dict[str, dict[str, str]] = {"TRL": _TRL, "verl": _VERL, "OpenRLHF": _OPENRLHF, "SkyRL": _SKYRL}
_ONLY_HERE = {"algorithm.loss.llds.enabled": "LLDS", "algorithm.nthr.enabled": "NTHR"}  # methods, not settings


def in_terms_of(trainer: str | None, remedy: str) -> str:
    """`remedy` with the trainer's own names of the options in it; unchanged for agentrl's own runs."""
    if trainer not in OPTIONS:
        return remedy
    named = [f"{ours} is {theirs}" for ours, theirs in OPTIONS[trainer].items() if ours in remedy]
    lacking = [f"{method} is a method of agentrl" for ours, method in _ONLY_HERE.items() if ours in remedy]
    return f"{remedy} In {trainer}: {'; '.join(named + lacking)}." if named or lacking else remedy
