"""Encoders: the table of families, both runtimes on a small random BERT against the formula, and MiniLM itself."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from agentrl.errors import PluginError
from agentrl.retriever.building import Plan, build_index
from agentrl.retriever.corpus import Passage
from agentrl.retriever.encoders import base
from agentrl.retriever.encoders.base import _groups, encode_in_groups, open_encoder
from agentrl.retriever.encoders.spec import EncoderSpec, identity, locate, resolve
from agentrl.retriever.errors import EncoderError
from agentrl.retriever.opening import open_index
from tests.retriever.helpers import minilm, tiny_encoder

TEXTS = ["who was born in torvik", "", "glass " * 40, "edda marn kiln", "who", "unknown words everywhere"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-e5-base")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    ("name", "pooling", "query", "passage", "tokens", "normalise"),
    [
        ("intfloat/e5-base-v2", "mean", "query: ", "passage: ", 512, True),
        ("BAAI/bge-small-en-v1.5", "cls", "Represent this sentence for searching relevant passages: ", "", 512, True),
        ("BAAI/bge-m3", "cls", "", "", 512, True),
        ("thenlper/gte-base", "mean", "", "", 512, True),
        ("Alibaba-NLP/gte-base-en-v1.5", "cls", "", "", 512, True),
        ("sentence-transformers/all-MiniLM-L6-v2", "mean", "", "", 256, True),
        ("facebook/contriever", "mean", "", "", 512, False),
        ("my/own", "mean", "", "", 512, True),
    ],
)
def test_the_families(name, pooling, query, passage, tokens, normalise):
    assert resolve(name) == EncoderSpec(name, "onnx", pooling, query, passage, tokens, normalise)
    given = resolve(name, pooling="last", query_prefix="", max_tokens=8)
    assert (given.pooling, given.query_prefix, given.max_tokens, given.passage_prefix) == ("last", "", 8, passage)
    assert EncoderSpec.from_dict(given.as_dict() | {"sha256": "x"}) == given


def test_the_folder_of_the_encoder_wins_over_the_table(tmp_path):
    here = tmp_path / "e5-like"
    (here / "1_Pooling").mkdir(parents=True)
    (here / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (here / "sentence_bert_config.json").write_text('{"max_seq_length": 77}')
    spec = resolve(str(here))
    assert (spec.pooling, spec.max_tokens, spec.query_prefix) == ("cls", 77, "query: ")
    (here / "config.json").write_text('{"_name_or_path": "BAAI/bge-base"}')
    renamed = here.rename(tmp_path / "mine")
    assert resolve(str(renamed)).query_prefix.startswith("Represent")


def formula(folder, spec, texts, prefix):
    """Vectors from transformers one by one: no padding, no groups."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    out = []
    for text in texts:
        ids = tokenizer.encode(prefix + text).ids
        ids = ids if len(ids) <= spec.max_tokens else [*ids[: spec.max_tokens - 1], ids[-1]]
        with torch.inference_mode():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[spec.pooling]
        out.append((vector / vector.norm() if spec.normalise else vector).numpy())
    return np.stack(out)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize(("pooling", "normalise"), [("mean", True), ("cls", True), ("last", False)])
def test_both_runtimes_follow_the_formula(folder, runtime, pooling, normalise):
    from dataclasses import replace

    spec = replace(resolve(str(folder), runtime=runtime, pooling=pooling, max_tokens=16), normalise=normalise)
    assert spec.query_prefix == "query: "
    for threads in (1, 3):
        encoder = open_encoder(spec, threads)
        assert encoder.dimension == 32 and open_encoder(spec, threads) is encoder
        assert encoder.queries(TEXTS) == pytest.approx(formula(folder, spec, TEXTS, "query: "), abs=2e-5)
        assert encoder.passages(TEXTS) == pytest.approx(formula(folder, spec, TEXTS, "passage: "), abs=2e-5)
        assert encoder.queries([]).shape == (0, 32)


def test_bf16_and_int8_are_near_and_not_equal(folder):
    plain = open_encoder(resolve(str(folder))).queries(TEXTS)
    for given in ({"runtime": "torch", "dtype": "bf16"}, {"dtype": "int8"}):
        vectors = open_encoder(resolve(str(folder), **given)).queries(TEXTS)
        assert (vectors * plain).sum(1).min() > 0.95 and (vectors != plain).any()


def test_the_export_is_made_once_and_another_model_gets_its_own(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTRL_CACHE", str(tmp_path))
    monkeypatch.setattr(base, "_opened", {})
    open_encoder(resolve(str(folder)))
    (made,) = tmp_path.rglob("model.onnx")
    assert made.parent.name == identity(folder)[:32]
    stamp = made.stat().st_mtime_ns
    monkeypatch.setattr(base, "_opened", {})
    open_encoder(resolve(str(folder)))
    assert [p.stat().st_mtime_ns for p in tmp_path.rglob("model.onnx")] == [stamp]
    made.write_bytes(b"x")
    monkeypatch.setattr(base, "_opened", {})
    with pytest.raises(EncoderError, match="onnxruntime cannot load it"):
        open_encoder(resolve(str(folder)))


def test_groups_hold_every_row_once_and_neither_too_many_rows_nor_tokens():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 300, 500)]
    for threads, tokens in ((1, 160), (2, 4_096), (8, 160)):
        groups = list(_groups(lengths, threads, tokens))
        assert sorted(row for group in groups for row in group) == list(range(500))
        assert all(len(g) == 1 or len(g) * max(lengths[r] for r in g) <= tokens for g in groups)
        assert all(len(g) <= 256 for g in groups)
    assert len(list(_groups([5] * 10, 2, 160))) == 2 and len(list(_groups([5], 8, 160))) == 1


@pytest.mark.parametrize(("device", "shapes"), [("cpu", [(8, 20), (8, 20)]), ("cuda:0", [(16, 20)])])
def test_forward_passes_fit_a_cores_cache_and_fill_a_gpu(device, shapes):
    """Sixteen texts of 20 tokens: two passes of 160 tokens on a CPU, one on a GPU; the rows come back in order."""
    seen = []

    def forward(tokens, mask):
        seen.append(tokens.shape)
        return tokens[:, :1].astype(np.float32)

    ids = [[n] + [1] * 19 for n in range(16)]
    out = encode_in_groups(ids, 1, 1, forward, device)
    assert seen == shapes and out[:, 0].tolist() == list(range(16))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"pooling": "maen"}, "pooling 'maen': choose mean, cls, last; did you mean 'mean'"),
        ({"dtype": "fp16"}, "dtype 'fp16': choose fp32, bf16, int8"),
        ({"dtype": "bf16"}, "bf16 needs the torch runtime: add --runtime torch"),
        ({"max_tokens": 0}, "max_tokens 0: must be at least 1"),
    ],
)
def test_overrides_that_cannot_be(given, reason):
    with pytest.raises(EncoderError, match=reason):
        resolve("x", **given)


def test_encoders_that_cannot_be_opened(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match="no such folder; give a folder or a Hugging Face id"):
        locate("./none")
    with pytest.raises(PluginError, match="there is no encoder 'onxn'; did you mean 'onnx'"):
        open_encoder(EncoderSpec(str(folder), "onxn"))
    for spec, reason in [
        (EncoderSpec(str(folder), device="cuda"), "no CUDAExecutionProvider"),
        (EncoderSpec(str(folder), "torch", device="cuda"), "torch sees no GPU here"),
        (EncoderSpec(str(folder), "torch", dtype="int8"), "int8 needs the onnx runtime"),
    ]:
        if "cuda" in spec.device and torch.cuda.is_available():
            continue
        with pytest.raises(EncoderError, match=reason):
            open_encoder(spec)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(EncoderError, match="weights in pickle files are not loaded"):
        open_encoder(EncoderSpec(str(pickled)))


@pytest.mark.slow
def test_minilm_finds_what_no_word_says(tmp_path):
    """The real all-MiniLM-L6-v2: both runtimes give one vector, and meaning is found where no word is shared."""
    spec = resolve(str(minilm(tmp_path)))
    assert (spec.pooling, spec.max_tokens) == ("mean", 256)
    passages = [
        Passage("f", "Paris", "The capital of the French republic on the Seine."),
        Passage("j", "Tokyo", "Japan's seat of government and its largest metropolis."),
        Passage("c", "", "A feline slept upon the rug."),
    ]
    build_index(passages, tmp_path / "index", Plan(encoder=spec))
    index = open_index(tmp_path / "index")
    for query, expected in [("the cat lay on a carpet", "c"), ("main city of the Japanese", "j"), ("France", "f")]:
        assert index.search_batch([query], 1)[0][0].passage.id == expected
    texts = [p.contents for p in passages] * 3
    other = open_encoder(resolve(spec.name, runtime="torch")).passages(texts)
    assert open_encoder(spec).passages(texts) == pytest.approx(other, abs=1e-5)
    assert json.loads((tmp_path / "index" / "meta.json").read_text())["encoder"]["sha256"] == identity(
        locate(spec.name)
    )
