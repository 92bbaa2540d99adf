"""Models and tokenizers from disk or the hub, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from agentrl.config import ModelConfig
from agentrl.engines.shared.tiny import build_tiny_model
from agentrl.engines.shared.updates import without_dropout
from agentrl.errors import ModelError, need

BUILTIN = "builtin:tiny"
ADAPTER = "adapter_model.safetensors"
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # tokenizer classes that add nothing to tokenizer.json

transformers_logging.disable_progress_bar()  # one bar per checkpoint would tear the progress line


def pick_device(device: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"model.device is {device} but torch {torch.__version__} sees no CUDA device; use auto or cpu")
    return torch.device(device)


def precision_warning(config: ModelConfig, device: torch.device) -> str | None:
    """What to say of a model in fp32 on a GPU, which is made for 16 bits; None where there is nothing to say."""
    if device.type == "cpu" or config.dtype != "float32":
        return None
    return (
        f"warning: model.dtype is float32 on {device}: a GPU computes in bfloat16 several times as fast; set "
        "model.dtype: bfloat16, or leave it to compare with a run on a CPU"
    )


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The fast tokenizer of `config.path`; a slow one cannot encode tool text safely and is refused."""
    _check_path(config.path)
    try:
        common: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        declared = get_tokenizer_config(_expanded(config.path), **common).get("tokenizer_class")
        # For some model types AutoTokenizer replaces the file's own pre-tokenizer by the type's usual one: text would
        # be split in another way than the model was trained with. A generic class means that the file says everything.
        chosen = PreTrainedTokenizerFast if declared in GENERIC else AutoTokenizer
        tokenizer = chosen.from_pretrained(_expanded(config.path), **common)
    except Exception as e:  # transformers raises many types here; all of them mean the same to the user
        raise ModelError(f"no tokenizer could be loaded from model.path = {config.path!r}: {_first_line(e)}") from e
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{config.path} has only a slow tokenizer ({type(tokenizer).__name__}); save it once with "
            "AutoTokenizer.from_pretrained(path, use_fast=True).save_pretrained(path)"
        )
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers makes of a folder without one
        raise ModelError(
            f"no tokenizer could be loaded from model.path = {config.path!r}: it has no vocabulary; save the tokenizer "
            "beside the model with tokenizer.save_pretrained"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of model.path = {config.path!r} has neither a padding nor an end-of-sequence token, "
                "and episodes of different length need one: name a token as eos_token in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """The causal LM in fp32 on the configured device; `builtin:tiny` is freshly initialised from `seed`."""
    device = pick_device(config.device)
    if config.path == BUILTIN:
        model: Any = build_tiny_model(config.tiny, tokenizer, seed)
    else:
        _check_path(config.path)
        common = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        try:
            AutoConfig.from_pretrained(_expanded(config.path), **common)
            model = AutoModelForCausalLM.from_pretrained(_expanded(config.path), dtype=torch.float32, **common)
        except Exception as e:
            raise ModelError(f"no causal LM could be loaded from model.path = {config.path!r}: {_first_line(e)}") from e
    model.to(device)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        without_dropout(model)  # checkpointing works only in training mode, which `update` turns on
    if config.lora is not None:
        model = _with_lora(model, config, seed)
    model.eval()  # no dropout anywhere: the sampler and the scorer must be the same function
    return model


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds LoRA adapters alone, without the base model's weights."""
    return (folder / ADAPTER).is_file()


def load_weights(model: Any, folder: Path) -> None:
    """Put the weights saved in `folder`, of a model or of its adapters, into `model`. ModelError if they do not fit."""
    if is_adapter(folder):
        need("model.lora", "peft")
        from peft import set_peft_model_state_dict

        given = load_file(str(folder / ADAPTER))
        result: Any = set_peft_model_state_dict(model, given)
        absent = [name for name in result.missing_keys if "lora_" in name]
        if absent or result.unexpected_keys:
            raise ModelError(
                f"the adapters in {folder} do not fit the model: missing {absent[:3]}, unexpected "
                f"{list(result.unexpected_keys)[:3]}; was model.lora changed?"
            )
        return
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(str(file)))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    if set(missing) - tied or unexpected:
        raise ModelError(
            f"the weights in {folder} do not fit the model: missing {sorted(set(missing) - tied)[:3]}, "
            f"unexpected {list(unexpected)[:3]}; was the config changed?"
        )


def _with_lora(model: PreTrainedModel, config: ModelConfig, seed: int) -> Any:
    assert config.lora is not None
    need("model.lora", "peft")
    from peft import LoraConfig, get_peft_model

    lora = config.lora
    if lora.dropout:
        raise ModelError(f"model.lora.dropout is {lora.dropout}; sampler and scorer would disagree, set it to 0")
    made = LoraConfig(r=lora.rank, lora_alpha=cast(int, lora.alpha), target_modules=lora.targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the adapters begin at random
        try:
            return get_peft_model(model, made)
        except ValueError as e:
            raise ModelError(f"model.lora.targets is {lora.targets!r}: {_first_line(e)}") from e


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _check_path(path: str) -> None:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    folder = Path(path).expanduser()
    if looks_local and not folder.is_dir():
        raise ModelError(f"model.path is {path!r}, but there is no such folder; give a Hugging Face folder or a hub id")
    if folder.is_dir() and is_adapter(folder) and not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path {path!r} holds LoRA adapters alone, without the model that they belong to: set model.path to "
            "that model; to evaluate a run with its adapters, name the run or its checkpoint (agentrl eval RUN)"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"model.path {path!r} has no config.json; it must be a folder written by save_pretrained")


def _first_line(e: Exception) -> str:
    text = str(e).strip().splitlines()
    return f"{type(e).__name__}: {text[0] if text else ''}"
