"""Which corpus a run searches: its SHA-256, for meta.json, and a line where a resume or an evaluation finds another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium

from agentrl.runs.files import read_json
from agentrl.runs.read import META

CORPUS = "corpus"  # the key in meta.json


def corpus_of(make_env: Callable[[], gymnasium.Env[str, str]]) -> dict[str, Any]:
    """{"corpus": {"sha256", "passages"}} of what the environments search; {} where nothing does, or does not say.

    The hash is that of the passages' lines in their order, as an index's manifest has it; a server's /health tells it.
    """
    env = make_env()
    searcher = getattr(env.unwrapped, "searcher", None)
    env.close()
    describe = getattr(searcher, "describe", None)
    told = describe() if callable(describe) else {}
    if not isinstance(told, dict) or not isinstance(told.get(CORPUS), str):
        return {}
    return {CORPUS: {"sha256": told[CORPUS], "passages": told.get("passages")}}


def changed_corpus(make_env: Callable[[], gymnasium.Env[str, str]], run_dir: Path) -> list[str]:
    """A line where the corpus is not the one that the run in `run_dir` began with."""
    noted, now = read_json(run_dir / META).get(CORPUS), corpus_of(make_env).get(CORPUS)
    if not isinstance(noted, dict) or now is None or noted.get("sha256") in (None, now["sha256"]):
        return []
    before, after = (f"{c.get('passages')} passages, SHA-256 {c['sha256'][:12]}" for c in (noted, now))
    return [
        f"the corpus is not the one that {run_dir} began with ({before}; now {after}): what it measures from here on "
        "is not comparable"
    ]
