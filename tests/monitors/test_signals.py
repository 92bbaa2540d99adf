import pytest

from agentrl.errors import AgentRLError
from agentrl.monitors.signals import SIGNALS, TRAINERS, WATCHED, guess_mapping

VERL = [
    "training/global_step", "critic/score/mean", "critic/score/max", "critic/rewards/mean", "actor/entropy",
    "actor/grad_norm", "actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower", "actor/kl_loss", "actor/lr",
    "response_length/mean", "response_length/clip_ratio", "training/rollout_probs_diff_mean",
    "env/ratio_of_valid_action", "timing_s/step", "val-core/gsm8k/acc",
]  # fmt: skip
TRL = [
    "train/global_step", "train/reward", "train/reward_std", "train/rewards/format/mean", "train/entropy", "train/kl",
    "train/grad_norm", "train/clip_ratio/region_mean", "train/clip_ratio/low_mean", "train/completions/mean_length",
    "train/completions/clipped_ratio", "train/sampling/sampling_logp_difference/mean", "train/learning_rate",
    "eval/reward",
]  # fmt: skip
OPENRLHF = ["train/policy_loss", "train/actor_lr", "train/ppo_clip_ratio", "train/ppo_kl", "train/kl", "train/reward",
            "train/response_length", "train/total_length", "train/vllm_kl", "train/entropy_loss"]  # fmt: skip
SKYRL = ["trainer/global_step", "reward/avg_raw_reward", "reward/avg_pass_at_8", "policy/policy_entropy",
         "policy/raw_grad_norm", "policy/ppo_clip_ratio", "policy/policy_kl", "generate/avg_num_tokens",
         "policy/rollout_train_logprobs_abs_diff_mean", "policy/policy_lr"]  # fmt: skip

OPENRLHF_011 = [c for c in OPENRLHF if c not in ("train/reward", "train/response_length")] + [
    "train/actor_grad_norm", "train/rollout/reward_mean", "train/rollout/response_length_mean",
                "train/rollout/truncated_rate", "train/timing/step_total",
]  # fmt: skip
SKYRL_NOW = ["reward/avg_raw_reward", "policy/policy_entropy", "policy/grad_norm", "policy/policy_loss",
             "policy/loss_metrics/clip_ratio", "loss/avg_kl", "generate/avg_assistant_tokens"]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "trainer", "expected"),
    [
        (OPENRLHF_011, "OpenRLHF", {"reward": "train/rollout/reward_mean", "grad_norm": "train/actor_grad_norm",
                                    "response_length": "train/rollout/response_length_mean", "kl": "train/kl",
                                    "truncated_share": "train/rollout/truncated_rate"}),
        (SKYRL_NOW, "SkyRL", {"clip_fraction": "policy/loss_metrics/clip_ratio", "kl": "loss/avg_kl",
                              "response_length": "generate/avg_assistant_tokens", "grad_norm": "policy/grad_norm"}),
        (VERL, "verl", {"reward": "critic/score/mean", "entropy": "actor/entropy", "kl": "actor/kl_loss",
                        "clip_fraction": "actor/pg_clipfrac", "response_length": "response_length/mean",
                        "mismatch": "training/rollout_probs_diff_mean", "grad_norm": "actor/grad_norm",
                        "valid_action_ratio": "env/ratio_of_valid_action"}),
        (TRL, "TRL", {"reward": "train/reward", "entropy": "train/entropy", "kl": "train/kl",
                      "clip_fraction": "train/clip_ratio/region_mean", "lr": "train/learning_rate",
                      "response_length": "train/completions/mean_length", "grad_norm": "train/grad_norm",
                      "mismatch": "train/sampling/sampling_logp_difference/mean"}),
        (OPENRLHF, "OpenRLHF", {"reward": "train/reward", "clip_fraction": "train/ppo_clip_ratio",
                                "kl": "train/kl", "mismatch": "train/vllm_kl", "entropy": "train/entropy_loss",
                                "response_length": "train/response_length", "lr": "train/actor_lr"}),
        (SKYRL, "SkyRL", {"reward": "reward/avg_raw_reward", "entropy": "policy/policy_entropy",
                          "clip_fraction": "policy/ppo_clip_ratio", "grad_norm": "policy/raw_grad_norm",
                          "kl": "policy/policy_kl", "response_length": "generate/avg_num_tokens",
                          "mismatch": "policy/rollout_train_logprobs_abs_diff_mean"}),
    ],
)  # fmt: skip
def test_trainers_names_are_recognised(columns, trainer, expected):
    mapping = guess_mapping(columns)
    assert mapping.trainer == trainer
    assert {k: mapping.columns[k] for k in expected} == expected
    assert "eval/reward" not in mapping.columns.values()
    assert "actor/ppo_kl" not in mapping.columns.values()  # one update's divergence, not from the reference
    assert "actor/pg_clipfrac_lower" not in mapping.columns.values()
    assert set(mapping.missing) == set(WATCHED) - set(mapping.columns)


def test_canonical_names_win_and_missing_is_in_order_of_worth():
    mapping = guess_mapping(["reward", "train/reward", "entropy", "step"])
    assert mapping.columns == {"reward": "reward", "entropy": "entropy"}
    assert mapping.missing[0] == "clip_fraction"


def test_every_alias_points_at_a_signal():
    for table in TRAINERS.values():
        assert set(table) <= set(SIGNALS)


def test_overrides_win_and_need_not_exist_yet():
    mapping = guess_mapping(["reward", "my/score"], {"reward": "my/score", "kl": "later"})
    assert mapping.columns == {"reward": "my/score", "kl": "later"}
    assert mapping.apply({"my/score": 0.5, "reward": 9.0}) == {"reward": 0.5}


def test_an_unknown_signal_names_its_neighbour():
    with pytest.raises(AgentRLError, match="did you mean 'reward'"):
        guess_mapping([], {"rewrd": "x"})


def test_the_prototype_fields_are_recognised():
    mapping = guess_mapping(["reward", "lp_pos", "lp_neg", "delta_tok", "probe_lp", "gnorm", "clipfrac", "alen"])
    assert mapping.columns["logprob_correct"] == "lp_pos"
    assert mapping.columns["clip_fraction"] == "clipfrac"
    assert mapping.columns["delta_correct"] == "delta_tok"


def test_our_own_names_are_nobody_elses():
    assert guess_mapping(SIGNALS).trainer is None
    assert guess_mapping(["reward", "entropy", "loss", "kl", "grad_norm"]).trainer is None
    assert guess_mapping(["reward", "loss", "learning_rate", "completions/mean_length"]).trainer == "TRL"
