"""torch, in fp32 or bf16, on a CPU or CUDA: for encoders that ONNX cannot hold, and for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentrl.retriever.encoders.base import Tokens, encode_in_groups, pooled
from agentrl.retriever.encoders.spec import EncoderSpec
from agentrl.retriever.errors import EncoderError

if TYPE_CHECKING:
    import numpy as np


class TorchEncoder:
    """An encoder in torch. On a GPU one thread feeds it; on a CPU `threads` groups run at a time."""

    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")

    def __init__(self, spec: EncoderSpec, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModel
        from transformers.utils import logging

        if spec.dtype == "int8":
            raise EncoderError("dtype int8 needs the onnx runtime: leave --runtime out")
        if spec.device.startswith("cuda") and not torch.cuda.is_available():
            raise EncoderError(f"device {spec.device!r}: torch sees no GPU here; leave --device out")
        self._tokens = Tokens(spec, folder)
        logging.disable_progress_bar()
        dtype = torch.bfloat16 if spec.dtype == "bf16" else torch.float32
        try:
            model = AutoModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise EncoderError(f"{folder}: transformers cannot load it ({error})") from error
        self._model = model.eval().to(spec.device)
        self._torch, self._spec = torch, spec
        self._threads = 1 if spec.device.startswith("cuda") else threads
        self.dimension = int(model.config.hidden_size)

    def encode(self, texts: Sequence[str], prefix: str = "") -> np.ndarray:
        """(len(texts), dimension) float32."""
        ids = self._tokens(texts, prefix)
        return encode_in_groups(ids, self._threads, self.dimension, self._forward, self._spec.device)

    def _forward(self, tokens: Any, mask: Any) -> Any:
        """(b, t) int64 twice to (b, d)."""
        torch = self._torch
        with torch.inference_mode():
            ids, attention = (torch.from_numpy(a).to(self._spec.device) for a in (tokens, mask))
            hidden = self._model(input_ids=ids, attention_mask=attention).last_hidden_state
            return pooled(hidden.float().cpu().numpy(), mask, self._spec)
