"""verifiers v1's `traces.jsonl`, also as prime-rl writes it: rollouts/step_N/{train,eval}/{all,effective}/traces.jsonl.

A line is an episode with the traces of its agents; a trace is a graph of messages, of which each path from a root to a
leaf (a branch) becomes a row. Messages carry token ids where the client renders them itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agentrl.runs.others.base import (
    NO,
    SURE,
    Rollout,
    RolloutSource,
    Row,
    Words,
    answers,
    ints,
    json_objects,
    message_text,
    number,
    prompt_of_messages,
    row_of,
    turn,
    whole,
)  # fmt: skip

_PATH = re.compile(r"step_(\d{1,12})/(train|eval)/")
LIMITS = ("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "context_length")


class Verifiers(RolloutSource):
    """See the module."""

    folder_is_step = True

    @classmethod
    def recognises(cls, path: Path, first: Row | None) -> int:
        """See the base."""
        if first is None:
            return NO
        trace = first if "nodes" in first else next(iter(_list(first.get("traces"))), None)
        if isinstance(trace, Mapping) and isinstance(trace.get("nodes"), list) and "task" in trace:
            return SURE
        return SURE if {"traces", "task", "env"} <= first.keys() else NO  # an episode that failed before any trace

    def rollouts(self) -> Iterator[Rollout]:
        """See the base. Where prime-rl wrote `effective` beside `all`, it is read, and of `all` what is not in it."""
        seen = _ids(self.path.parent.parent / "effective" / self.path.name) if self.path.parent.name == "all" else set()
        for i, row in enumerate(self.objects()):
            episode = row if "traces" in row else {"traces": [row], "id": row.get("id", i)}
            if str(episode.get("id")) in seen:
                continue
            traces = [t for t in _list(episode.get("traces")) if isinstance(t, Mapping)]
            kind, step = self._when(episode)
            if not traces and not _list(episode.get("errors")):
                self.problem("episodes without a trace")
            elif not traces:
                yield Rollout(kind, step, self._failed(episode, i))
            for trace in traces:
                yield from self._branches(kind, step, episode, trace)

    def _when(self, episode: Mapping[str, Any]) -> tuple[str, int]:
        """What the path says, else the episode's run, else an evaluation after no step."""
        if m := _PATH.search(self.path.as_posix()):
            return ("eval" if m[2] == "eval" else "step"), int(m[1])
        run = _dict(episode.get("run"))
        work = _dict(run.get("work"))
        step = whole(work.get("step"))
        return ("step" if work.get("type") == "train" else "eval"), 0 if step is None else step

    def _branches(
        self, kind: str, step: int, episode: Mapping[str, Any], trace: Mapping[str, Any]
    ) -> Iterator[Rollout]:
        nodes = [n if isinstance(n, Mapping) else {} for n in _list(trace.get("nodes"))]
        parents = {n.get("parent") for n in nodes}
        leaves = [i for i in range(len(nodes)) if i not in parents]
        if not leaves:
            self.problem("traces without messages")
        for b, leaf in enumerate(leaves):
            path = _path(nodes, leaf)
            if path is None:
                self.problem("traces whose messages are no tree")
            else:
                name = str(trace.get("id", "?")) + (f"/{b}" if len(leaves) > 1 else "")
                yield Rollout(kind, step, self._row(name, episode, trace, [nodes[i] for i in path]))

    def _row(self, name: str, episode: Mapping[str, Any], trace: Mapping[str, Any], nodes: list[Any]) -> Row:
        first = next((i for i, n in enumerate(nodes) if n.get("sampled")), len(nodes))
        question, system, prompt = prompt_of_messages([n.get("message") for n in nodes[:first]])
        task = _dict(trace.get("task"))
        data = _dict(task.get("data"))
        errors = [_dict(e) for e in _list(trace.get("errors"))]
        calls = [_dict(c) for c in _list(trace.get("calls"))]
        cut = bool(calls and calls[-1].get("finish_reason") == "length") or trace.get("stop_condition") in LIMITS
        error = f"{errors[-1].get('type')}: {errors[-1].get('message')}" if errors and not trace.get("ok") else None
        group = _dict(episode.get("group")).get("id")
        policy = _dict(_dict(_dict(episode.get("run")).get("work")).get("policy"))
        return row_of(
            name,
            str(group if group is not None else task.get("key") or task.get("hash") or name),
            _turns(nodes, self.words),
            reward=_reward(trace),
            question=question,
            system=system,
            prompt=prompt,
            expected=answers(data),
            env_id=str(_dict(episode.get("env")).get("id") or ""),
            policy_version=whole(policy.get("start")),
            truncated=cut,
            error=error,
            extras={"agent": _dict(trace.get("agent")).get("name"), "metrics": trace.get("metrics")},
        )

    def _failed(self, episode: Mapping[str, Any], i: int) -> Row:
        last = _dict(_list(episode.get("errors"))[-1])
        data = _dict(_dict(episode.get("task")).get("data"))
        question = str(data.get("prompt") or "")
        name = str(episode.get("id", i))
        return row_of(name, name, [], question=question, error=f"{last.get('type')}: {last.get('message')}")


def _turns(nodes: list[Any], words: Words) -> list[Row]:
    """The nodes of a branch as turns: what a model sampled is an action, what is not its context."""
    out: list[Row] = []
    before: list[int] = []
    for node in nodes:
        ids, text = ints(node.get("token_ids")) or [], message_text(node.get("message"))
        if not node.get("sampled"):
            before += ids
            if out:
                out[-1]["observation"] += ("\n" if out[-1]["observation"] else "") + text
            continue
        one, mask = turn(text), _list(node.get("mask"))
        if ids and len(mask) == len(ids):
            scaffold = [i for i, m in zip(ids, mask, strict=True) if not m]
            action = [i for i, m in zip(ids, mask, strict=True) if m]
            one |= {"prompt_ids": before + scaffold, "action_ids": action}
            one |= {"prompt_tokens": words.tokens(before + scaffold), "action_tokens": words.tokens(action)}
            for name, column in (("logprobs", "logprobs"), ("advantages", "advantages")):
                values = _list(node.get(column))
                if action and len(values) == len(action):
                    one[name] = [number(v) for v in values]
        before = []
        out.append(one)
    return out


def _reward(trace: Mapping[str, Any]) -> float | None:
    """The weighted sum, or None where nothing was scored."""
    parts = [_dict(r) for r in _dict(trace.get("rewards")).values() if isinstance(r, Mapping)]
    scores = [(number(r.get("score")), number(r.get("weight", 1.0))) for r in parts]
    known = [s * w for s, w in scores if s is not None and w is not None]
    return sum(known) if known else None


def _path(nodes: list[Any], leaf: int) -> list[int] | None:
    """Node numbers from the root to `leaf`; None where a parent is none."""
    path: list[int] = []
    at: Any = leaf
    while at is not None:
        if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < len(nodes) or len(path) > len(nodes):
            return None
        path.append(at)
        at = nodes[at].get("parent")
    return path[::-1]


def _ids(path: Path) -> set[str]:
    """The ids of the episodes in a file; empty where there is none."""
    if not path.is_file():
        return set()
    return {str(row["id"]) for row in json_objects(path, lambda _: None) if "id" in row}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
