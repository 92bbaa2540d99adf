"""Who else samples on a card, and how much memory there is."""

import os
import subprocess
import sys

import pytest

from agentrl.engines.vllm.card import CardLock, main_memory
from agentrl.errors import ConfigError


@pytest.mark.slow
def test_a_second_sampler_on_a_card_is_refused_with_the_firsts_process(tmp_path):
    first = CardLock("GPU-1", tmp_path)
    other = CardLock("GPU-2", tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"rollout\.sampler is vllm, and process {os.getpid()} samples .*GPU-1"):
            CardLock("GPU-1", tmp_path)
    code = "from pathlib import Path; from agentrl.engines.vllm.card import CardLock"
    code += f"; CardLock('GPU-1', Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"process {os.getpid()} samples with vLLM on this card (GPU-1) already" in done.stderr
    first.release()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    CardLock("GPU-1", tmp_path).release()
    other.release()


def test_memory_is_what_the_machine_and_the_container_leave(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       9000000 kB\nMemAvailable:    5000000 kB\n")
    assert main_memory(meminfo, tmp_path / "none") == 5e6 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 400000000\n")
    assert main_memory(meminfo, tmp_path) == 5e6 * 1024
    (tmp_path / "memory.max").write_text("3000000000\n")
    assert main_memory(meminfo, tmp_path) == 3e9 - 1e9 + 4e8
    assert main_memory(tmp_path / "absent", tmp_path) is None
