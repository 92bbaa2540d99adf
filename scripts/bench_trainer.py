"""One GRPO training step of agentrl against TRL's GRPOTrainer, interleaved in one process.

A 4-layer, 256-wide Qwen2 with random weights; 16 prompts x 8 responses x 64 tokens; sampling, scoring, loss and update.
Both get the same prompts, the same reward function, fp32, and the same number of threads. TRL comes with
`pip install -e '.[dev]'`.

usage: python scripts/bench_trainer.py [--steps 5] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")
warnings.filterwarnings("ignore")

PROMPTS, GROUP, TOKENS, PROMPT_WORDS, VOCABULARY = 16, 8, 64, 16, 1024


def tokenizer() -> Any:
    """Words w0..w1023, separated by spaces; <eos> is one of 1,024, so that few responses end early on either side."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="w2")


def model(tok: Any) -> Any:
    """The 4-layer, 256-wide Qwen2."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    made = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
            intermediate_size=768, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=tok.pad_token_id,
            eos_token_id=tok.eos_token_id, bos_token_id=None,
        )
    )  # fmt: skip
    return made


def prompts() -> list[str]:
    """The questions, the same for both."""
    return [" ".join(f"w{2 + (37 * i + 11 * j) % 1000}" for j in range(PROMPT_WORDS)) for i in range(PROMPTS)]


def reward(text: str) -> float:
    """1 where more words of an even number than of an odd one were said: about half of the responses."""
    words = text.split()
    return float(2 * sum(int(w[1:]) % 2 == 0 for w in words if w[1:].isdigit()) > len(words))


def trl_step(tok: Any, folder: str) -> Any:
    """A function that makes one optimiser step of TRL's GRPOTrainer and returns the seconds it took."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: list[float] = []

    class Times(TrainerCallback):
        def on_step_begin(self, *args: Any, **kw: Any) -> None:
            pass

        def on_step_end(self, *args: Any, **kw: Any) -> None:
            now = time.perf_counter()
            seconds.append(now - self.last)
            self.last = now

        def on_train_begin(self, *args: Any, **kw: Any) -> None:
            self.last = time.perf_counter()

    def reward_function(completions: list[str], **kw: Any) -> list[float]:
        return [reward(c) for c in completions]

    def run(steps: int) -> list[float]:
        seconds.clear()
        config = GRPOConfig(
            output_dir=folder, use_cpu=True, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
            max_completion_length=TOKENS, max_steps=steps, learning_rate=1e-5, beta=0.0, temperature=1.0,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=False,
            gradient_checkpointing=False, seed=0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=model(tok), processing_class=tok, reward_funcs=reward_function, args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts() * 4}), callbacks=[Times()],
        )  # fmt: skip
        trainer.train()
        return seconds[1:]  # the first one includes warming up

    return run


def agentrl_step(tok: Any, folder: str) -> Any:
    """The same with agentrl's trainer and a one-turn Gymnasium environment."""
    import gymnasium

    from agentrl.config import RunConfig
    from agentrl.engines.local.engine import LocalEngine
    from agentrl.envs.spaces import AnyText
    from agentrl.rollouts.chat import ChatFormat
    from agentrl.runs.log import RunLog
    from agentrl.train.build import Job
    from agentrl.train.trainer import Trainer
    from agentrl.types import Task

    class EvenWords(gymnasium.Env[str, str]):
        observation_space = action_space = AnyText()

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            assert options is not None
            return options["question"], {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return "", reward(action), True, False, {}

        async def areset(self, **kw: Any) -> tuple[str, dict[str, Any]]:
            return self.reset(**kw)

        async def astep(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return self.step(action)

    def run(steps: int) -> list[float]:
        config = RunConfig.model_validate(
            {
                "data": {"train": "in memory"},
                "model": {"path": "in memory"},
                "rollout": {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_tokens_per_turn": TOKENS,
                            "max_context": 256, "prompt": "raw"},
                "optim": {"lr": 1e-5},
                "train": {"steps": steps + 1, "mini_batches": 1, "delta_every": 0, "probe_every": 0,
                          "micro_batch_tokens": 16384},
                "eval": {"questions": 0},
                "log": {"rollout_groups": 0, "checkpoint_every": 0},
            }
        )  # fmt: skip
        engine = LocalEngine(model(tok), tok, config=config.model, optim=config.optim, total_steps=steps,
                             micro_batch_tokens=config.train.micro_batch_tokens)  # fmt: skip
        tasks = [Task(str(i), {"question": q}) for i, q in enumerate(prompts())]
        job = Job(config, engine, ChatFormat(tok, config.rollout), EvenWords, tasks, [])
        with RunLog.create(folder, f"run{time.monotonic_ns()}", config) as log:
            trainer = Trainer(job, log)
            rows = [trainer.step().metrics for _ in range(steps + 1)]
            trainer.close()
        shortest = min(r["response_length"] for r in rows)
        assert shortest > 0.9 * TOKENS, f"responses ended early: {shortest} tokens on average"
        return [r["t_step_s"] for r in rows[1:]]

    return run


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="measured steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    tok = tokenizer()
    times: dict[str, list[float]] = {"trl": [], "agentrl": []}
    with tempfile.TemporaryDirectory() as folder:
        sides = {"trl": trl_step(tok, folder), "agentrl": agentrl_step(tok, str(Path(folder)))}
        for _ in range(args.rounds):
            for name, run in sides.items():
                times[name] += run(args.steps)
    median = {name: statistics.median(t) for name, t in times.items()}
    ratio = median["agentrl"] / median["trl"]
    if args.json:
        print(json.dumps({"median_s": median, "ratio": ratio, "times": times}))
        return
    threads = torch.get_num_threads()
    print(f"{PROMPTS} prompts x {GROUP} responses x {TOKENS} tokens, 4 layers, 256 wide, {threads} threads")
    for name, t in times.items():
        print(f"{name:>8}: median {median[name]:.3f} s a step, {min(t):.3f} to {max(t):.3f} over {len(t)} steps")
    print(f"   ratio: {ratio:.2f} (agentrl / TRL; the goal is 0.90 or less)")


if __name__ == "__main__":
    main()
