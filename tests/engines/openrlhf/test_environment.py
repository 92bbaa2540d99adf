"""What workers are told: which device, which variables, how many threads; and what one without CUDA says."""

import pytest
import torch

from agentrl.engines.openrlhf import cpu
from agentrl.engines.openrlhf.environment import offload_threads, worker_environment
from agentrl.errors import RunError

HERE = {
    "HF_HOME": "/models", "HF_HUB_OFFLINE": "1", "PYTORCH_CUDA_ALLOC_CONF": "x", "PYTORCH_ALLOC_CONF": "x",
    "NCCL_SOCKET_IFNAME": "ib0", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "VLLM_ATTENTION_BACKEND": "FLASH_ATTN",
    "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "4",
}  # fmt: skip
NOT = {"HF_TOKEN": "hf_x", "VLLM_API_KEY": "k", "HOME": "/root", "PATH": "/bin", "WANDB_API_KEY": "w"}


def test_variables_that_matter_reach_the_workers_and_secrets_do_not():
    assert worker_environment(HERE | NOT, cpu=False) == HERE | {cpu.DEVICE: "cuda"}


def test_what_the_driver_has_set_for_itself_stays_with_it():
    """A driver without a GPU, of workers with one."""
    shim = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    assert worker_environment(HERE | shim, cpu=False, own=shim) == HERE | {cpu.DEVICE: "cuda"}
    assert worker_environment(HERE | shim, cpu=True, own=shim) == HERE | cpu.ENVIRONMENT
    assert worker_environment({"DS_ACCELERATOR": "cuda"}, cpu=False)["DS_ACCELERATOR"] == "cuda"  # the user's own


def test_the_driver_has_decided(monkeypatch):
    for cuda in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.delenv(cpu.DEVICE, raising=False)
        assert cpu.needed() is not cuda  # the driver itself
        monkeypatch.setenv(cpu.DEVICE, "cpu")
        assert cpu.needed()
        monkeypatch.setenv(cpu.DEVICE, "cuda")
        assert not cpu.needed()


def test_a_worker_without_cuda_reports_its_node(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    monkeypatch.setenv(cpu.DEVICE, "cuda")
    with pytest.raises(RunError, match=r"node node7 should compute on CUDA.*nvidia-smi"):
        cpu.check_device()
    monkeypatch.setenv(cpu.DEVICE, "cpu")
    cpu.check_device()


def test_threads_of_an_optimiser_in_main_memory():
    assert offload_threads(64, 8) == 8 and offload_threads(4, 8) == 1
    assert offload_threads(64, None) is None  # nothing is offloaded, or the user has said it


def test_the_stand_in_for_flash_attn_is_gone_once_it_is_loaded(monkeypatch):
    import importlib.util
    import sys

    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash-attn is installed, so that nothing stands in for it")
    monkeypatch.setenv(cpu.DEVICE, "cuda")  # also where there is CUDA: sdpa does not need flash-attn
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu.before_import()
    from flash_attn.bert_padding import unpad_input
    from flash_attn.utils.distributed import all_gather  # noqa: F401

    with pytest.raises(RuntimeError, match=r"openrlhf\.attention to sdpa"):
        unpad_input()
    cpu.after_import()
    assert importlib.util.find_spec("flash_attn") is None and "flash_attn.bert_padding" not in sys.modules
