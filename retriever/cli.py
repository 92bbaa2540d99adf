"""`retriever build | serve | query`, mounted as `agentrl retriever …` and run alone by `python -m agentrl.retriever`.

Imports nothing but argparse at load, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.retriever.base import Hit

_SHOWN_CHARS = 300  # of a passage, for people


def add_arguments(subparsers: Any) -> None:
    """Add the parsers of the three commands to `subparsers`; each sets `run`: `Namespace → exit code`.

    `subparsers` is what `ArgumentParser.add_subparsers()` returns.
    """
    parser = subparsers.add_parser("build", help="index a corpus", description="Index a corpus for BM25 search.")
    parser.add_argument("corpus", help='JSONL (or .jsonl.gz) of {"id", "contents"} or {"id", "title", "text"}')
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--force", action="store_true", help="replace an index that is there")
    parser.add_argument("--no-stemming", action="store_true", help="index words as they are: for other languages")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    parser.set_defaults(
        run=_guarded(lambda a: build(a.corpus, a.out, force=a.force, stemming=not a.no_stemming, as_json=a.json))
    )

    parser = subparsers.add_parser(
        "serve",
        help="serve an index over HTTP",
        description="Serve an index in Search-R1's wire format: POST /retrieve, GET /health. An address other machines "
        "can reach needs a secret in AGENTRL_RETRIEVER_TOKEN, for the server and its clients.",
    )
    parser.add_argument("index", help="folder written by `build`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--topk", type=int, default=3, help="passages where a request names no number (default: 3)")
    parser.set_defaults(run=_guarded(lambda a: serve(a.index, host=a.host, port=a.port, topk=a.topk)))

    parser = subparsers.add_parser("query", help="search an index or a server", description="Print what is found.")
    parser.add_argument("query", nargs="+", help="one or more queries; quote each")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--index", help="folder written by `build`")
    where.add_argument("--url", help="of a running server, for example http://127.0.0.1:8000")
    parser.add_argument("-k", "--topk", type=int, default=3, help="passages for each query (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each query")
    parser.set_defaults(run=_guarded(lambda a: query(a.query, a.index or a.url, topk=a.topk, as_json=a.json)))


def build(corpus: str, out: str, *, force: bool = False, stemming: bool = True, as_json: bool = False) -> None:
    """Index the file `corpus` into the folder `out`, with a progress line on stderr."""
    from agentrl.retriever.bm25 import build_index
    from agentrl.retriever.corpus import CorpusReader

    reader = CorpusReader(corpus)
    progress = _Progress(reader)
    try:
        count = build_index(reader, out, overwrite=force, stemming=stemming, progress=progress)
    finally:
        progress.end()
    seconds = time.monotonic() - progress.begun
    if as_json:
        print(json.dumps({"index": out, "passages": count, "seconds": round(seconds, 3)}))
    else:
        print(f"{count:,} passages indexed in {seconds:.1f} s: {out}")
        print(f'next: agentrl retriever query --index {out} "your question"')


def serve(index: str, *, host: str = "127.0.0.1", port: int = 8000, topk: int = 3) -> None:
    """Serve the folder `index` until interrupted."""
    from agentrl.retriever.errors import BadQuery
    from agentrl.retriever.server import Limits
    from agentrl.retriever.server import serve as run_server

    if not 1 <= topk <= Limits.max_topk:
        raise BadQuery(f"--topk {topk}: must be between 1 and {Limits.max_topk}")
    run_server(index, host, port, limits=Limits(default_topk=topk), say=lambda line: print(line, flush=True))


def query(queries: Sequence[str], where: str, *, topk: int = 3, as_json: bool = False) -> None:
    """Search `where`, a folder or a url, and print the hits of each query."""
    from agentrl.retriever.opening import open_searcher

    for text, hits in zip(queries, open_searcher(where).search_batch(queries, topk)):
        if as_json:
            found = [{"id": p.id, "title": p.title, "text": p.text, "score": round(score, 4)} for p, score in hits]
            print(json.dumps({"query": text, "hits": found}))
        else:
            print(_for_people(text, hits))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run alone, without agentrl; returns the exit code."""
    parser = argparse.ArgumentParser(prog="retriever", description="Index, serve and search a corpus of passages.")
    add_arguments(parser.add_subparsers(required=True, metavar="COMMAND"))
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


class _Progress:
    """A line on stderr: rewritten in place on a terminal, a new one every ten seconds elsewhere."""

    def __init__(self, reader: Any) -> None:
        self.begun = self._shown_at = time.monotonic()
        self._reader = reader
        self._terminal = sys.stderr.isatty()
        self._open_line = False

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now - self._shown_at < (0.2 if self._terminal else 10.0):
            return
        self._shown_at = now
        spent, share = now - self.begun, self._reader.fraction_read
        left = f", {spent * (1 - share) / share:.0f} s left" if share else ""
        line = f"{count:,} passages ({share:.0%}), {count / spent:,.0f}/s{left}"
        print(
            f"\r{line:<70}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )
        self._open_line = self._terminal

    def end(self) -> None:
        if self._open_line:
            print(file=sys.stderr)


def _for_people(text: str, hits: Sequence[Hit]) -> str:
    lines = [_printable(text)]
    for rank, (passage, score) in enumerate(hits, start=1):
        shown = _printable(passage.text[:_SHOWN_CHARS]) + ("…" if len(passage.text) > _SHOWN_CHARS else "")
        lines += [
            f"  {rank}. {_printable(passage.title) or '(no title)'}  [{passage.id}, {score:.2f}]",
            f"     {shown}",
        ]
    return "\n".join(lines if hits else [*lines, "  nothing found"])


def _printable(text: str) -> str:
    """Passages are data from elsewhere: no line breaks, no terminal control codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def _guarded(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from agentrl.errors import MissingPackageError
        from agentrl.retriever.errors import RetrieverError

        try:
            command(arguments)
        except (RetrieverError, MissingPackageError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    return run
