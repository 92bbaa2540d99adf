"""The dashboard behind a real nginx that shows it under a path, with and without taking the path off."""

import shutil
import socket
import subprocess
import time
from urllib.request import urlopen

import httpx
import pytest

from agentrl.dashboard.access import checked_prefix
from agentrl.dashboard.server import create_app
from agentrl.errors import AgentRLError
from agentrl.runs.log import RunLog
from agentrl.runs.read import read_alarms
from tests.dashboard.conftest import serving
from tests.dashboard.runs import append_rows, make_run
from tests.dashboard.test_browser import PATIENT, row, until, url_of

TOKEN = "a-token-of-some-length"
HUB = "/user/ann@example.org/proxy/8321"

CONFIG = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port};
    location {hub}/ {{ proxy_pass {server}/; }}
    location /whole/ {{ proxy_pass {server}; proxy_set_header Host $http_host; }}
  }}
}}
"""


@pytest.fixture
def proxied(tmp_path):
    """`proxied(server)` is the address of an nginx: under HUB it takes the path off, under /whole it does not."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx (apt-get install nginx-light)")
    started = []

    def start(server):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        folder = tmp_path / "nginx"
        folder.mkdir()
        (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=port, server=server, hub=HUB))
        command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return f"http://127.0.0.1:{port}"
            except OSError:
                assert started[0].poll() is None and time.monotonic() < end, started[0].communicate()
                time.sleep(0.05)

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(
    ("path", "arguments"), [(HUB, []), (HUB, ["--root-path", HUB]), ("/whole", ["--root-path", "/whole/"])]
)
def test_pages_links_acknowledging_and_the_live_stream(page, proxied, tmp_path, path, arguments):
    run = make_run(tmp_path / "runs", "a", steps=30, every=10)
    make_run(tmp_path / "runs", "b", steps=12, every=0)
    outside = []
    with serving(tmp_path / "runs", *arguments, "--allow-host", "127.0.0.1") as server:
        site = proxied(server)
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith((f"{site}{path}/", "data:", "blob:", "about:")) else outside.append(r.url)
            ),
        )
        page.on("response", lambda r: None if r.status < 400 else outside.append(f"{r.status} {r.url}"))
        page.goto(f"{site}{path}/")
        page.get_by_role("link", name="a", exact=True).click()
        page.wait_for_selector(".chart canvas", timeout=PATIENT)
        assert page.url == url_of(f"{site}{path}", run="a")
        with RunLog.open(run) as log:
            log.set_status("running", step=30, steps=40)
            page.wait_for_selector("#live[data-state=live]", timeout=PATIENT)
            append_rows(run, [row(30), row(31)])
            until(page, "document.querySelector('section.chart').chart.lines[0].store.length === 32")
        alarm = read_alarms(run)[0]
        page.goto(url_of(f"{site}{path}", run="a", alarm=alarm["id"]))
        page.get_by_role("button", name="Acknowledge", exact=True).first.click()
        end = time.monotonic() + 20
        while not read_alarms(run)[0]["acknowledged"]:
            assert time.monotonic() < end
            page.wait_for_timeout(100)
        page.keyboard.press("h")
        page.wait_for_selector("tbody tr", timeout=PATIENT)
        assert page.url == f"{site}{path}/"
        page.goto(url_of(f"{site}{path}", "/compare", runs="a,b"))
        page.wait_for_selector(".chart canvas", timeout=PATIENT)
        page.goto("about:blank")  # before the server ends
    assert outside == []


@pytest.mark.parametrize("path", [HUB, "/whole"])
def test_the_token_works_and_stays_under_the_path(proxied, tmp_path, path):
    make_run(tmp_path / "runs", "a", steps=3, every=0)
    with serving(tmp_path / "runs", "--root-path", path, AGENTRL_DASHBOARD_TOKEN=TOKEN) as server:
        site = proxied(server)
        with httpx.Client(follow_redirects=True, trust_env=False) as client:
            assert client.get(f"{site}{path}/run?run=a").status_code == 401
            page = client.get(f"{site}{path}/run?run=a&token={TOKEN}")
            assert (page.status_code, str(page.url)) == (200, f"{site}{path}/run?run=a")
            assert [c.path for c in client.cookies.jar] == [path]
            assert client.get(f"{site}{path}/?token={TOKEN}").url.path == f"{path}/"
            assert client.get(f"{site}{path}").url.path == f"{path}/"  # the bare path leads to the page


def test_a_stream_passes_a_proxy_at_once(proxied, tmp_path):
    """Buffered by the proxy, the first event would come only with the end."""
    make_run(tmp_path / "runs", "a", steps=3, every=0)
    with serving(tmp_path / "runs") as server:
        address = f"{proxied(server)}{HUB}/api/events?run=a&after="
        with urlopen(address, timeout=20) as response:
            assert response.readline() == b"retry: 1000\n"


@pytest.mark.parametrize(
    "text", ["no-slash", "//evil.example", "/a b", "/a?b", "/é", "https://x/y", "/run", "/api/x", "/static"]
)
def test_what_is_no_path_is_refused(tmp_path, text):
    with pytest.raises(AgentRLError, match="--root-path"):
        create_app(tmp_path, root_path=text)


def test_prefixes():
    own = ["/", "/run", "/api/runs"]
    assert checked_prefix("", own) == checked_prefix("/", own) == ""
    assert checked_prefix("/runs/x/", own) == "/runs/x" and checked_prefix(HUB, own) == HUB


def test_an_allowed_name_may_be_the_origin(tmp_path):
    """A proxy that sends its own Host: the browser's Origin is the site's name."""
    from starlette.testclient import TestClient

    make_run(tmp_path, "a", steps=12, every=0)
    body, headers = {"run": "a", "id": "x"}, {"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}
    hub = ("hub.example.org",)
    for hosts, origin, status in [
        ((), "https://hub.example.org", 403),
        (hub, "https://hub.example.org", 422),  # let in, and told that there is no such alarm
        (hub, "https://hub.example.org.evil", 403),
        (hub, "null", 403),
    ]:
        client = TestClient(create_app(tmp_path, hosts=hosts), base_url="http://127.0.0.1:8321")
        assert client.post("/api/acknowledge", json=body, headers=headers | {"Origin": origin}).status_code == status
