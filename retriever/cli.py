"""`retriever build | serve | query | verify`: `agentrl retriever …`, and alone `python -m agentrl.retriever`.

Imports nothing but argparse at load, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.retriever.base import Hit

_SHOWN_CHARS = 300  # of a passage, for people
_SKIPPED_SHARE = 0.01


def add_arguments(subparsers: Any) -> None:
    """Add the parsers of the commands to `subparsers`; each sets `run`: `Namespace → exit code`.

    `subparsers` is what `ArgumentParser.add_subparsers()` returns.
    """
    _add_build(subparsers)
    _add_serve(subparsers)
    _add_query(subparsers)
    _add_cluster(subparsers)
    parser = subparsers.add_parser("verify", help="check every file of an index", description="Compare all hashes.")
    parser.add_argument("index", help="folder written by `build`")
    parser.set_defaults(run=_guarded(lambda a: verify(a.index)))


def _add_build(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "build",
        help="index a corpus",
        description="Index a corpus: for words (BM25), for meaning (with --encoder), or for both (--kind hybrid).",
    )
    parser.add_argument(
        "corpus", help='JSONL (plain or .gz) or Parquet of {"id", "contents"} or {"id", "title", "text"}'
    )
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--kind", help="bm25, flat, pq, hnsw, ivf-pq, hybrid, qdrant or a plug-in (default: bm25; with "
                        "--encoder flat, above 50,000 passages pq)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an index that is there")
    parser.add_argument("--no-stemming", action="store_true", help="index words as they are: for other languages")
    parser.add_argument("--skip-bad", nargs="?", type=float, const=_SKIPPED_SHARE, metavar="SHARE", help="leave "
                        "malformed rows out and count them, up to this share of all (default share: 0.01)")  # fmt: skip
    parser.add_argument("--memory", type=_bytes, default=4 << 30, metavar="SIZE", help="that the build may take, "
                        "such as 16G (default: 4G); the mapped vectors do not count")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that encode (default: all cores)")
    _add_encoder(parser)
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="only part I of N of the corpus, for `cluster`")
    parser.add_argument("--dense", metavar="KIND", help="of --kind hybrid: its dense half")
    parser.add_argument("--faiss", metavar="FILE", help="use this faiss index and the corpus where they stand; needs "
                        "--encoder, and --trust, since faiss trusts the file")  # fmt: skip
    parser.add_argument("--trust", action="store_true", help="of --faiss: you know where the file comes from")
    parser.add_argument("--url", help="of --kind qdrant: the engine; without it, local mode")
    parser.add_argument("--collection", help="of --kind qdrant")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    parser.set_defaults(run=_guarded(build))


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("encoder", "what is not given comes from the encoder's folder and its family")
    group.add_argument("--encoder", metavar="PATH_OR_ID", help="folder or Hugging Face id of a sentence encoder")
    group.add_argument("--runtime", help="onnx (default), torch or a plug-in")
    group.add_argument("--pooling", help="mean, cls or last")
    group.add_argument("--query-prefix", help='such as "query: "')
    group.add_argument("--passage-prefix", help='such as "passage: "')
    group.add_argument("--max-tokens", type=int, help="of a text; the rest is cut")
    group.add_argument("--dtype", help="fp32 (default), bf16 (torch) or int8 (onnx; it changes answers)")
    group.add_argument("--device", help="cpu (default) or cuda")


def _add_serve(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve an index over HTTP",
        description="Serve an index to the clients of Search-R1, verl, slime, skyrl-gym, GEM, rLLM and others: POST "
        "/retrieve and /access, GET /documents/ID, /health and /metrics. An address other machines can reach needs a "
        "secret in AGENTRL_RETRIEVER_TOKEN, for the server and its clients.",
    )
    add = parser.add_argument
    add("index", help="folder written by `build`")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    add("--topk", type=int, default=3, help="passages where a request names no number (default: 3)")
    add("--replicas", type=int, default=1, help="processes that share the index files (default: 1)")
    add("--threads", type=int, help="that encode, in each replica (default: all cores, shared by the replicas)")
    add("--deadline", type=float, default=30.0, metavar="S", help="of a request that names none (default: 30)")
    add("--overload-status", type=int, default=503, help="where a deadline cannot be met (default: 503)")
    add("--drain", type=float, default=30.0, metavar="S", help="to finish requests after SIGTERM (default: 30)")
    add("--max-batch", type=int, default=64, help="queries searched together at most (default: 64)")
    add("--cache", type=int, default=8_192, help="answers kept; 0 for none (default: 8192)")
    add(
        "--dialect",
        action="append",
        default=[],
        metavar="NAME",
        help="a plug-in, asked before the built-in ones",
    )
    add("--encoder", metavar="PATH_OR_ID", help="where the index's encoder is now")
    add("--trust", action="store_true", help="open files whose hashes are not the manifest's")
    add("--access-log", metavar="FILE", help="a line for each request, without its text; - for stderr")
    add("--follow-stdin", action="store_true", help="end when standard input does: for a parent process")
    add("--log-queries", action="store_true", help="with the text of the queries")
    parser.set_defaults(run=_guarded(serve))


def _add_cluster(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "cluster",
        help="serve shards of an index on a Ray cluster",
        description="Serve the shards that `build --shard I/N` wrote on the Ray cluster that RAY_ADDRESS names.",
    )
    add = parser.add_argument
    add("shards", nargs="+", help="index folders, each there on every node")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="(default: %(default)s)")
    add("--max-replicas", type=int, default=4, help="of each shard, as its load asks (default: 4)")
    add("--threads", type=int, default=1, help="CPUs of a replica, for encoding (default: 1)")
    parser.set_defaults(run=_guarded(cluster))


def _add_query(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "query",
        help="search an index or a server",
        description='Print what is found: `query INDEX "a question"`.',
        usage='%(prog)s [-h] [-k TOPK] [--json] (INDEX | --index INDEX | --url URL) "QUERY" ["QUERY" ...]',
    )
    parser.add_argument(
        "query", nargs="+", help="one or more queries, each quoted; before them the index folder or url"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--index", help="folder written by `build`")
    where.add_argument("--url", help="of a running server, for example http://127.0.0.1:8000")
    parser.add_argument("-k", "--topk", type=int, default=3, help="passages for each query (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each query")
    parser.set_defaults(run=_guarded(lambda a: query(*_where(a.query, a.index or a.url), topk=a.topk, as_json=a.json)))


def build(args: argparse.Namespace) -> None:
    """Index the file `args.corpus` into the folder `args.out`, with a progress line on stderr."""
    from agentrl.retriever.building import Plan, build_index
    from agentrl.retriever.corpus import CorpusReader
    from agentrl.retriever.encoders.spec import resolve
    from agentrl.retriever.errors import IndexBuildError

    if args.faiss and not args.trust:
        raise IndexBuildError(f"{args.faiss}: faiss trusts what it reads; add --trust if you know where it comes from")
    keys = ("runtime", "pooling", "query_prefix", "passage_prefix", "max_tokens", "dtype", "device")
    overrides = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    if overrides and not args.encoder:
        raise IndexBuildError(f"--{min(overrides).replace('_', '-')} needs --encoder PATH_OR_ID")
    options = {key: getattr(args, key) for key in ("dense", "faiss", "url", "collection") if getattr(args, key)}
    plan = Plan(
        kind="faiss-file" if args.faiss else args.kind,
        encoder=resolve(args.encoder, **overrides) if args.encoder else None,
        stemming=not args.no_stemming,
        memory_bytes=args.memory,
        threads=args.threads,
        overwrite=args.force,
        options=options,
    )
    reader = CorpusReader(args.corpus, skip_bad=args.skip_bad, shard=args.shard)
    progress = _Progress()
    begun = time.monotonic()
    try:
        count = build_index(reader, args.out, plan, progress=progress)
    finally:
        progress.end()
    seconds = time.monotonic() - begun
    for reason in reader.first_bad:
        print(f"skipped: {reason}", file=sys.stderr)
    skipped = {"skipped": reader.bad, "duplicates": reader.duplicates} if args.skip_bad is not None else {}
    if args.json:
        print(json.dumps({"index": args.out, "passages": count, "seconds": round(seconds, 3)} | skipped))
        return
    left_out = f" ({reader.bad} rows skipped, {reader.duplicates} ids came again)" if skipped else ""
    print(f"{count:,} passages indexed in {seconds:.1f} s: {args.out}{left_out}")
    print(f'next: agentrl retriever query {args.out} "your question"')


def serve(args: argparse.Namespace) -> None:
    """Serve the folder `args.index` until interrupted."""
    from agentrl.retriever.base import Opening
    from agentrl.retriever.dialects.base import Limits
    from agentrl.retriever.errors import BadQuery
    from agentrl.retriever.server import Manners
    from agentrl.retriever.serving import Service
    from agentrl.retriever.serving import serve as run_server

    for name, value, least, most in [
        ("topk", args.topk, 1, Limits.max_topk),
        ("overload-status", args.overload_status, 400, 599),
        ("max-batch", args.max_batch, 1, 4_096),
        ("cache", args.cache, 0, 10**7),
        ("deadline", args.deadline, 0.001, 3_600),
        ("drain", args.drain, 0, 3_600),
        ("threads", 1 if args.threads is None else args.threads, 1, 1_024),
    ]:
        if not least <= value <= most:
            raise BadQuery(f"--{name} {value}: must be between {least} and {most}")
    threads = args.threads or max(1, (os.cpu_count() or 1) // max(1, args.replicas))
    service = Service(
        host=args.host,
        port=args.port,
        replicas=args.replicas,
        limits=Limits(default_topk=args.topk),
        manners=Manners(args.deadline, overload_status=args.overload_status, log_queries=args.log_queries),
        opening=Opening(trust=args.trust, threads=threads, encoder=args.encoder),
        dialects=tuple(args.dialect),
        cache=args.cache,
        max_batch=args.max_batch,
        drain_s=args.drain,
        access_log=args.access_log,
        follow_stdin=args.follow_stdin,
    )
    run_server(args.index, service, say=lambda line: print(line, flush=True))


def cluster(args: argparse.Namespace) -> None:
    """Serve shards on a Ray cluster until interrupted."""
    from agentrl.retriever import ray_serve
    from agentrl.retriever.errors import ServeError
    from agentrl.retriever.wire import TOKEN_VARIABLE, environment_token, is_loopback

    token = environment_token()
    if token is None and not is_loopback(args.host):
        raise ServeError(f"host {args.host!r} can be reached from other machines: set {TOKEN_VARIABLE} to a secret")
    how = ray_serve.Cluster(args.host, args.port, most_replicas=args.max_replicas, threads=args.threads)
    ray_serve.serve(args.shards, how, token=token, say=lambda line: print(line, flush=True))


def query(where: str, queries: Sequence[str], *, topk: int = 3, as_json: bool = False) -> None:
    """Search `where`, a folder or a url, and print the hits of each query."""
    from agentrl.retriever.opening import open_searcher

    for text, hits in zip(queries, open_searcher(where).search_batch(queries, topk)):
        if as_json:
            found = [
                {"id": p.id, "title": p.title, "text": p.text, "score": round(s, 4) if math.isfinite(s) else None}
                for p, s in hits
            ]
            print(json.dumps({"query": text, "hits": found}, allow_nan=False))
        else:
            print(_for_people(text, hits))


def verify(index: str) -> None:
    """Compare size and hash of every file of the folder `index` with its manifest."""
    from pathlib import Path

    from agentrl.retriever.manifest import read
    from agentrl.retriever.manifest import verify as verify_files

    folder = Path(index).expanduser().absolute()
    manifest = read(folder)
    verify_files(folder, manifest)
    print(f"{index}: {manifest.kind}, {manifest.passages:,} passages, {len(manifest.files)} files as the manifest says")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run alone, without agentrl; returns the exit code."""
    parser = argparse.ArgumentParser(prog="retriever", description="Index, serve and search a corpus of passages.")
    add_arguments(parser.add_subparsers(required=True, metavar="COMMAND"))
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


class _Progress:
    """A line on stderr: rewritten in place on a terminal, a new one every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._begun = self._shown_at = time.monotonic()
        self._stage, self._before = "", 0
        self._terminal = sys.stderr.isatty()
        self._open_line = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:  # a stage that goes on after a kill begins at what was done
            self._stage, self._begun, self._before = stage, now, done
        elif now - self._shown_at < (0.2 if self._terminal else 10.0):
            return
        else:
            self._show(stage, done, total, now)

    def _show(self, stage: str, done: int, total: int, now: float) -> None:
        self._shown_at = now
        speed = (done - self._before) / max(now - self._begun, 1e-9)
        share = f" ({done / total:.0%})" if total else ""
        left = f", {(total - done) / speed:.0f} s left" if total and speed else ""
        line = f"{stage}: {done:,} passages{share}, {speed:,.0f}/s{left}"
        print(
            f"\r{line:<70}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True
        )
        self._open_line = self._terminal

    def end(self) -> None:
        if self._open_line:
            print(file=sys.stderr)


def _where(words: Sequence[str], given: str | None) -> tuple[str, Sequence[str]]:
    """Where to search, and the queries; without an option the first word says where."""
    from agentrl.retriever.errors import BadQuery

    if given is not None:
        return given, words
    if len(words) < 2:
        raise BadQuery(f'where to search? Write `agentrl retriever query INDEX "{words[0]}"` with a folder or a url')
    return words[0], words[1:]


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r}: write the part and their number, such as 1/4")
    return part, parts


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size such as 500M or 16G")
    return int(float(match.group(1)) * 1024 ** " KMGT".index(match.group(2).upper() or " "))


def _for_people(text: str, hits: Sequence[Hit]) -> str:
    lines = [_printable(text)]
    for rank, (passage, score) in enumerate(hits, start=1):
        shown = _printable(passage.text[:_SHOWN_CHARS]) + ("…" if len(passage.text) > _SHOWN_CHARS else "")
        lines += [
            f"  {rank}. {_printable(passage.title) or '(no title)'}  [{_printable(passage.id)}, {score:.2f}]",
            f"     {shown}",
        ]
    return "\n".join(lines if hits else [*lines, "  nothing found"])


def _printable(text: str) -> str:
    """Passages are data from elsewhere: no line breaks, no terminal control codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def _guarded(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from agentrl.errors import MissingPackageError, PluginError, missing_package
        from agentrl.retriever.errors import RetrieverError

        try:
            command(arguments)
        except (RetrieverError, PluginError, MissingPackageError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except ModuleNotFoundError as error:
            missing = missing_package("agentrl retriever", error)
            if missing is None:
                raise
            print(f"error: {missing}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    return run
