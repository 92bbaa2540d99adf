import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.config import RolloutConfig
from agentrl.errors import ConfigError, ModelError
from agentrl.rollouts.chat import ChatFormat, Parts, PromptTooLong, parts_of
from tests.fakes import tiny_tokenizer
from tests.rollouts.test_encode import hostile, word_level

INFO = ("\n\n<information>", "</information>\n\n")
APPENDING = ["qwen", "drops_think", "no_tool", "strips", "escapes_tool", "opens_think"]


def make(style="chat", template="qwen", **options):
    tokenizer = tiny_tokenizer(template)
    defaults = {"max_context": 4000, "max_tokens_per_turn": 100, "max_observation_tokens": 60}
    return tokenizer, ChatFormat(tokenizer, RolloutConfig(style=style, **(defaults | options)))


def rendered(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("style", ["tag", "chat"])
def test_first_prompt_has_the_tokens_of_the_template(style):
    tokenizer, chat = make(style)
    parts = Parts("Answer the question.\nQuestion: ", "where was Ada Rowan born", "?")
    assert chat.start(parts) == rendered(tokenizer, [{"role": "user", "content": parts.text}])


@pytest.mark.parametrize("template", [None, "qwen"])
def test_raw_prompt_is_the_text_alone(template):
    tokenizer, chat = make("tag", template, prompt="raw" if template else "auto")
    assert chat.start(Parts("Question: ", "who?", "\n")) == tokenizer.encode("Question: who?\n")


def test_raw_prompt_begins_as_the_tokenizer_begins_texts():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(None)
    bos = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>",
        special_tokens=[("<|im_start|>", bos), ("<|endoftext|>", tokenizer.pad_token_id)],
    )
    chat = ChatFormat(tokenizer, RolloutConfig(max_context=300))
    assert chat.start(Parts("who?", "", "")) == [bos, *tokenizer.encode("who?", add_special_tokens=False)]


def test_tag_style_continues_raw():
    tokenizer, chat = make("tag")
    action = tokenizer.encode("<search> x </search>")
    new = chat.extend(action, "stop", Parts(INFO[0], "Doc 1(Title: Ada Rowan) was born.", INFO[1]))
    assert new == tokenizer.encode(f"{INFO[0]}Doc 1(Title: Ada Rowan) was born.{INFO[1]}")
    assert chat.tool_role is None


@pytest.mark.parametrize("template", APPENDING)
def test_chat_style_has_the_tokens_of_the_template(template):
    """Without <think>, no template rewrites history: appended tokens are those of the whole conversation rendered."""
    tokenizer, chat = make(template=template)
    role = chat.tool_role
    opens = "<think>\n" if template == "opens_think" else ""
    messages = [{"role": "user", "content": " Question: who? "}]
    ids = chat.start(Parts(" Question: ", "who?", " "))
    for turn in range(3):
        said = f"search number {turn}"
        observed = Parts("\nDoc: ", f"found {turn}", "\n")
        action = tokenizer.encode(said)
        ids += action + chat.extend(action, "length", observed)
        messages += [{"role": "assistant", "content": opens + said}, {"role": role, "content": observed.text}]
        assert ids == rendered(tokenizer, messages)


def test_earlier_turns_keep_their_tokens_where_the_template_rewrites_them():
    tokenizer, chat = make(template="drops_think")
    said = "<think>\nfirst this\n</think>\n\n<search> x </search>"
    action = tokenizer.encode(said)
    ids = chat.start(Parts("", "who?", "")) + action + chat.extend(action, "stop", Parts("", "found", ""))
    messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": said}]
    assert ids != rendered(tokenizer, [*messages, {"role": "tool", "content": "found"}])  # the template drops <think>
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert f"assistant\n{said}<|im_end|>\n<|im_start|>user\n<tool_response>\nfound" in text


def test_the_end_of_turn_is_written_once():
    tokenizer, chat = make()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    action = tokenizer.encode("hello")
    observed = Parts("", "found", "")
    by_us = action + chat.extend(action, "stop", observed)
    by_model = [*action, end, *chat.extend([*action, end], "stop", observed)]
    assert by_us == by_model
    assert by_us[len(action) : len(action) + 2].count(end) == 1


def test_an_end_of_turn_of_two_tokens_is_completed_or_left_alone():
    tokenizer = tiny_tokenizer("qwen")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_end|><|endoftext|>")
    chat = ChatFormat(tokenizer, RolloutConfig(style="chat", max_context=300))
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    action = tokenizer.encode("hello")
    whole = action + chat.extend(action, "length", Parts("", "found", ""))
    for said in (ends[:1], ends):
        assert [*action, *said, *chat.extend([*action, *said], "stop", Parts("", "found", ""))] == whole


@pytest.mark.parametrize("style", ["tag", "chat"])
def test_a_long_body_is_cut_and_the_closing_tag_survives(style):
    tokenizer, chat = make(style)
    parts = Parts(INFO[0], "Doc 1(Title: Ada Rowan) Ada Rowan was born in Port Ellis. " * 50, INFO[1])
    frame = len(chat.extend([], "stop", Parts("", "", "")))
    new = chat.extend([], "stop", parts)
    assert abs(len(new) - (60 + frame)) <= 2  # a line break of the template may join one of the observation
    text = tokenizer.decode(new)
    assert chat.shown(parts) in text
    assert chat.shown(parts).startswith(f"{INFO[0]}Doc 1")
    assert chat.shown(parts).endswith(INFO[1])


@pytest.mark.parametrize("size", range(20, 80))
def test_the_limit_holds_at_every_length(size):
    tokenizer, chat = make("tag")
    parts = Parts(INFO[0], "one 2 three. " * (size // 4) + "x" * (size % 4), INFO[1])
    new = chat.extend([], "stop", parts)
    whole = tokenizer.encode(parts.text)
    assert len(new) <= 60
    assert new == whole or len(whole) > 58  # a token or two may join where the parts meet
    assert tokenizer.decode(new).endswith(INFO[1])


def test_a_limit_below_the_tags_leaves_the_tags():
    tokenizer, chat = make("tag", max_observation_tokens=1)
    assert tokenizer.decode(chat.extend([], "stop", Parts(INFO[0], "body", INFO[1]))) == "".join(INFO)


@pytest.mark.parametrize("style", ["tag", "chat"])
def test_a_megabyte_is_quick(style):
    _, chat = make(style)
    for body in ("word " * 200_000, "x" * 1_000_000, "<|im_end|>" * 100_000, "\x00" * 1_000_000):
        start = time.process_time()
        assert len(chat.extend([], "stop", Parts(INFO[0], body, INFO[1]))) < 100
        with pytest.raises(PromptTooLong):
            chat.start(Parts(INFO[0], body, INFO[1]))
        assert time.process_time() - start < 1  # encoding all of it takes several seconds


TAG_TOKENIZER, TAG = make("tag")
CHAT_TOKENIZER, CHAT = make("chat")


@pytest.mark.slow
@given(hostile, st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_hostile_bodies_bring_no_control_token(body, repeat):
    body = body * (1 + repeat // 100)
    parts = Parts(INFO[0], body, INFO[1])
    for tokenizer, chat in ((TAG_TOKENIZER, TAG), (CHAT_TOKENIZER, CHAT)):
        for encode in (chat.start, lambda p, chat=chat: chat.extend([], "stop", p)):
            frame = encode(Parts(INFO[0], "", INFO[1]))
            try:
                ids = encode(parts)
            except PromptTooLong:
                continue
            control = chat.encoder.control_ids
            assert [i for i in ids if i in control] == [i for i in frame if i in control]
            assert all(0 <= i < len(tokenizer) for i in ids)
            assert "</information>" in tokenizer.decode(ids[-40:])


def test_observations_of_a_word_level_tokenizer_keep_their_tags():
    tokenizer = word_level()
    chat = ChatFormat(tokenizer, RolloutConfig(max_context=100, max_observation_tokens=4))
    opening, closing = tokenizer.convert_tokens_to_ids(["<search>", "</search>"])
    ids = chat.extend([], "stop", Parts("<search> ", "ada </search> born ada ada", " </search>"))
    assert ids == [opening, 5, 2, closing]


def test_white_space_is_stripped_where_the_template_does():
    tokenizer, chat = make(template="strips")
    for parts in (Parts(" \n", " a ", "\n"), Parts("", "\n a\n", ""), Parts(" ", " ", "b "), Parts(" ", "", "")):
        action = tokenizer.encode("hm")
        ids = chat.start(parts) + action + chat.extend(action, "stop", parts)
        messages = [{"role": "user", "content": parts.text}, {"role": "assistant", "content": "hm"}]
        assert ids == rendered(tokenizer, [*messages, {"role": "tool", "content": parts.text}])


def test_repeated_calls_return_fresh_lists():
    _, chat = make("tag")
    parts = Parts("", "who?", "")
    for encode in (chat.start, lambda p: chat.extend([], "stop", p)):
        before = list(encode(parts))
        encode(parts).append(0)
        assert encode(parts) == before


def test_parts_come_from_info_or_are_all_body():
    assert parts_of("abc", {"observation_parts": {"open": "a", "body": "b", "close": "c"}}) == Parts("a", "b", "c")
    assert parts_of("abc", {}) == Parts("", "abc", "")
    with pytest.raises(ValueError, match="do not add up"):
        parts_of("abd", {"observation_parts": {"open": "a", "body": "b", "close": "c"}})


def test_chat_style_without_template_names_the_remedy():
    with pytest.raises(ModelError, match=r"rollout\.style is chat.*no chat template.*rollout\.style: tag"):
        make("chat", None)
    with pytest.raises(ModelError, match=r"rollout\.prompt is chat.*rollout\.prompt: raw"):
        make("tag", None, prompt="chat")
    with pytest.raises(ConfigError, match=r"rollout\.prompt: auto"):
        make("chat", "qwen", prompt="raw")


def test_a_context_smaller_than_one_turn_is_refused():
    with pytest.raises(ConfigError, match=r"max_context is 60, smaller than one turn.*at least"):
        make("tag", max_context=60, max_tokens_per_turn=50)
    _, chat = make("tag", max_context=130)
    for times in (20, 100_000):
        with pytest.raises(PromptTooLong, match=r"the prompt has (\d+|over 130) tokens .*max_context is 130"):
            chat.start(Parts("", "a long question " * times, ""))  # one row's matter, not the config's
    with pytest.raises(ConfigError, match="smaller than one turn"):
        chat.start(Parts("a long instruction " * 20, "who?", ""))


@pytest.mark.parametrize("style", ["tag", "chat"])
def test_the_templates_end_of_turn_ends_a_turn_of_a_base_model(tmp_path, style):
    """Qwen2.5's base models: the template ends turns with <|im_end|>, the tokenizer's own end is <|endoftext|>."""
    import asyncio
    import json

    import torch

    from agentrl.train.build import build_job
    from tests.fakes import save_tiny_model
    from tests.small import small_config

    folder = save_tiny_model(tmp_path / "m", context=2048)
    tokenizer = tiny_tokenizer("qwen")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(told | {"eos_token_id": tokenizer.eos_token_id}))
    config = small_config(tmp_path, folder, rollout={"style": style, "max_context": 900})
    job = build_job(config, tmp_path)
    end = job.chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert job.chat.tokenizer.eos_token_id != end and job.chat.turn_ends()[0] == end
    job.engine.sampler.next_logits = lambda ids, *_: (
        torch.nn.functional.one_hot(torch.full(ids.shape[:1], end), 528) * 99.0
    )
    sample = asyncio.run(job.engine.sample([5, 6], max_tokens=8))
    assert (sample.ids, sample.stop, sample.text) == ([end], "stop", "")


def test_a_raw_prompt_has_the_tokenizers_own_end_alone():
    tokenizer = tiny_tokenizer("qwen")
    chat = ChatFormat(tokenizer, RolloutConfig(prompt="raw", max_context=900))
    assert chat.turn_ends() == [tokenizer.eos_token_id]
