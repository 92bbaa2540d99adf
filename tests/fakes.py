"""Small stand-ins for tests: a tiny Qwen2 with a byte-level BPE tokenizer on disk, chat templates, a scripted sampler.

Nothing is downloaded: the tokenizer is trained here on a few sentences, the weights are random from a seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from agentrl.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = (  # matched in text like special tokens, but not marked special: Qwen does the same
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
VOCABULARY = 512  # of the BPE model at most, before the added tokens
ROWS = 528  # of the embedding: vocabulary and added tokens, rounded up to a multiple of 16

SENTENCES = (
    "Answer the question. Reason inside <think> and </think> first, then search if some knowledge is missing.",
    "<search> where was Ada Rowan born? </search>",
    "\n\n<information>Doc 1(Title: Ada Rowan) Ada Rowan was born in Port Ellis in 1931.\n</information>\n\n",
    "Doc 2(Title: Port Ellis) Port Ellis is a city on the western coast of the region of Varn.\n",
    "<answer> Port Ellis </answer>\nQuestion: which city is the company of Ada Rowan based in?",
    "You are a helpful assistant. system user assistant tool\nThe action was not valid; use <search> or <answer>.",
    "one two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9 10 11 12",
)

_SYSTEM = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
)
_MESSAGE = "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
_TOOL = (  # neighbouring tool messages share one user turn
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
)
_GENERATE = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
_LOOP, _END = "{%- for m in messages %}", "{%- endfor %}"
QWEN = (
    f"{_SYSTEM}{_LOOP}{{%- if m.role == 'tool' %}}{_TOOL}{{%- elif m.role != 'system' %}}{_MESSAGE}{{%- endif %}}"
    f"{_END}{_GENERATE}"
)

TEMPLATES: dict[str, str] = {
    "qwen": QWEN,
    # Drops <think> blocks of all assistant messages before the last user or tool message: rewrites history.
    "drops_think": (
        "{%- set ns = namespace(last=0) %}{%- for m in messages %}"
        "{%- if m.role in ['user', 'tool'] %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        f"{_LOOP}{{%- if m.role == 'tool' %}}{_TOOL}"
        "{%- elif m.role == 'assistant' %}"
        "{%- set said = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{%- if loop.index0 > ns.last and '</think>' in m.content %}"
        "{{- '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}"
        "{%- else %}{{- '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}{%- endif %}"
        f"{{%- else %}}{_MESSAGE}{{%- endif %}}{_END}{_GENERATE}"
    ),
    # Knows no tool messages, and says so.
    "no_tool": (
        f"{_SYSTEM}{_LOOP}{{%- if m.role == 'tool' %}}{{{{- raise_exception('role tool is not supported') }}}}"
        f"{{%- elif m.role != 'system' %}}{_MESSAGE}{{%- endif %}}{_END}{_GENERATE}"
    ),
    # Leaves out messages of roles it does not know, and does not say so.
    "drops_tool": (
        f"{_SYSTEM}{_LOOP}{{%- if m.role in ['user', 'assistant'] %}}{_MESSAGE}{{%- endif %}}{_END}{_GENERATE}"
    ),
    # Removes white space around every content.
    "strips": QWEN.replace("m.content", "(m.content | trim)"),
    # Writes tool output as a JSON string: what stands there depends on the characters inside.
    "escapes_tool": QWEN.replace("'\n<tool_response>\n' + m.content", "'\n<tool_response>\n' + (m.content | tojson)"),
    # Numbers the messages: what is added for a new one depends on how many came before.
    "counts": f"{_SYSTEM}{_LOOP}{{{{- '#' ~ loop.index }}}}{_MESSAGE}{_END}{_GENERATE}",
    # Opens the generation with a block of its own, as reasoning models do.
    "opens_think": QWEN.replace(
        "<|im_start|>assistant\n' }}{%- endif %}", "<|im_start|>assistant\n<think>\n' }}{%- endif %}"
    ),
}

# How the templates of three families write tools, calls and results; the words around them are ours.
_HERMES_CALLS = (
    '{%- for c in m.tool_calls %}{{- \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' '
    "+ (c.function.arguments | tojson) + '}\n</tool_call>' }}{%- endfor %}"
)
TEMPLATES["hermes_tools"] = (
    "{%- if tools %}{{- '<|im_start|>system\nTools:' }}{%- for t in tools %}{{- '\n' + (t | tojson) }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- endif %}"
    f"{_LOOP}{{%- if m.role == 'tool' %}}{_TOOL}{{%- elif m.tool_calls %}}"
    f"{{{{- '<|im_start|>assistant' + ('\n' + m.content if m.content else '') }}}}{_HERMES_CALLS}"
    "{{- '<|im_end|>\n' }}"
    f"{{%- else %}}{_MESSAGE}{{%- endif %}}{_END}{_GENERATE}"
)
# Tool results only after calls; one message each; no generation prompt.
TEMPLATES["mistral_tools"] = (
    "{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.role == 'tool' %}"
    "{%- if messages[loop.index0 - 1].role == 'assistant' and not messages[loop.index0 - 1].tool_calls %}"
    "{{- raise_exception('a result without a call') }}{%- endif %}"
    "{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for c in m.tool_calls %}"
    '{{- \'{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson)'
    " + ', \"id\": \"' + c.id + '\"}' + (', ' if not loop.last else '') }}{%- endfor %}{{- ']<|im_end|>' }}"
    "{%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}{%- endfor %}"
)
# One call a turn, results as JSON strings.
TEMPLATES["llama_tools"] = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|im_start|>user\n' }}{%- if tools and loop.first %}"
    "{%- for t in tools %}{{- (t | tojson) + '\n' }}{%- endfor %}{%- endif %}{{- m.content + '<|im_end|>' }}"
    "{%- elif m.role == 'tool' %}{{- '<|im_start|>ipython\n' + (m.content | tojson) + '<|im_end|>' }}"
    "{%- elif m.tool_calls %}{%- set f = m.tool_calls[0].function %}"
    '{{- \'<|im_start|>assistant\n{"name": "\' + f.name + \'", "parameters": \' + (f.arguments | tojson) '
    "+ '}<|im_end|>' }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + m.content + '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@cache
def _backend() -> str:
    """JSON of a byte-level BPE tokenizer in Qwen's manner."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'[a-z]{1,2}|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(SENTENCES, trainer)
    assert tok.get_vocab_size() <= VOCABULARY
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED_TOKENS])
    assert tok.get_vocab_size() <= ROWS
    return tok.to_str()


def tiny_tokenizer(template: str | None = "qwen") -> PreTrainedTokenizerFast:
    """A fresh byte-level BPE tokenizer of about 500 tokens; `template` is a name of TEMPLATES, or None for none."""
    from transformers import PreTrainedTokenizerFast

    tok = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    if template is not None:
        tok.chat_template = TEMPLATES[template]
    return tok


def tiny_model(*, seed: int = 0, layers: int = 2, hidden: int = 64, context: int = 1024) -> Any:
    """A Qwen2ForCausalLM with random weights (fp32, eval mode), 4 heads of 16, 2 key/value heads, tied embeddings."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tok = tiny_tokenizer(None)
    config = Qwen2Config(
        vocab_size=ROWS,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.07,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).eval()


def save_tiny_model(path: str | Path, *, template: str | None = "qwen", seed: int = 0, **sizes: int) -> Path:
    """Write tiny model and tokenizer in Hugging Face format (safetensors) to the folder `path`; returns it."""
    path = Path(path)
    tiny_model(seed=seed, **sizes).save_pretrained(path)
    tiny_tokenizer(template).save_pretrained(path)
    return path


class ScriptedSampler:
    """A sampler that says what it is told: no model, exact token ids of given texts.

    `script` is a list of texts, the turns of every episode in order (the last is repeated), or a function of
    (session, turn) that returns one. `eos` is appended to a text without a stop string in it, as a model that ends
    its turn by itself would. `delay_s` is spent in every call.
    """

    def __init__(
        self,
        tokenizer: Any,
        script: Sequence[str] | Callable[[int, int], str],
        *,
        eos: bool = False,
        delay_s: float = 0.0,
        logprob: float = -0.5,
    ) -> None:
        self.tokenizer = tokenizer
        self.policy_version = 0
        self.context_length = 1 << 20
        self.calls: list[dict[str, Any]] = []  # session, turn, context (a copy of the ids), max_tokens, temperature
        self.released: list[int] = []
        self._script = script if callable(script) else (lambda _, turn, s=list(script): s[min(turn, len(s) - 1)])
        self._eos, self._delay_s, self._logprob = eos, delay_s, logprob
        self._turns: dict[int, int] = {}
        self._encoded: dict[str, list[int]] = {}

    async def sample(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        session: int | None = None,
    ) -> Sample:
        """The next scripted text of this session, cut at `max_tokens`."""
        key = -1 if session is None else session
        turn = self._turns.get(key, 0)
        self._turns[key] = turn + 1
        self.calls.append(
            {"session": key, "turn": turn, "context": list(ids), "max_tokens": max_tokens, "temperature": temperature}
        )
        text = self._script(key, turn)
        stopped = any(s in text for s in stop)
        if text not in self._encoded:
            self._encoded[text] = self.tokenizer.encode(text, add_special_tokens=False)
        out = list(self._encoded[text])
        ended = stopped or self._eos
        if self._eos and not stopped:
            out.append(self.tokenizer.eos_token_id)
        if len(out) > max_tokens:
            out, ended = out[:max_tokens], False
            text = self.tokenizer.decode(out, skip_special_tokens=False)
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        return Sample(ids=out, logprobs=[self._logprob] * len(out), text=text, stop="stop" if ended else "length")

    def release(self, session: int) -> None:
        """Forget the session."""
        self._turns.pop(session, None)
        self.released.append(session)


class RecordingEngine:
    """An engine without a model, for one step: it notes every call, and its log-probabilities are a formula.

    `logprob(token, version)` is log π of a token after `version` syncs, `reference(token)` that of the frozen policy.
    Where NTHR is asked for, the tokens of `softened` get the factor 1/4. Update k, from 1, has a gradient norm of k.
    """

    scores_while_updating = True
    samples_ahead = 0
    needs_first_checkpoint = False
    sampled_tokens = 0
    reference: Any = None
    lr_scale = 1.0

    def __init__(
        self,
        logprob: Callable[[int, int], float],
        reference: Callable[[int], float] = lambda token: 0.0,
        softened: Sequence[int] = (),
    ) -> None:
        from types import SimpleNamespace

        self.tokenizer = SimpleNamespace(pad_token_id=0, convert_ids_to_tokens=lambda ids: [str(i) for i in ids])
        self.policy_version = 0
        self.calls: list[tuple[str, dict[str, Any]]] = []  # name, arguments
        self._logprob, self._reference, self._softened = logprob, reference, softened

    def named(self, name: str) -> list[dict[str, Any]]:
        """The arguments of all calls of `name`, in order."""
        return [arguments for called, arguments in self.calls if called == name]

    def _of_tokens(self, batch: Any, value: Callable[[int], float]) -> Any:
        """(B, S): `value` of every action token, 0 elsewhere."""
        import torch

        return torch.tensor([[value(x) for x in row[1:]] for row in batch.input_ids.tolist()]) * batch.action_mask

    def score(self, batch: Any, **arguments: Any) -> Any:
        """See the class."""
        from agentrl.engines.base import ScoreResult

        self.calls.append(("score", {"batch": batch, **arguments}))
        if arguments.get("reference"):
            return ScoreResult(self._of_tokens(batch, self._reference))
        out = ScoreResult(self._of_tokens(batch, lambda x: self._logprob(x, self.policy_version)))
        if arguments.get("nthr") is not None:
            out.nthr_factor = self._of_tokens(batch, lambda x: 0.25 if x in self._softened else 1.0)
        return out

    def update(self, batch: Any, advantages: Any, old_logprobs: Any, **arguments: Any) -> dict[str, float]:
        """See the class; `scores` are filled as the real engine fills them."""
        arguments |= {"batch": batch, "advantages": advantages, "old_logprobs": old_logprobs}
        self.calls.append(("update", arguments))
        if arguments["scores"] is not None:
            arguments["scores"].logprobs[:] = self._of_tokens(batch, lambda x: self._logprob(x, self.policy_version))
        return {"grad_norm": float(len(self.named("update"))), "loss": float(len(batch))}

    def sync(self) -> None:
        """See the class."""
        self.calls.append(("sync", {}))
        self.policy_version += 1
