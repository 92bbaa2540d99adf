"""Config files: where each value came from, and every problem at once with its file, line and remedy."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from agentrl.config import RunConfig
from agentrl.config.files import config_hash, find_config, load_config, plain, shipped_configs, to_yaml, value_at
from agentrl.errors import ConfigError
from tests.small import SMALL, merged


@pytest.fixture
def write(tmp_path):
    def write(text, name="job.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return [p.replace(f"{path}:", "") for p in caught.value.problems]


# ------------------------------------------------------------------------------------------------------------- shipped


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_parses(name):
    loaded = load_config(name)
    assert loaded.path == shipped_configs()[name] and loaded.config.name == name
    assert load_config(loaded.path).config == loaded.config


def test_every_file_in_configs_is_shipped():
    files = Path(__file__).parents[2].joinpath("configs").glob("*.yaml")
    assert {p.stem for p in files} == set(shipped_configs()) >= {"search_tiny"}


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_passes_a_dry_run(name, monkeypatch):
    from agentrl.commands.dryrun import report

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what is on the hub is not estimated here
    loaded = load_config(name)
    text = report(loaded)
    assert f"{loaded.path}:" in text and "default" in text
    assert "responses" in text and "optimiser steps" in text


@pytest.mark.parametrize(
    ("name", "path", "batch", "mini_batch", "lr", "steps", "response"),  # NTHR's recipe
    [
        ("nthr_qwen2.5_0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 32, 16, 5e-7, 105, 2500),
        ("nthr_qwen2.5_1.5b", "Qwen/Qwen2.5-1.5B-Instruct", 256, 64, 1e-6, 40, 4000),
        ("nthr_qwen2.5_math_1.5b", "Qwen/Qwen2.5-Math-1.5B", 256, 64, 1e-6, 40, 3072),
        ("nthr_qwen2.5_3b", "Qwen/Qwen2.5-3B", 256, 64, 1e-6, 40, 4000),
    ],
)
@pytest.mark.parametrize("cluster", ["", "cluster_"])
def test_the_nthr_configs_have_the_papers_settings(cluster, name, path, batch, mini_batch, lr, steps, response):
    if cluster and cluster + name not in shipped_configs():
        pytest.skip("no cluster variant")
    c = load_config(cluster + name).config
    assert (c.model.path, c.data.train, c.env.id) == (path, "recipe:math_3to5", "agentrl/Math-v0")
    assert (c.rollout.prompts_per_step, c.rollout.group_size, c.rollout.temperature) == (batch, 8, 1.0)
    assert c.rollout.max_tokens_per_turn == response and c.rollout.max_context - response == 1024
    assert c.train.mini_batches * mini_batch == batch and (c.train.steps, c.train.epochs) == (steps, 1)
    assert (c.optim.lr, c.optim.schedule, c.optim.warmup_steps) == (lr, "constant", 0)
    loss, nthr = c.algorithm.loss, c.algorithm.nthr
    assert (loss.clip_low, loss.clip_high, loss.kl_coef) == (0.2, 0.2, 1e-4)
    assert c.algorithm.name == "grpo" and c.algorithm.dynamic_sampling
    assert (nthr.enabled, nthr.beta, nthr.eta, c.eval.temperature) == (True, 1.0, "2|0.5-p|", 0.0)


def test_an_unknown_name_gets_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="neither a file nor a shipped config; did you mean 'search_tiny'"):
        load_config("serch_tiny")
    with pytest.raises(ConfigError, match=r"shipped are .*search_tiny"):
        load_config("zzz")


def test_a_run_directory_is_a_config(tmp_path):
    (tmp_path / "config.yaml").write_text("world: {}\n")
    assert find_config(tmp_path) == tmp_path / "config.yaml"


# ------------------------------------------------------------------------------------------------------------ problems


def test_unknown_keys_are_named_with_line_and_nearest(write):
    path = write("world: {}\noptim:\n  lrr: 1\nrolout:\n  style: tag\ntrain: {stepz: 3}\n")
    assert problems(path) == [
        "3: optim.lrr: no such key; did you mean 'lr'?",
        "6: train.stepz: no such key; did you mean 'steps'?",
        "5: rolout: no such key; did you mean 'rollout'?",
    ]


def test_an_unknown_key_without_a_near_one_lists_the_valid(write):
    assert problems(write("world: {}\nretriever: {qqq: 1}\n")) == [
        "2: retriever.qqq: no such key; valid here: url, index, kind, encoder, threads, wait_s, timeout_s, retries"
    ]


def test_all_problems_at_once(write):
    path = write(
        "world: {}\noptim:\n  lr: fast\n  warmup_steps: -1\n"
        "algorithm:\n  nthr:\n    eta: q\nseed: 1\nseed: 2\nnoise: 1\n"
    )
    found = problems(path, "train.steps=many", "nonsense", "rollout.group_size=1")
    text = "\n".join(found)
    for part in (
        "9: seed is written twice (first in line 8); keep one",
        "--set 'nonsense' has no '='; write --set optim.lr=3e-4",
        "3: optim.lr: should be a valid number",
        "4: optim.warmup_steps: should be greater than or equal to 0, but is -1",
        "7: algorithm.nthr.eta: ",
        "10: noise: no such key",
        "--set: train.steps: should be a valid integer",
        "--set: rollout: group_size is 1;",
    ):
        assert part in text, (part, text)
    assert len(found) == 8  # one line each, also for the union of eta


def test_problems_of_the_whole_config_have_lines_of_their_own(write):
    found = problems(write("rollout: {temperature: 0}\n"))
    assert [f[:25] for f in found] == [
        " neither world nor data.t",
        " model.path builtin:tiny ",
        "1: rollout.temperature is",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "is not YAML: .*line 2"),
        ("- 1\n", "1: a config is a mapping"),
        ("word\n", "1: a config is a mapping"),
        ("world: {}\noptim: 3\n", "2: optim: "),
        ("world: {}\nname: !!python/object/apply:os.system [id]\n", "2: name: .*could not determine a constructor"),
        ("extends: job.yaml\n", "extends leads back to itself"),
        ("extends: nowhere\n", "'nowhere' is neither a file nor a shipped config"),
    ],
)
def test_files_that_are_no_config(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(text))


def test_an_empty_file_and_a_binary_one(write, tmp_path):
    assert "neither world nor data.train" in problems(write(""))[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"b\.yaml cannot be read"):
        load_config(tmp_path / "b.yaml")


# --------------------------------------------------------------------------------------------------- values and origins


def test_overrides_and_origins(write):
    path = write("world: {people: 30}\noptim:\n  lr: 2e-4\nenv:\n  kwargs: {topk: 5}\n")
    loaded = load_config(path, ["optim.lr=1e-6", "train.steps=7", "env.kwargs.max_turns=2", "model.lora={rank: 4}"])
    config, origins = loaded.config, loaded.origins
    assert (config.optim.lr, config.train.steps, config.name) == (1e-6, 7, "job")
    assert config.env.kwargs == {"topk": 5, "max_turns": 2}
    assert config.model.lora.rank == 4
    assert origins["world.people"] == f"{path}:1" and origins["world.cities"] == "default"
    assert origins["optim.lr"] == origins["model.lora.rank"] == "--set"
    assert origins["optim.betas"] == "default"
    assert all(value_at(config, key) is not KeyError for key in origins)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1E5", 1e5), ("+.5e-3", 5e-4), ("1.e2", 100.0), ("3", 3.0), ("0.1", 0.1), ("-1e-3", None)],
)
def test_numbers_that_yaml_1_1_reads_as_text(write, text, value):
    if value is None:
        assert "greater than 0" in problems(write(f"world: {{}}\noptim: {{lr: {text}}}\n"))[0]
    else:
        assert load_config(write(f"world: {{}}\noptim: {{lr: {text}}}\n")).config.optim.lr == value
        assert load_config(write("world: {}\n"), [f"optim.lr={text}"]).config.optim.lr == value


@pytest.mark.parametrize("revision", ["1e5abc", "3e12f9ab", "12e4", "0x1F", "1_000", "yes", "2024-01-01", "null", "~"])
def test_texts_that_look_like_numbers_survive(write, revision):
    config = load_config(write(f"world: {{}}\nmodel: {{revision: '{revision}'}}\n")).config
    assert config.model.revision == revision
    assert load_config(write(to_yaml(config), "again.yaml")).config == config


def test_a_commit_hash_needs_no_quotes(write):
    assert load_config(write("world: {}\nmodel: {revision: 3e12f9ab}\n")).config.model.revision == "3e12f9ab"


def test_values_in_overrides_are_yaml(write):
    path = write("world: {}\nwarm_start: {epochs: 2}\n")
    config = load_config(
        path, ["warm_start=null", "world.hops=[1, 3]", "rollout.stop=['</a>']", "eval.every= 3"]
    ).config
    assert config.warm_start is None and config.world.hops == [1, 3] and config.rollout.stop == ["</a>"]
    assert "the value is not YAML" in problems(path, "seed=[1")[0]
    assert problems(path, "name=") == ["--set: name: should be a valid string, but is None"]


def test_extends_replaces_part_by_part(write):
    write("world: {people: 40}\noptim: {lr: 1e-3, warmup_steps: 2}\nseed: 1\nwarm_start: {epochs: 1}\n", "base.yaml")
    write("extends: base\noptim: {lr: 5e-4}\n", "middle.yaml")
    path = write("extends: middle.yaml\nseed: 9\nwarm_start: null\n")
    with pytest.raises(
        ConfigError, match="'base' is neither"
    ):  # names are of shipped configs, paths are beside the file
        load_config(path)
    write("extends: base.yaml\noptim: {lr: 5e-4}\n", "middle.yaml")
    loaded = load_config(path)
    config = loaded.config
    assert (config.world.people, config.optim.lr, config.optim.warmup_steps) == (40, 5e-4, 2)
    assert config.seed == 9 and config.warm_start is None and config.name == "job"
    assert loaded.origins["optim.lr"].endswith("middle.yaml:2")
    assert loaded.origins["optim.warmup_steps"].endswith("base.yaml:2")
    shipped = load_config(write("extends: search_tiny\ntrain: {steps: 3}\n", "mine.yaml")).config
    assert shipped.train.steps == 3 and shipped.rollout == load_config("search_tiny").config.rollout


def test_a_mapping_in_an_override_is_merged_key_by_key(write):
    path = write("world: {people: 30}\noptim: {lr: 1e-3, weight_decay: 0.3}\nenv: {kwargs: {a: {x: 1}, b: 2}}\n")
    loaded = load_config(path, ["optim={lr: 0.1}", "world={}", "env.kwargs={a: {y: 3}}"])
    assert (loaded.config.optim.lr, loaded.config.optim.weight_decay, loaded.config.world.people) == (0.1, 0.3, 30)
    assert loaded.config.env.kwargs == {"a": {"x": 1, "y": 3}, "b": 2}
    assert loaded.origins["optim.lr"] == "--set" and loaded.origins["optim.weight_decay"] == f"{path}:2"
    assert loaded.origins["optim.betas"] == "default" and loaded.origins["world.people"] == f"{path}:1"
    assert loaded.origins["env.kwargs"] == f"{path}:3, --set"
    assert load_config(path, ["env={kwargs: {b: 5}}"]).config.env.kwargs == {"a": {"x": 1}, "b": 5}


def test_mappings_of_a_file_that_is_extended_are_merged_too(write):
    write("world: {people: 40}\nenv: {kwargs: {topk: 5, max_turns: 2}}\nmodel: {lora: {rank: 4}}\n", "base.yaml")
    path = write("extends: base.yaml\nworld: {}\nenv: {kwargs: {topk: 7}}\nmodel: {lora: {}}\n")
    config = load_config(path).config
    assert (config.world.people, config.env.kwargs) == (40, {"topk": 7, "max_turns": 2})
    assert config.model.lora.rank == 4


@pytest.mark.parametrize("given", ["env.kwargs=null", "env={kwargs: null}"])
def test_null_empties_a_mapping_of_ones_own_keys(write, given):
    loaded = load_config(write("world: {}\nenv: {kwargs: {topk: 5}}\n"), [given, "env.kwargs.max_turns=2"])
    assert loaded.config.env.kwargs == {"max_turns": 2} and loaded.origins["env.kwargs"] == "--set"


def test_the_origin_of_a_value_that_was_replaced_is_forgotten(write):
    path = write("world: {}\nwarm_start: {epochs: 1, batch: 8}\nmodel: {lora: {rank: 4}}\n")
    loaded = load_config(path, ["warm_start=null", "warm_start.epochs=2", "model.lora=null", "model.lora={alpha: 2}"])
    assert (loaded.config.warm_start.batch, loaded.config.model.lora.rank) == (32, 16)
    assert loaded.origins["warm_start.batch"] == loaded.origins["model.lora.rank"] == "default"
    assert loaded.origins["warm_start.epochs"] == loaded.origins["model.lora.alpha"] == "--set"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: {kwargs: {since: 2024-05-06}}", r'env.kwargs.since is a date \(2024-05-06\): .*quotes, "2024-05-06"'),
        ("env: {kwargs: {a: [{at: 2024-05-06 07:08:00}]}}", r"env.kwargs.a.0.at is a date \(2024-05-06 07:08:00\)"),
        ("env: {kwargs: {a: {2024-05-06: 1}}}", "env.kwargs.a has a key that is a date"),
        ("env: {kwargs: {raw: !!binary aGk=}}", "env.kwargs.raw is a YAML bytes"),
        ("env: {kwargs: {a: !!set {x, y}}}", "env.kwargs.a is a YAML set"),
        ("env: {kwargs: &k {a: {b: *k}}}", "2: env.kwargs holds itself"),
        ("extends: [search_tiny, math_tiny]", "2: extends takes one name or path, not a list; let the other file"),
        ("extends: {a: b}", "2: extends takes one name or path, not a mapping"),
        ("extends:", "2: extends takes one name or path, not nothing"),
        (f"name: {'n' * 250}", r"2: name has 250 bytes \(nnnn.* becomes a folder's name, which takes 200: shorten"),
        (f"log: {{name: {'ü' * 150}}}", r"log.name has 300 bytes"),
    ],
)
def test_what_yaml_can_say_and_a_run_cannot_use(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write("world: {}\n" + text + "\n"))


def test_a_file_with_a_long_name_needs_a_name_for_its_run(write):
    path = write("world: {}\n", "f" * 240 + ".yaml")
    with pytest.raises(ConfigError, match="name has 240 bytes"):
        load_config(path)
    assert load_config(path, ["log.name=short"]).config.log.name == "short"


def test_keys_of_several_types_have_a_hash(write):
    config = load_config(write("world: {}\nenv: {kwargs: {levels: {1: a, x: b, 2: c}}}\n")).config
    assert config.env.kwargs == {"levels": {1: "a", "x": "b", 2: "c"}} and len(config_hash(config)) == 64
    assert load_config(write(to_yaml(config), "again.yaml")).config == config


def test_a_problem_in_the_file_that_is_extended_names_that_file(write):
    base = write("world: {}\noptim: {lr: -1}\n", "base.yaml")
    path = write("extends: base.yaml\n")
    with pytest.raises(ConfigError, match=rf"{base}:2: optim.lr"):
        load_config(path)


# -------------------------------------------------------------------------------------------------------- writing again

TEXT = st.text(max_size=12)
NUMBER = st.floats(min_value=1e-300, max_value=1e300)
CONFIGS = st.fixed_dictionaries(
    {
        "world": st.fixed_dictionaries(
            {}, optional={"seed": st.none() | st.integers(), "hops": st.lists(st.integers(1, 4), min_size=1)}
        ),
    },
    optional={
        "name": TEXT,
        "seed": st.integers(0),
        "model": st.fixed_dictionaries(
            {},
            optional={
                "revision": st.none() | TEXT,
                "lora": st.none() | st.fixed_dictionaries({"targets": TEXT | st.lists(TEXT, max_size=3)}),
            },
        ),
        "optim": st.fixed_dictionaries({}, optional={"lr": NUMBER, "betas": st.tuples(NUMBER, NUMBER)}),
        "rollout": st.fixed_dictionaries({}, optional={"stop": st.lists(TEXT, max_size=3)}),
        "algorithm": st.fixed_dictionaries(
            {
                "nthr": st.fixed_dictionaries(
                    {},
                    optional={
                        "beta": st.floats(allow_nan=False, max_value=1e300),
                        "eta": st.sampled_from(["2|0.5-p|", "0", "p", "1-p"]) | st.floats(0, 1),
                    },
                )
            }
        ),
        "env": st.fixed_dictionaries(
            {"kwargs": st.dictionaries(TEXT, st.recursive(st.none() | st.booleans() | TEXT | st.integers(),
                                                          lambda x: st.lists(x, max_size=2), max_leaves=4), max_size=3)}
        ),
    },
)  # fmt: skip


@pytest.mark.slow
@given(CONFIGS)
@example({"world": {}, "rollout": {"stop": ["\x85=\x85\xa0", "a\u2028b\u2029"]}})
def test_what_is_written_reads_back_equal(tmp_path_factory, tree):
    config = RunConfig.model_validate(tree)
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = load_config(path).config
    assert again == config and config_hash(again) == config_hash(config)


def test_the_hash_sees_values_and_not_their_order():
    config = RunConfig.model_validate(SMALL)
    backwards = RunConfig.model_validate(dict(reversed(SMALL.items())))
    assert config_hash(config) == config_hash(backwards) and len(config_hash(config)) == 64
    other = RunConfig.model_validate(merged(SMALL, {"optim": {"lr": math.nextafter(SMALL["optim"]["lr"], 1)}}))
    assert config_hash(other) != config_hash(config)


def test_plain_yaml_only():
    assert yaml.safe_load(to_yaml(RunConfig.model_validate(SMALL)))["optim"]["betas"] == [0.9, 0.999]
    assert plain({"a": ({"b": (1,)},)}) == {"a": [{"b": [1]}]}
