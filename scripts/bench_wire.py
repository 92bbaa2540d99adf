"""Measure the wire: 256 episodes of three 100 ms calls through `agentrl/OpenEnv-v0`, beside a bare websockets client.

    python scripts/bench_wire.py --python .venv-openenv/bin/python [--episodes 256] [--rounds 7] [--json]

Both talk to one server of the real OpenEnv package, which runs in the environment of `--python` (`make test-peers`
makes it). Connections are open before the clock starts; rounds alternate, and each figure is the best of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
from websockets.asyncio.client import connect

import agentrl.envs  # noqa: F401  (registers them)

ROOT = Path(__file__).resolve().parent.parent
CALL_S, CALLS = 0.1, 3
TARGET = 1.6


async def bare_clients(url: str, episodes: int) -> list[Any]:
    """Open connections."""
    return [await connect("ws" + url.removeprefix("http") + "/ws", proxy=None) for _ in range(episodes)]


async def bare(sockets: list[Any]) -> None:
    """One episode on each connection."""

    async def play(socket: Any) -> None:
        await socket.send(json.dumps({"type": "reset", "data": {"seed": 1}}))
        json.loads(await socket.recv())
        for _ in range(CALLS):
            await socket.send(json.dumps({"type": "step", "data": {"message": "no number"}}))
            json.loads(await socket.recv())

    await asyncio.gather(*map(play, sockets))


async def ours(envs: list[Any]) -> None:
    """One episode of each environment."""

    async def play(env: Any) -> None:
        await env.areset(options={"id": "q"})
        for _ in range(CALLS):
            await env.astep("no number")

    await asyncio.gather(*map(play, envs))


async def timed(work: Any) -> tuple[float, float]:
    """Seconds on the clock, and of this process's CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    await work
    return time.perf_counter() - began, time.process_time() - cpu


async def measure(url: str, episodes: int, rounds: int) -> dict[str, float]:
    """Best seconds of either, on the clock and of the CPU, in alternating rounds."""
    sockets = await bare_clients(url, episodes)
    envs = [
        gymnasium.make("agentrl/OpenEnv-v0", disable_env_checker=True, url=url, observation="text").unwrapped
        for _ in range(episodes)
    ]
    await ours(envs)  # opens their connections
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for _ in range(rounds):
        found["bare"].append(await timed(bare(sockets)))
        found["ours"].append(await timed(ours(envs)))
    for env in envs:
        await env.aclose()
    for socket in sockets:
        await socket.close()
    best = {f"{name}_s": min(s for s, _ in rounds) for name, rounds in found.items()}
    best |= {f"{name}_cpu_s": min(cpu for _, cpu in rounds) for name, rounds in found.items()}
    return best | {"ratio": best["ours_s"] / best["bare_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv-openenv/bin/python"), help="that has openenv")
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not Path(args.python).exists():
        print(f"skipped: {args.python} is not there; `make test-peers` makes it")
        sys.exit(0)
    command = [args.python, "-m", "tests.peers.openenv_server", str(CALL_S)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None and server.stdin is not None
        figures = asyncio.run(measure(server.stdout.readline().strip(), args.episodes, args.rounds))
        server.stdin.close()
    if args.json:
        print(json.dumps(figures))
        return
    print(f"{args.episodes} episodes of {CALLS} calls of {CALL_S} s, connections open, best of {args.rounds} rounds")
    for name, label in (("bare", "a bare websockets client"), ("ours", "agentrl/OpenEnv-v0")):
        print(
            f"  {label:28} {figures[f'{name}_s']:.2f} s, of which {figures[f'{name}_cpu_s']:.2f} s CPU of this process"
        )
    print(f"  ratio on the clock           {figures['ratio']:.2f} × (target: {TARGET} ×)")


if __name__ == "__main__":
    main()
