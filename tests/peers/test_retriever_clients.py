"""Other trainers' own search clients against our server. `make test-peers` runs each in an environment of its own.

The environments hold the peer and pytest; the server runs in the project's (AGENTRL_PYTHON).
"""

import json
from importlib.util import find_spec

import pytest

from tests.peers.served import search_server

GLASS = "Brightkiln makes glass. It was founded in 1921 by Edda Marn."


@pytest.fixture(scope="module")
def url():
    if not any(find_spec(peer) for peer in ("skyrl_gym", "gem")):
        pytest.skip("neither skyrl-gym nor gem-llm is here: `make test-peers` installs each into an environment")
    with search_server() as found:
        yield found


def test_skyrl_gyms_search_tool(url):
    search = pytest.importorskip("skyrl_gym.tools.search")
    tool = search.SearchToolGroup(search_url=f"{url}/retrieve", topk=2, log_requests=False)
    answer = json.loads(tool.search("Brightkiln"))["result"]
    assert answer.startswith(f'Doc 1: "Brightkiln"\n{GLASS}\nDoc 2: "Vesna Oll"\n')
    found, error = search.call_search_api(f"{url}/retrieve", "Brightkiln", topk=1, return_scores=False)
    assert error is None and found == {"result": [[{"id": "c", "contents": f'"Brightkiln"\n{GLASS}'}]]}
    assert json.loads(tool.search("qqqq"))["result"] == ""  # one empty list


def test_skyrl_gyms_search_environment(url):
    skyrl_gym = pytest.importorskip("skyrl_gym")
    from omegaconf import OmegaConf

    config = OmegaConf.create({"search_url": f"{url}/retrieve", "topk": 1, "timeout": 5, "log_requests": False})
    extras = {"reward_spec": {"ground_truth": {"target": ["1921"]}}, "max_turns": 3}
    env = skyrl_gym.make("search", env_config=config, extras=extras)
    env.init([{"role": "user", "content": "When was Brightkiln founded?"}])
    output = env.step("<search>Brightkiln</search>")
    assert "founded in 1921" in output["observations"][0]["content"] and not output["done"]
    assert env.step("<answer>1921</answer>")["reward"] == 1.0


def test_gems_search_tool(url):
    tool = pytest.importorskip("gem.tools.search_tool").SearchTool(search_url=f"{url}/retrieve", topk=2, timeout=5)
    valid, has_error, observation, action = tool.execute_action("I look it up. <search>Brightkiln</search> and more")
    assert valid and not has_error and action.endswith("</search>")
    assert f'Doc 1(Title: "Brightkiln") {GLASS}' in observation and 'Doc 2(Title: "Vesna Oll")' in observation
    valid, has_error, observation, _ = tool.execute_action("<search></search>")
    assert valid and not has_error and "<information></information>" in observation
