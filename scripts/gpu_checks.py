"""What `gpu_checklist.sh` needs beside the command: models of real shapes, a kill, memory beside the estimate.

python scripts/gpu_checks.py model SHAPE FOLDER      a folder in Hugging Face format, with a tokenizer of all its ids
python scripts/gpu_checks.py parse FILE              the configs in a file, one a line; nothing is started
python scripts/gpu_checks.py kill-asleep CONFIG KEY=VALUE ... a run whose sleeping vLLM engine is killed at step 1
python scripts/gpu_checks.py measure CONFIG KEY=VALUE ...     a run; its peak memory and step time beside the dry run
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

#: hidden, layers, heads, key/value heads, intermediate, vocabulary, tied; heads of 128 are said where d / heads is not
SHAPES = {
    "tiny": ("qwen2", 128, 2, 2, 2, 128, 2_000, True, None),
    "qwen3": ("qwen3", 1024, 4, 16, 8, 3072, 151_936, True, 128),
    "qwen3-two-kv": ("qwen3", 1024, 4, 16, 2, 3072, 151_936, True, 128),
    "0.5b": ("qwen2", 896, 24, 14, 2, 4864, 151_936, True, None),
    "1.5b": ("qwen2", 1536, 28, 12, 2, 8960, 151_936, True, None),
    "3b": ("qwen2", 2048, 36, 16, 2, 11008, 151_936, True, None),
    "7b": ("qwen2", 3584, 28, 28, 4, 18944, 152_064, False, None),
}


def make_model(shape: str, folder: str) -> None:
    """Random weights of a published shape, in bf16, with the built-in search world's tokenizer and spare tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from agentrl.config.files import load_config
    from agentrl.train.build import build_world

    kind, hidden, layers, heads, kv, intermediate, vocabulary, tied, head_dim = SHAPES[shape]
    tokenizer = build_world(load_config("search_tiny", []).config).tokenizer()
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree["model"]["vocab"] |= {f"<spare{i}>": i for i in range(len(tokenizer), vocabulary)}  # all that may be sampled
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
    )
    made, cls = (Qwen3Config, Qwen3ForCausalLM) if kind == "qwen3" else (Qwen2Config, Qwen2ForCausalLM)
    config = made(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
        intermediate_size=intermediate, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=8192,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **({} if head_dim is None else {"head_dim": head_dim}),
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    cls(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {shape}")


def loaded(name: str, changes: list[str]):  # noqa: ANN201  # a LoadedConfig
    """The config as a run would read it."""
    from agentrl.config.files import load_config

    return load_config(name, changes)


def parse(file: str) -> None:
    """Lines of a config and its changes, with tabs between them. ConfigError at the first that a run would refuse."""
    lines = Path(file).read_text().splitlines()
    names = set()
    for line in lines:
        name, *changes = line.split("\t")
        names.add(loaded(name, changes).config.log.name)
    print(f"parsed {len(lines)} configs: {', '.join(sorted(names))}")


def kill_asleep(name: str, changes: list[str]) -> None:
    """Before the update of step 1, when it sleeps, the vLLM engine is killed; the run must go on to its end."""
    import psutil
    import ray

    from agentrl.runs.read import read_metrics
    from agentrl.train import start

    class Killing(start.Trainer):
        def update(self, step):  # noqa: ANN001, ANN202
            if self.step_number == 1:
                actor = self.engine.cluster.engines[0]
                pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
                assert self.engine.handover._asleep, "the engine is awake during an update"
                below = [p for p in psutil.Process(pid).children() if "EngineCore" in p.name() + "".join(p.cmdline())]
                os.kill((below or [psutil.Process(pid)])[0].pid, signal.SIGKILL)
            return super().update(step)

    start.Trainer = Killing  # type: ignore[misc]
    run = start.train_run(loaded(name, changes).config, force=True)
    assert run.result.status == "finished", run.result
    print(f"steps {[r['step'] for r in read_metrics(run.run_dir)]} although the engine was killed asleep")


def measure(name: str, changes: list[str]) -> None:
    """The largest memory that nvidia-smi sees, and seconds a step, beside what the dry run says."""
    import torch

    from agentrl.commands.dryrun import report
    from agentrl.runs.read import read_metrics
    from agentrl.train.start import train_run

    config = loaded(name, changes)
    said = report(config)
    print("\n".join(line for line in said.splitlines() if "GB" in line or "time per step" in line))
    most: list[int] = [0]
    done = threading.Event()

    def watch() -> None:
        ask = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not done.wait(0.2):
            out = subprocess.run(ask, capture_output=True, text=True).stdout.split()
            most[0] = max([most[0], *(int(n) for n in out if n.isdigit())])

    thread = threading.Thread(target=watch, daemon=True)
    if torch.cuda.is_available():
        thread.start()
    begin = time.perf_counter()
    run = train_run(config.config, force=True)
    done.set()
    rows = read_metrics(run.run_dir)
    times = {k: sum(r.get(k, 0.0) for r in rows[1:]) / max(1, len(rows) - 1) for k in rows[0] if k.startswith("t_")}
    took = time.perf_counter() - begin
    print(f"measured: at most {most[0] / 1000:.1f} GB on one GPU; a step {times}; in all {took:.0f} s")


def main() -> None:
    what, name, *rest = sys.argv[1:]
    if what == "model":
        if not (Path(rest[0]) / "config.json").is_file():
            make_model(name, rest[0])
        return
    if what == "parse":
        parse(name)
        return
    {"kill-asleep": kill_asleep, "measure": measure}[what](name, rest)


if __name__ == "__main__":
    main()
