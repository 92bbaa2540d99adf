"""`agentrl COMMAND ...`: finds the command's module, parses, runs it, and turns errors into messages.

Only the chosen command's module is imported, and no torch before a command runs. Exit codes: 0; 1 for a check that
found something; 2 for what the user can fix (and argparse's own); 3 for a run that became non-finite; 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from agentrl import __version__
from agentrl.commands import ALIASES, COMMANDS

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")
_EPILOG = "agentrl COMMAND --help explains one. AGENTRL_DEBUG=1 shows tracebacks, NO_COLOR=1 turns colours off."


class Parser(argparse.ArgumentParser):
    """argparse that names the nearest valid option or command, and takes no abbreviations.

    Abbreviations would make scripts depend on which options happen to exist.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Unknown arguments are errors here already: the parser of the subcommand knows the valid ones."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            first = unknown[0].partition("=")[0]
            if first.startswith("-"):
                self.error(f"unknown option {first}{_nearest(first, list(self._option_string_actions))}")
            self.error(f"unexpected argument {first!r}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Usage, message and exit with 2."""
        if m := _CHOICE.search(message):
            message += _nearest(m[1], re.findall(r"[^\s',]+", m[2]))
        super().error(message)


def build_parser(only: str | None = None) -> Parser:
    """The parser: of all commands; of the command `only`; of their names alone where that is none of them."""
    parser = Parser(
        prog="agentrl",
        description="Train language-model search agents with reinforcement learning, and see their collapse coming.",
        epilog=_EPILOG,
    )
    parser.set_defaults(whole_parser=build_parser)  # `completion` describes all commands
    parser.add_argument("--version", action="version", version=f"agentrl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name in [only] if only in COMMANDS else COMMANDS:
        module, text = COMMANDS[name]
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if only in (None, name):
            importlib.import_module(module).add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _find_modules_here()
    # How long a waiting OpenMP thread spins before it sleeps. Not at all costs half the speed of a small model, the
    # default (milliseconds) takes the core from whoever else wants it. Read once, when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    for stream in (sys.stdout, sys.stderr):  # rollouts hold any text, the terminal may not be able to show it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
        return code
    except BrokenPipeError:
        return _pipe_closed()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE or _debugging():
            raise
        return _stdout_full(error)
    except Exception as error:
        failed = _exit_code(error)
        if failed is None or _debugging():
            raise
        print(f"error: {error}" if "\n" not in str(error) else f"errors:\n{error}", file=sys.stderr)
        return failed


def _find_modules_here() -> None:
    """The current folder's modules can be named (`env check my_env:Mine-v0`); appended, so that they hide no other."""
    with suppress(OSError):  # the folder has been deleted
        here = os.getcwd()
        if here not in sys.path:
            sys.path.append(here)


def _run(arguments: list[str]) -> int:
    if not arguments:
        build_parser(only="").print_help(sys.stderr)
        return 2
    name = ALIASES.get(arguments[0], arguments[0])
    parsed = build_parser(only=name).parse_args([name, *arguments[1:]])
    try:
        return int(importlib.import_module(COMMANDS[name][0]).run(parsed))
    except ModuleNotFoundError as error:
        from agentrl.errors import missing_package

        if missing := missing_package(f"agentrl {name}", error):
            raise missing from error
        raise


def _exit_code(error: Exception) -> int | None:
    """None for what is a bug and deserves its traceback."""
    from agentrl.envs.errors import TaskError, ToolFailure
    from agentrl.errors import AgentRLError
    from agentrl.retriever.errors import RetrieverError

    if isinstance(error, AgentRLError):
        return error.exit_code
    return 2 if isinstance(error, TaskError | ToolFailure | RetrieverError) else None


def _debugging() -> bool:
    return os.environ.get("AGENTRL_DEBUG", "0") not in ("", "0")


def _stdout_full(error: OSError) -> int:
    """Standard output leads to a full or broken disk; what is buffered cannot be written at the end either."""
    print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2


def _pipe_closed() -> int:
    """The reader went away (`agentrl runs | head`): nothing to say, and nothing to flush at exit either."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    return 141


def _nearest(value: str, valid: list[str]) -> str:
    from agentrl.errors import nearest  # difflib is needed for mistakes only

    return nearest(value, valid)


if __name__ == "__main__":
    sys.exit(main())
