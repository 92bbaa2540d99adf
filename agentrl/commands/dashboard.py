"""`agentrl dashboard [RUNS_DIR]`: the local web page over a folder of runs."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("runs_dir", nargs="?", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--host", default="127.0.0.1", help="another than this machine needs AGENTRL_DASHBOARD_TOKEN")
    parser.add_argument("--port", type=int, default=8321, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name it is reached under (proxies)"
    )
    parser.add_argument(
        "--root-path", default="", metavar="/PATH", help="the path under which a proxy shows it (JupyterHub, ingress)"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    import webbrowser
    from contextlib import suppress
    from urllib.parse import quote

    from agentrl.dashboard.access import TOKEN_VARIABLE, is_loopback
    from agentrl.dashboard.server import serve

    folder: Path = args.runs_dir.expanduser()
    page = ""
    if (folder / "status.json").is_file() or (folder / "config.yaml").is_file():  # a run: show it, among its siblings
        folder = folder.resolve()
        folder, page = folder.parent, f"run?run={quote(folder.name)}"

    def ready(url: str) -> None:
        print(f"dashboard: {url}{page} over {folder} (Ctrl-C ends it)", flush=True)
        if args.root_path:
            print(f"behind a proxy: {args.root_path.rstrip('/')}/{page}", flush=True)
        if not is_loopback(args.host):
            once = f"/?token=... with the value of {TOKEN_VARIABLE}"
            print(f"open it once as {once}; the connection itself is not encrypted", flush=True)
        if args.open:
            webbrowser.open(url + page)

    with suppress(KeyboardInterrupt):
        serve(folder, args.host, args.port, args.allow_host, root_path=args.root_path, ready=ready)
    return 0
