"""What a GPU holds against numbers worked out by hand, and settings that are named because they fit."""

import re

import pytest
import torch

from agentrl.engines.kind import Shape
from agentrl.engines.openrlhf import preflight
from agentrl.engines.openrlhf.memory import GB, changed, memory, memory_rows, too_large, value_of
from tests.small import small_config

B7 = Shape(7_600_000_000, 7_600_000_000, 28, 4, 128, 3584, 152_064, 32768)
SMALL = Shape(500_000_000, 500_000_000, 24, 2, 64, 896, 151_936, 32768)


def config(tmp_path, **changes):
    base = {"model": {"dtype": "bfloat16"}, "train": {"mini_batches": 1, "micro_batch_tokens": 1000}}
    for key, value in changes.items():
        base[key] = base.get(key, {}) | value
    return small_config(tmp_path, engine="openrlhf", **base)


def test_zero_2_holds_the_sums_in_fp32_and_a_copy_while_adamw_steps(tmp_path):
    m = memory(config(tmp_path, openrlhf={"gpus_per_node": 4}), SMALL)
    assert m.policy == 1e9 and m.optimiser == 1.5e9  # 2 bytes each; 12, a quarter
    assert m.gradients == 0.5e9 + 0.25e9  # 4 bytes in sum and 2 of this micro-batch, a quarter
    assert m.bucket == 1e9 and m.flat == 0.5e9 and m.gathered == 0
    assert m.logits == 3 * 134e6  # three blocks, never the logits of all tokens
    assert m.training == pytest.approx(1e9 + 1.5e9 + 0.75e9 + 1e9 + m.activations + m.logits)
    assert m.most == m.training  # vLLM is elsewhere, and needs less


def test_while_adamw_steps_nothing_of_a_micro_batch_is_held(tmp_path):
    tiny_batch = config(tmp_path, train={"micro_batch_tokens": 1})
    m = memory(tiny_batch, B7)
    assert m.flat > m.bucket + m.activations + m.logits
    assert m.training == pytest.approx(m.policy + m.optimiser + m.gradients + m.flat)


def test_zero_3_cuts_the_weights_and_gathers_some(tmp_path):
    m = memory(config(tmp_path, openrlhf={"gpus_per_node": 4, "zero_stage": 3}), B7)
    assert m.policy == 3.8e9 and m.gathered == 2e9


def test_an_optimiser_in_main_memory_is_not_on_the_gpu(tmp_path):
    m = memory(config(tmp_path, openrlhf={"zero_stage": 3, "adam_offload": True}), SMALL)
    assert m.optimiser == 0 and m.gradients == 1e9 and m.flat == 0


def test_a_shared_gpu_adds_up_both(tmp_path):
    c = config(tmp_path, openrlhf={"colocate": True}, rollout={"max_context": 200, "concurrency": 10})
    m = memory(c, B7)
    cache = 10 * 200 * 2 * 28 * 4 * 128 * 2
    assert m.sampling == pytest.approx(2 * 15.2e9 + cache)
    rows = dict(memory_rows(c, B7))
    assert rows["shared GPU while vLLM samples"].startswith("30.5 GB")
    assert rows["shared GPU, at most"] == f"{m.training / GB:.1f} GB"
    apart = memory(config(tmp_path, rollout={"max_context": 200, "concurrency": 10}), B7)
    assert apart.sampling == pytest.approx(15.2e9 + cache)


def test_adapters_of_vllm_take_the_room_of_the_next_rank(tmp_path):
    lora = Shape(7_600_000_000, 40_000_000, 28, 4, 128, 3584, 152_064, 32768)
    m = memory(config(tmp_path, model={"lora": {"rank": 20}}), lora)
    assert m.served == pytest.approx(15.2e9 + 2 * 40e6 * 32 / 20)


# ---------------------------------------------------------------------------------------------------- too little of it

CASES = {
    "7B on one shared GPU of 80 GB": (B7, 80 * GB, {"openrlhf": {"colocate": True, "gpu_memory": 0.6}}),
    "7B split over two GPUs of 80 GB": (B7, 80 * GB, {}),
    "0.5B on one shared GPU of 12 GB": (SMALL, 12 * GB, {"openrlhf": {"colocate": True}}),
    "a micro-batch that is too long": (SMALL, 24 * GB, {"train": {"micro_batch_tokens": 60_000}}),
}


@pytest.mark.parametrize("case", CASES)
def test_three_settings_that_would_fit_are_named_and_do(tmp_path, case):
    shape, gpu, changes = CASES[case]
    c = config(tmp_path, **changes)
    (line,) = too_large(c, shape, gpu)
    assert (
        f"{gpu / GB:.0f} GB a GPU are too little" in line and f"needs {memory(c, shape).training / GB:.1f} GB" in line
    )
    offers = line.partition("What would fit: ")[2].split("; or ")
    assert len(offers) == 3
    for offer in offers:
        change = {}
        for word in offer.split(" with "):
            key, _, value = word.partition(" ")
            kind = type(value_of(c, key))
            change[key] = value == "true" if kind is bool else kind(value.replace(",", ""))
        assert too_large(changed(c, change), shape, gpu) == [], offer


def test_what_fits_is_not_spoken_of(tmp_path):
    assert too_large(config(tmp_path), SMALL, 80 * GB) == []


def test_where_nothing_is_enough_that_is_said(tmp_path):
    (line,) = too_large(config(tmp_path), B7, 2 * GB)
    assert "no single setting is enough" in line


def test_the_check_before_a_start_reads_the_model_and_the_gpu(tmp_path, monkeypatch):
    from tests.fakes import save_tiny_model

    model = str(save_tiny_model(tmp_path / "m"))
    c = config(tmp_path)
    assert preflight.room(c, model, None) == [] and preflight.room(c, model, 8 * GB) == []
    (line,) = preflight.room(c, model, 0.1 * GB)
    assert re.search(r"0 GB a GPU are too little", line)
    monkeypatch.setattr(preflight, "packages", lambda config: [])
    monkeypatch.setattr(preflight, "devices", lambda config, cpu: [])
    monkeypatch.setattr(preflight, "gpu_bytes", lambda config: 0.1 * GB)
    with pytest.raises(preflight.ConfigError, match="too little"):
        preflight.check(c, cpu=False, model_path=model)


def test_the_size_of_a_remote_gpu_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert preflight.gpu_bytes(config(tmp_path, openrlhf={"ray_address": "far:6379"})) is None
