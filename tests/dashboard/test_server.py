import gzip
import json
import os
import re

import pytest
from starlette.testclient import TestClient

from agentrl.dashboard.library import Library
from agentrl.dashboard.server import create_app
from agentrl.monitors.signals import SIGNALS
from agentrl.runs.log import RunLog
from agentrl.runs.read import read_alarms
from agentrl.types import Alarm
from tests.dashboard.runs import append_rows, config, make_run, trajectories

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def client(runs):
    return TestClient(create_app(runs), base_url="http://127.0.0.1:8321")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs"


def over(folder, **more):
    return TestClient(create_app(folder, **more), base_url="http://127.0.0.1", raise_server_exceptions=False)


# ------------------------------------------------------------------------------------------------------------- answers


def test_list(client):
    answer = client.get("/api/runs").json()
    runs = {r["id"]: r for r in answer["runs"]}
    assert set(runs) == {"collapse", "healthy", "sweep/llds"} and answer["problems"] == []
    collapse = runs["collapse"]
    assert (collapse["status"], collapse["step"], collapse["steps"]) == ("finished", 110, 110)
    assert collapse["open"]["critical"] == 1 and collapse["last_alarm"]["rule"] == "death_spiral"
    assert len(collapse["spark"]) > 20 and max(collapse["spark"]) > 0.7
    assert runs["sweep/llds"]["status"] == "failed"


def test_one_run(client):
    run = client.get("/api/run?run=collapse").json()
    assert run["columns"]["step"] == list(range(110))
    assert len(run["columns"]["reward"]) == 110
    assert [b["phase"] for b in run["bands"]][-1] == "III"
    assert {e["em"] for e in run["evals"]} == {0.21, 0.64}
    assert run["rollout_steps"]["step"][:2] == [0, 9]
    assert run["problems"] == []


def test_rows_after_a_cursor(client, folder):
    run = make_run(folder, "a", steps=5, every=0)
    one = over(folder)
    cursor = one.get("/api/metrics?run=a").json()["cursor"]
    append_rows(run, [{"step": 5, "reward": 0.5}])
    more = one.get("/api/metrics", params={"run": "a", "after": cursor}).json()
    assert more["whole"] is False and more["columns"] == {"step": [5], "reward": [0.5]}


def test_rollouts(client):
    answer = client.get("/api/rollouts?run=collapse&step=81").json()
    assert len(answer["rows"]) == 12
    failed = next(r for r in answer["rows"] if r["error"])
    assert failed["tool_error"] and failed["reward"] is None and not failed["correct"]
    first = answer["rows"][0]
    whole = client.get("/api/rollout", params={"run": "collapse", "step": 81, "sample": first["sample_id"]}).json()
    assert len(whole["turns"][0]["advantages"]) == len(whole["turns"][0]["action_tokens"])
    group = client.get("/api/group", params={"run": "collapse", "step": 81, "group": first["group_id"]}).json()["rows"]
    assert len(group) == 4 and "action_tokens" not in group[0]["turns"][0]


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("rollouts?run=collapse&step=78", 422, "stored are 0 to"),
        ("rollouts?run=collapse&step=-1", 400, "must be a number"),
        ("rollouts?run=collapse&step=٣", 400, "must be a number"),
        ("rollouts?run=collapse&step=1e9", 400, "must be a number"),
        ("rollouts?run=collapse&step=" + "9" * 40, 400, "must be a number"),
        ("rollout?run=collapse&step=81&sample=nobody", 422, "not stored"),
        ("run?run=colapse", 404, "did you mean 'collapse'"),
        ("run", 404, "is no run"),
        ("events?run=nobody", 404, "is no run"),
    ],
)
def test_errors_say_what_is_wrong(client, query, status, text):
    answer = client.get(f"/api/{query}")
    assert answer.status_code == status
    assert text in answer.json()["error"]


def test_config(client):
    answer = client.get("/api/config?run=collapse").json()
    assert answer["flat"]["rollout.group_size"] == 8 and answer["problems"] == []
    assert answer["meta"]["argv"] == ["agentrl", "train", "tiny"]


def test_acknowledge(folder):
    run = make_run(folder, "a", every=0)
    alarm = read_alarms(run)[0]["id"]
    client = over(folder)
    assert client.post("/api/acknowledge", json={"run": "a", "id": alarm}).status_code == 200
    assert read_alarms(run)[0]["acknowledged"] is True
    assert client.get("/api/run?run=a").json()["alarms"][0]["acknowledged"] is True
    client.post("/api/acknowledge", json={"run": "a", "id": alarm, "acknowledged": False})
    assert read_alarms(run)[0]["acknowledged"] is False
    wrong = client.post("/api/acknowledge", json={"run": "a", "id": "nothing"})
    assert wrong.status_code == 422 and "no alarm" in wrong.json()["error"]
    assert (
        client.post("/api/acknowledge", content="[1", headers={"Content-Type": "application/json"}).status_code == 400
    )
    assert client.post("/api/acknowledge", json=[1]).status_code == 400
    assert client.post("/api/acknowledge", json={"run": "a", "id": "x" * 70_000}).status_code == 413


# -------------------------------------------------------------------------------------------------------------- access


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:8321", "[::1]:8321", "192.168.1.7:80"])
def test_own_hosts(client, host):
    assert client.get("/api/signals", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8321", ""])
def test_foreign_hosts(client, host):
    answer = client.get("/api/runs", headers={"Host": host})
    assert answer.status_code == 421 and "root" not in answer.json()


def test_a_named_host_is_allowed(runs):
    client = over(runs, hosts=["Train.example"])
    assert client.get("/api/runs", headers={"Host": "train.example"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
)
def test_other_sites_get_nothing(client, headers):
    answer = client.get("/api/runs", headers=headers)
    assert answer.status_code == 403 and "root" not in answer.json()


def test_own_origin_and_links_from_elsewhere_are_fine(client):
    assert client.get("/api/runs", headers={"Origin": "http://127.0.0.1:8321"}).status_code == 200
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_cannot_post(client, kind):
    answer = client.post("/api/acknowledge", content=b'{"run": "collapse"}', headers={"Content-Type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/js/main.js", "/nowhere", "/api/run?run=x", "/metrics"])
def test_headers_on_every_answer(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


def test_token(runs):
    client = over(runs, token=TOKEN)
    for path in ("/", "/api/runs", "/metrics", "/static/js/main.js", "/?token=wrong", "/?token="):
        assert client.get(path).status_code == 401, path
    assert client.get("/api/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/api/runs", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
    assert client.get("/api/runs", headers={"Cookie": "agentrl_token=no; broken"}).status_code == 401
    login = client.get(f"/run?run=collapse&token={TOKEN}", follow_redirects=False)
    assert login.status_code == 303 and login.headers["location"] == "./run?run=collapse"
    cookie = login.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/api/runs").status_code == 200  # the cookie
    sideways = over(runs, token=TOKEN).get(f"//evil.example/?token={TOKEN}", follow_redirects=False)
    assert sideways.headers.get("location", "./").startswith("./")


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "run",
    [
        *("..", ".", "../secret", "collapse/..", "collapse/../..", "/etc", "//etc", "a\0b", "collapse\0", "\\..\\x"),
        *("collapse/rollouts", "collapse/", "sweep", "x" * 5000, "sweep/llds/rollouts", "%2e%2e/secret", "~"),
    ],
)
def test_no_way_out_of_the_folder(tmp_path, run):
    make_run(tmp_path, "secret", steps=3, every=0)
    make_run(tmp_path / "runs", "collapse", steps=3, every=0)
    make_run(tmp_path / "runs" / "sweep", "llds", steps=3, every=0)
    client = over(tmp_path / "runs")
    for what in ("run", "metrics", "config", "events", "report", "rollouts"):
        assert client.get(f"/api/{what}", params={"run": run, "step": 0}).status_code == 404
    assert client.post("/api/acknowledge", json={"run": run, "id": "x"}).status_code == 404


@pytest.mark.parametrize(
    "name", ["../../../pyproject.toml", "%2e%2e/%2e%2e/server.py", "..%5c..%5cserver.py", "/etc/passwd"]
)
def test_static_files_stay_static(client, name):
    assert client.get(f"/static/{name}").status_code in (404, 405)


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside = make_run(tmp_path, "outside", steps=3)
    runs = tmp_path / "runs"
    make_run(runs, "inside", steps=3)
    make_run(runs, "files", steps=3)
    os.symlink(outside, runs / "linked")
    os.symlink(runs / "inside", runs / "alias")  # within the folder: fine
    (runs / "files" / "metrics.jsonl").unlink()
    os.symlink(outside / "metrics.jsonl", runs / "files" / "metrics.jsonl")
    (runs / "inside" / "rollouts" / "step-000000.jsonl.gz").unlink()
    os.symlink(outside / "rollouts" / "step-000000.jsonl.gz", runs / "inside" / "rollouts" / "step-000000.jsonl.gz")
    client = over(runs)
    answer = client.get("/api/runs").json()
    assert {r["id"] for r in answer["runs"]} == {"inside", "alias"}
    assert len(answer["problems"]) == 2
    answer = client.get("/api/run?run=linked")
    assert answer.status_code == 404 and "linked is a link to somewhere outside" in answer.json()["error"]
    assert "outside" in client.get("/api/metrics?run=files").json()["error"]
    assert client.get("/api/rollouts?run=inside&step=0").status_code == 404


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("status.json", b"", "status.json is damaged"),
        ("status.json", b'{"status": "runn', "status.json is damaged"),
        ("status.json", b"[]", "status.json is damaged"),
        ("meta.json", None, "meta.json is missing"),
        ("metrics.jsonl", None, None),
        ("metrics.jsonl", b"", None),
        ("metrics.jsonl", b'{"step": 0, "reward": 0.5}\n{"step": 1, "rew', "not written whole"),
        ("metrics.jsonl", b'{"step": 0}\n\xff\xfe garbage\n{"step": 1}\n', "1 lines of metrics.jsonl are torn"),
        ("metrics.jsonl", b'{"step": 0, "reward": NaN, "loss": Infinity, "time": "soon"}\n', None),
        ("metrics.jsonl", b"\0" * 5000, "not written whole"),
        ("alarms.jsonl", b'{"id": "x"}\n{"rule": 3}\n{"rule": "collapse", "id": 4, "step": "x"}\n', None),
        ("evals.jsonl", b'{"em": 1}\n5\n', None),
        ("config.yaml", b"a: [1, 2\n", None),
        ("config.yaml", b"\xff\xfe\x00", None),
        ("config.yaml", None, "config.yaml is missing"),
    ],
)
def test_damaged_runs_stay_readable(folder, file, content, says):
    run = make_run(folder, "a", steps=3)
    make_run(folder, "b", steps=3)
    (run / file).unlink() if content is None else (run / file).write_bytes(content)
    client = over(folder)
    answer = client.get("/api/runs")
    assert {r["id"] for r in answer.json()["runs"]} == {"a", "b"}
    one = client.get("/api/run?run=a")
    assert one.status_code == 200
    assert says is None or any(says in p for p in one.json()["problems"]), one.json()["problems"]
    for path in ("/api/config?run=a", "/api/metrics?run=a", "/api/report?run=a", "/metrics"):
        assert client.get(path).status_code == 200, path
    json.loads(one.content, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "alarms.jsonl"])
def test_a_pipe_is_not_waited_for(folder, name):
    run = make_run(folder, "a", steps=3, every=0)
    make_run(folder, "b", steps=3, every=0)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    answer = over(folder).get("/api/runs").json()
    assert [r["id"] for r in answer["runs"]] == ["b"]
    assert answer["problems"] == [f"a: its {name} is no file and is not read"]
    assert over(folder).get("/api/run?run=a").status_code == 404


def test_what_may_not_be_read_is_said(folder, monkeypatch):
    make_run(folder, "a", steps=3, every=0)
    monkeypatch.setattr(Library, "steps", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied", "rollouts")))
    answer = over(folder).get("/api/run?run=a")
    assert answer.status_code == 422 and "cannot be read" in answer.json()["error"]


def test_odd_types_in_a_row_do_not_hide_the_other_runs(folder):
    run = make_run(folder, "a", steps=3)
    make_run(folder, "b", steps=3)
    (run / "status.json").write_text('{"status": 7, "step": "x", "steps": [], "updated": "y"}')
    (run / "metrics.jsonl").write_text('{"step": "x", "time": "y"}\n')
    answer = over(folder).get("/api/runs").json()
    assert "b" in {r["id"] for r in answer["runs"]}
    assert {r["id"] for r in answer["runs"]} | {p.split(":")[0] for p in answer["problems"]} == {"a", "b"}
    assert over(folder).get("/metrics").status_code == 200


def test_damaged_rollouts_are_said_to_be(folder):
    run = make_run(folder, "a", steps=3)
    file = run / "rollouts" / "step-000000.jsonl.gz"
    file.write_bytes(file.read_bytes()[:200])
    answer = over(folder).get("/api/rollouts?run=a&step=0")
    assert answer.status_code == 422 and "damaged" in answer.json()["error"]
    file.write_bytes(gzip.compress(b'{"sample_id": 1, "turns": 5}\n{"turns": [null, {"info": 3}]}\n{}\n'))
    rows = over(folder).get("/api/rollouts?run=a&step=0").json()["rows"]
    assert len(rows) == 3 and rows[0]["turns"] == 0


def test_a_config_of_another_version_is_shown(folder):
    run = make_run(folder, "a", steps=3)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text + "gone: {beta: 3}\n")
    answer = over(folder).get("/api/config?run=a").json()
    assert answer["flat"]["gone.beta"] == 3
    assert len(answer["problems"]) == 1 and "gone" in answer["problems"][0]


def test_a_config_leads_nowhere_else(folder, tmp_path):
    run = make_run(folder, "a", steps=3)
    (tmp_path / "secret.yaml").write_text("password: hunter2\n")
    (run / "config.yaml").write_text(f"extends: {tmp_path / 'secret.yaml'}\nname: x\n")
    assert "hunter2" not in over(folder).get("/api/config?run=a").text


def test_a_config_that_unfolds_without_end_is_refused(folder):
    run = make_run(folder, "a", steps=3)
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40)]
    (run / "config.yaml").write_text("\n".join(lines))
    answer = over(folder).get("/api/config?run=a").json()
    assert any("5 000 keys" in p for p in answer["problems"])


def test_runs_of_one_name_are_told_apart(folder):
    for place in (folder, folder / "one", folder / "two"):
        make_run(place, "same", steps=3, config_=config("same"))
    assert {r["id"] for r in over(folder).get("/api/runs").json()["runs"]} == {"same", "one/same", "two/same"}


def test_a_missing_folder_has_no_runs(folder):
    assert over(folder).get("/api/runs").json()["runs"] == []


def test_a_bug_is_an_answer_without_a_trace(folder, monkeypatch):
    monkeypatch.setattr("agentrl.dashboard.library.Library.list_runs", lambda self: 1 / 0)
    answer = over(folder).get("/api/runs")
    assert answer.status_code == 500 and answer.json()["error"].startswith("ZeroDivisionError")
    assert "Traceback" not in answer.text


# -------------------------------------------------------------------------------------------------- Prometheus, Grafana

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)*)\})? (NaN|[+-]Inf|-?[0-9.e+-]+)')


def samples(text):
    """{(name, labels): value}; fails on a line that is none of the text format."""
    out = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            out[match[1], match[2] or ""] = float(match[3])
    return out


def test_prometheus(folder):
    with RunLog.create(folder, 'odd "name', config()) as log:
        append_rows(log.path, [{"step": 6, "time": 2e9, "reward": 0.25, "loss": None, "nonfinite": ["loss"]}])
        text = over(folder).get("/metrics").text
    found = samples(text)
    label = r'run="odd \"name"'
    assert found["agentrl_reward", label] == 0.25
    assert found["agentrl_loss", label] != found["agentrl_loss", label]  # NaN
    assert found["agentrl_run_step", label] == 7
    assert found["agentrl_run_status", label + ',status="running"'] == 1
    assert ("agentrl_entropy", label) not in found  # not measured
    assert text.count("# TYPE agentrl_reward gauge") == 1


def test_the_resume_command_of_a_moved_run_names_its_present_place(folder, tmp_path):
    run = make_run(folder, "here", steps=3, status="stopped")
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    row = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(row | {"resume": f"agentrl resume {run}"}))  # an older version's
    client = over(folder)
    assert client.get("/api/run?run=here").json()["state"]["resume"] == f"agentrl resume {run}"
    (folder / "sweep").mkdir()
    run.rename(folder / "sweep" / "there")
    wanted = f"agentrl resume {folder / 'sweep' / 'there'}"
    assert client.get("/api/run?run=sweep/there").json()["state"]["resume"] == wanted
    lines = {r["id"]: r["resume"] for r in client.get("/api/runs").json()["runs"]}
    assert lines["sweep/there"] == wanted
    assert wanted in client.get("/api/report?run=sweep/there").text


def test_prometheus_counts_alarms_by_cause(folder):
    with RunLog.create(folder, "x", config()) as log:
        append_rows(log.path, [{"step": 6, "time": 2e9, "reward": 0.25}])
        for i, story in enumerate(["length explosion", "length explosion", ""]):
            log.alarm(Alarm(f"r-{i}", i, "r", "warn", "m", story=story))
        found = samples(over(folder).get("/metrics").text)
    by_cause = {labels: n for (name, labels), n in found.items() if name == "agentrl_run_alarms_by_cause"}
    assert by_cause == {'run="x",level="warn",cause="length explosion"': 2}


def test_old_runs_leave_the_scrape(folder):
    make_run(folder, "old", steps=3)  # its last row is from long ago
    found = samples(over(folder).get("/metrics").text)
    assert not any('run="old"' in labels for _, labels in found)


def test_grafana_asks_for_metrics_that_exist(client, folder):
    with RunLog.create(folder, "all", config()) as log:
        append_rows(log.path, [{"step": 1, "time": 2e9} | dict.fromkeys(SIGNALS, 0.5)])
        names = {name for name, _ in samples(over(folder).get("/metrics").text)}
    board = client.get("/grafana.json").json()
    asked = {m for p in board["panels"] for t in p["targets"] for m in re.findall(r"agentrl_\w+", t["expr"])}
    assert len(asked) > 10 and asked <= names


def test_report_is_one_file_without_scripts(client):
    answer = client.get("/api/report?run=collapse")
    assert 'filename="collapse.html"' in answer.headers["content-disposition"]
    text = answer.text
    assert "<script" not in text and "src=" not in text and "url(" not in text and "@import" not in text
    assert text.count("<svg") >= 8 and "death_spiral-000100-warn" in text
    assert "default-src 'none'" in text


def test_report_escapes_everything(folder):
    run = make_run(folder, "a", steps=20, every=0)
    evil = "</pre></style></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    with RunLog.open(run) as log:
        log.write_rollouts(0, list(trajectories(0, evil)))
        log.evaluation({"step": 1, "split": evil, evil: 2})
        log.set_status("failed", message=evil)
    with (run / "alarms.jsonl").open("a") as file:
        alarm = {"id": evil, "step": 0, "rule": evil, "level": evil, "message": evil, "remedy": evil}
        file.write(json.dumps(alarm | {"signals": {evil: {"value": evil}}, "groups": [evil]}) + "\n")
    (run / "config.yaml").write_text(evil)
    text = over(folder).get("/api/report?run=a").text
    assert "<script" not in text and "<img" not in text and "onerror=alert(1)&gt;" in text
