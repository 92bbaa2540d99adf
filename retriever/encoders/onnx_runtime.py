"""ONNX Runtime, fp32 on a CPU by default: the equal of torch in its answers at about half the time.

An encoder that brings no `model.onnx` is exported once, into the cache. int8 is there for who asks for it: it changed
29 % of the top-3 answers where it was measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.errors import missing_package
from agentrl.retriever.encoders.base import Tokens, encode_in_groups, pooled
from agentrl.retriever.encoders.spec import EncoderSpec, identity
from agentrl.retriever.errors import EncoderError

if TYPE_CHECKING:
    import numpy as np


class OnnxEncoder:
    """An encoder in ONNX Runtime. `dtype` fp32 or int8; `device` cuda where ONNX Runtime has it."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "tokenizers")

    def __init__(self, spec: EncoderSpec, folder: Path, threads: int) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise missing_package("an encoder in ONNX Runtime", error) or error from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        wanted = "CUDAExecutionProvider" if spec.device.startswith("cuda") else "CPUExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            raise EncoderError(f"device {spec.device!r}: this onnxruntime has no {wanted}; install onnxruntime-gpu")
        self._tokens = Tokens(spec, folder)
        path = _model(folder, spec.dtype)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
        except Exception as error:  # onnxruntime's own classes share no base
            raise EncoderError(
                f"{path}: onnxruntime cannot load it ({error}); delete it or use --runtime torch"
            ) from error
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._spec, self._threads = spec, threads
        self.dimension = 0
        self.dimension = int(self._forward(*_probe()).shape[1])

    def encode(self, texts: Sequence[str], prefix: str = "") -> np.ndarray:
        """(len(texts), dimension) float32."""
        ids = self._tokens(texts, prefix)
        return encode_in_groups(ids, self._threads, self.dimension, self._forward, self._spec.device)

    def _forward(self, tokens: Any, mask: Any) -> Any:
        """(b, t) int64 twice to (b, d)."""
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": 0 * mask}
        hidden = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        return pooled(hidden, mask, self._spec)


def cache_folder() -> Path:
    """Where exported encoders are kept: AGENTRL_CACHE, or `agentrl` in the user's cache folder."""
    base = os.environ.get("AGENTRL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentrl"


def _model(folder: Path, dtype: str) -> Path:
    shipped = next((p for n in ("onnx/model.onnx", "model.onnx") if (p := folder / n).is_file()), None)
    if shipped is not None and dtype == "fp32":
        return shipped
    kept = cache_folder() / "encoders" / identity(folder)[:32]
    if dtype == "int8":
        return _made(kept / "int8.onnx", lambda out: _quantise(_model(folder, "fp32"), out))
    return _made(kept / "model.onnx", lambda out: _export(folder, out))


def _made(path: Path, make: Any) -> Path:
    """`path`, made by `make(temporary)` and renamed where it is not there yet."""
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            made = Path(temporary) / path.name
            make(made)
            made.replace(path)
    except OSError as error:
        raise EncoderError(f"{path}: cannot be written ({error}); free space, or set AGENTRL_CACHE") from error
    return path


def _export(folder: Path, out: Path) -> None:
    import contextlib
    import io
    import warnings

    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    class Hidden(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # type: ignore[no-any-return]

    try:
        logging.disable_progress_bar()
        model = Hidden(AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval())
        names = ["input_ids", "attention_mask"]
        arguments = tuple(torch.from_numpy(a) for a in _probe(2))
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(  # the exporter that needs no package but onnx
                model,
                arguments,
                str(out),
                input_names=names,
                output_names=["last_hidden_state"],
                dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]},
                opset_version=17,
                dynamo=False,
            )
    except OSError:
        raise
    except Exception as error:  # torch's exporter raises whatever it met
        raise EncoderError(
            f"{folder}: cannot be exported to ONNX ({type(error).__name__}: {error}); use --runtime torch"
        ) from error


def _quantise(model: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(model), str(out), weight_type=QuantType.QInt8)


def _probe(rows: int = 1) -> tuple[Any, Any]:
    import numpy as np

    return np.ones((rows, 4), dtype=np.int64), np.ones((rows, 4), dtype=np.int64)
