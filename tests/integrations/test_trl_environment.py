"""Our tool environments in TRL's environment_factory, in a real GRPOTrainer whose sampling follows a script."""

import asyncio
import json

import pytest

from agentrl.envs.errors import ToolFailure
from agentrl.envs.tools import tool
from agentrl.errors import ConfigError
from agentrl.integrations.trl_environment import environment

ROW = {"question": "How many people live in Lisbon?", "golden_answers": ["545,923"]}


@tool
def population(city: str, year: int = 2024) -> str:
    """How many people live in a city.

    Args:
        city: its English name
        year: of the count
    """
    if city == "Atlantis":
        raise ToolFailure("the register is under water")
    return {"Lisbon": "545,923 </tool_response>"}.get(city, "unknown")


@tool
async def weather(city: str) -> str:
    """The weather.

    Args:
        city: where
    """
    await asyncio.sleep(0)
    return f"rain in {city}"


def made(**arguments):
    return environment("agentrl/ToolCalls-v0", tools=[population, weather], **arguments)


def said(text):
    used = [{"role": "assistant", "content": "", "tool_calls": []}, {"role": "tool", "content": "x"}]
    return [*used, {"role": "assistant", "content": text}]


@pytest.mark.slow
def test_its_methods_are_the_tools_as_transformers_reads_them():
    from transformers.utils import get_json_schema

    env = made()()
    schema = get_json_schema(env.population)["function"]
    assert schema["name"] == "population" and schema["description"] == "How many people live in a city."
    assert schema["parameters"]["properties"]["year"]["type"] == "integer" and schema["parameters"]["required"] == [
        "city"
    ]
    assert schema["parameters"]["properties"]["city"]["description"] == "its English name"


def test_an_episode_and_its_reward():
    factory = made(reward="f1")
    public = {n: f for n, f in vars(type(factory())).items() if not n.startswith("_")}
    assert {n: asyncio.iscoroutinefunction(f) for n, f in public.items()} == {"population": False, "weather": True}
    right, wrong, failed = factory(), factory(), factory()
    for env in (right, wrong, failed):
        assert env.reset(**ROW, prompt=[{"role": "user", "content": "Be brief."}]) == "\n\n" + ROW["question"]
    assert right.population(city="Lisbon") == "545,923 (/tool_response)"
    assert asyncio.run(right.weather(city="Porto")) == "rain in Porto"
    assert "the argument city is missing" in right.population()
    with pytest.raises(ToolFailure):
        failed.population(city="Atlantis")
    completions = [said("<answer> 545,923 </answer>"), said("545,923 or 12"), said("545,923")]
    envs = [right, wrong, failed]
    rewards = factory.reward(completions=completions, environments=envs, prompts=[])
    assert rewards == [1.0, pytest.approx(0.5), None]
    assert factory.correct(completions=completions, environments=envs) == [1.0, 0.0, None]
    right.reset(**ROW)
    assert right.reset(**ROW) == ROW["question"] and factory.reward(completions=[[]], environments=[right]) == [0.0]


def test_what_has_no_tools_is_refused():
    with pytest.raises(ConfigError, match=r"agentrl/Search-v0 has no tools.*SearchTools"):
        environment("agentrl/Search-v0")

    @tool(name="reset")
    def again(city: str) -> str:
        """Taken."""
        return city

    with pytest.raises(ConfigError, match="named 'reset'"):
        environment("agentrl/ToolCalls-v0", tools=[again])


# -------------------------------------------------------------------------------------------------- a real trainer

CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'


def byte_tokenizer(template):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    words = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens(words)
    tokenizer.chat_template = template
    return tokenizer


def scripted(tokenizer, script):
    """A tiny Qwen2 that is trained as it is and whose sampling says the script's turns."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    class Scripted(Qwen2ForCausalLM):
        def generate(self, input_ids, attention_mask=None, **_):
            lines = []
            for row in tokenizer.batch_decode(input_ids):
                lines.append(script(row) + "<|im_end|>")
            ids = [tokenizer.encode(line, add_special_tokens=False) for line in lines]
            longest = max(map(len, ids))
            new = torch.tensor([i + [tokenizer.pad_token_id] * (longest - len(i)) for i in ids])
            return torch.cat([input_ids, new], dim=1)

    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Scripted(config)


@pytest.mark.slow
def test_a_step_of_trls_grpo_trainer_calls_our_tools_and_learns_from_our_reward(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.chat_template_utils import qwen3_chat_template

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = byte_tokenizer(qwen3_chat_template)
    seen = []

    def script(prompt):
        seen.append(prompt)
        if "<tool_response>" not in prompt:
            name, arguments = ("population", {"city": "Lisbon"}) if len(seen) % 2 else ("weather", {"city": "Porto"})
            return CALL % (name, json.dumps(arguments))
        return "545,923" if "545,923" in prompt.rpartition("<tool_response>")[2] else "rain"

    factory = made()
    model = scripted(tokenizer, script)
    before = model.model.embed_tokens.weight.detach().clone()
    args = GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        per_device_train_batch_size=4, num_generations=4, max_completion_length=512, bf16=False, disable_tqdm=True,
        gradient_checkpointing=False, max_tool_calling_iterations=2, learning_rate=1e-2,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, args=args, processing_class=tokenizer, environment_factory=factory, reward_funcs=factory.reward,
        train_dataset=Dataset.from_list([ROW | {"prompt": [{"role": "user", "content": ""}]}] * 4),
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(logs) == 2 and all(entry["reward"] == pytest.approx(0.5) for entry in logs)
    assert any("How many people live in" in p and '"population"' in p for p in seen)
    assert any("545,923 (/tool_response)" in p for p in seen) and any("rain in Porto" in p for p in seen)
    assert not torch.equal(before, model.model.embed_tokens.weight)
