"""A real OpenEnv server: python -m tests.peers.openenv_server [SECONDS of a step]. Prints the url; ends with stdin."""

import asyncio
import os
import socket
import sys
import threading
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

ROWS = {"train": ["1+1", "2+2", "3+3"], "test": [f"{n}+{n}" for n in range(700)]}


class Said(Action):
    message: str


class Seen(Observation):
    text: str = ""
    turn: int = 0


class Sums(Environment[Said, Seen, State]):
    """The sum of a task is to be said; three turns at most."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    seconds = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._state, self._sum = State(), 0

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str = "train",
        index: int | None = None,
        **_: Any,
    ) -> Seen:
        rows = ROWS[split]
        task = rows[(seed or 0) % len(rows) if index is None else index]
        self._state = State(episode_id=episode_id, step_count=0)
        self._sum = sum(map(int, task.split("+")))
        return Seen(text=f"{task}?")

    async def step_async(self, action: Said, timeout_s: float | None = None, **_: Any) -> Seen:
        await asyncio.sleep(self.seconds)
        return self.step(action)

    def step(self, action: Said, timeout_s: float | None = None, **_: Any) -> Seen:
        self._state.step_count += 1
        turn = self._state.step_count
        if action.message == "raise":
            raise RuntimeError("the tool broke")
        right = action.message == str(self._sum)
        said, done = "" if right else "no", right or turn >= 3
        return Seen(text=said, turn=turn, done=done, reward=float(right), metadata={"correct": right})

    @property
    def state(self) -> State:
        return self._state

    def list_splits(self) -> list[str]:
        return list(ROWS)

    def list_tasks(self, split: str) -> list[Any]:
        return self.get_task_range(split)

    def num_tasks(self, split: str) -> int:
        return len(ROWS[split])

    def get_task(self, split: str, index: int) -> Any:
        return {"question": ROWS[split][index]}

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[Any]:
        return [{"question": q} for q in ROWS[split][start:stop]]


def end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    Sums.seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    app = create_fastapi_app(Sums, Said, Seen, max_concurrent_envs=600)
    listener = socket.create_server(("127.0.0.1", 0), backlog=600)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
