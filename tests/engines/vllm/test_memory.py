"""The plan of a card's memory, against sums by hand."""

import re

import pytest

from agentrl.engines.kind import Shape
from agentrl.engines.local.estimate import memory_rows
from agentrl.engines.vllm.memory import (
    MARGIN,
    WORKSPACE,
    cache_bytes,
    sequences,
    settings_that_fit,
    split,
    too_little,
)  # fmt: skip
from tests.engines.vllm.fake import fake_vllm
from tests.small import small_config

#: Qwen2.5-0.5B
HALF = Shape(494_032_768, 494_032_768, 24, 2, 64, 896, 151_936, 32_768)


def config(**changes):
    base = {
        "model": {"dtype": "bfloat16"},
        "rollout": {"sampler": "vllm", "max_context": 4096, "prompts_per_step": 16, "group_size": 8},
        "train": {"micro_batch_tokens": 16_384},
    }
    for part, values in changes.items():
        base[part] = {**base.get(part, {}), **values}
    return small_config("runs", **base)


def test_the_cache_has_room_for_every_episode_in_flight():
    a_token = 2 * 24 * 2 * 64 * 2  # keys and values, layers, heads, dimensions, bytes
    assert sequences(config()) == 128
    assert cache_bytes(config(), HALF, "cuda") == 128 * 257 * 16 * a_token  # 4096 tokens are 256 blocks, and one more
    assert sequences(config(rollout={"concurrency": 20})) == 20
    assert sequences(config(rollout={"vllm": {"max_sequences": 7}})) == 7
    assert sequences(config(eval={"questions": 300}, rollout={"concurrency": 20})) == 256
    assert cache_bytes(config(rollout={"vllm": {"kv_cache_gb": 3.5}}), HALF, "cuda") == 3.5e9


def test_with_sleep_a_card_needs_the_larger_of_sampling_and_training():
    p = HALF.parameters
    work = 16_384 * 896 * 34 * 24 + 3 * 134e6
    served = 2 * p + cache_bytes(config(), HALF, "cuda")
    roomy = split(config(), HALF, "cuda", 80e9)
    assert not roomy.sleeps and roomy.need == pytest.approx(16 * p + work + served + WORKSPACE["cuda"])
    tight = split(config(), HALF, "cuda", roomy.need)  # a margin is kept
    assert tight.sleeps and tight.need == pytest.approx(16 * p + max(work, served) + WORKSPACE["cuda"])
    assert not split(config(rollout={"vllm": {"sleep": "off"}}), HALF, "cuda", 1e9).sleeps
    assert split(config(rollout={"vllm": {"sleep": "on"}}), HALF, "cuda", 80e9).sleeps
    assert not split(config(), HALF, "cpu", 1e9).sleeps  # vLLM cannot, on a CPU


def test_too_little_memory_prints_the_numbers_and_three_settings_that_fit():
    available = 20e9
    text = too_little(config(), HALF, "cuda", available)
    assert re.search(r"needs 2\d\.\d GB and 20\.0 GB are free on the card, of which 92% may be planned", text)
    assert "trainer 7.9 GB" in text and "vLLM 988.1 MB of weights" in text and "128 episodes x 4096 tokens" in text
    found = list(settings_that_fit(config(), HALF, "cuda", available))
    assert len(found) == 3 and all(f in text for f in found)
    assert too_little(config(), HALF, "cuda", 80e9) is None
    assert "no setting fits: take a smaller model, or engine openrlhf" in too_little(config(), HALF, "cuda", 1e9)


@pytest.mark.parametrize("available", [12e9, 16e9, 20e9, 22e9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_setting_that_is_named_fits_when_it_is_set(available, dtype):
    asked = config(model={"dtype": dtype})
    assert too_little(asked, HALF, "cuda", available) is not None
    for text in settings_that_fit(asked, HALF, "cuda", available):
        changed, shape = asked.model_dump(), HALF
        for key, value in re.findall(r"([\w.]+) to ([\w.]+|\{rank: 16\})", text):
            *parts, last = key.split(".")
            part = changed
            for name in parts:
                part = part[name]
            part[last] = {"rank": 16} if value.startswith("{") else {"true": True}.get(value, value)
            if last == "lora":
                shape = Shape(**{**vars(HALF), "trainable": HALF.parameters // 50})
        fits = type(asked).model_validate(changed)
        assert split(fits, shape, "cuda", available).need <= MARGIN * available, text


def test_the_dry_run_adds_up_both():
    rows = dict(memory_rows(config(rollout={"sampler": "torch"}), HALF))
    assert "key/value cache" in rows and not any("vLLM" in name for name in rows)
    with fake_vllm("0.29.0", cuda=True):
        rows = dict(memory_rows(config(), HALF))
    assert "key/value cache" not in rows
    assert rows["vLLM: weights (bfloat16)"] == "988.1 MB" and "vLLM: keys and values" in rows
    plan = split(config(), HALF, "cuda", float("inf"))
    assert rows["at once"] == f"{plan.need / 1e9:.1f} GB"
