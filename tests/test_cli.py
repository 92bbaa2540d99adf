"""The command line as a person and a script meet it: most tests start a real process."""

import json
import os
import pty
import subprocess
import sys

import pytest

from agentrl import cli
from agentrl.commands import ALIASES, COMMANDS
from agentrl.errors import AgentRLError, ConfigError, NonFiniteError, RunError
from agentrl.retriever.errors import CorpusError

SLOW_TO_IMPORT = ("torch", "numpy", "transformers", "pydantic", "gymnasium", "httpx", "matplotlib")


def agentrl(*arguments, code=0, **environment):
    """Run the command line in a process of its own; asserts the exit code."""
    env = {k: v for k, v in os.environ.items() if k not in ("AGENTRL_DEBUG", "NO_COLOR")} | environment
    done = subprocess.run(
        [sys.executable, "-m", "agentrl", *arguments], capture_output=True, text=True, env=env, check=False, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done


def paths_of(parser, prefix=()):
    """Every command and subcommand, as its arguments."""
    yield prefix
    for action in parser._actions:
        if isinstance(action.choices, dict):  # subparsers
            for name, below in action.choices.items():
                yield from paths_of(below, (*prefix, name))


def test_every_command_is_a_module_with_help():
    parser = cli.build_parser()
    commands = list(paths_of(parser))
    assert ("retriever", "serve") in commands and ("env", "check") in commands and ("lab", "delta") in commands
    text = parser.format_help()
    assert all(
        name in text and about[1][0].islower() and not about[1].endswith(".") for name, about in COMMANDS.items()
    )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_loads_nothing_slow(command):
    paths = [p for p in paths_of(cli.build_parser(command)) if p[:1] == (command,)]
    code = (
        "import json, sys\nfrom agentrl.cli import main\n"
        "for path in json.loads(sys.argv[1]):\n"
        "    try:\n        main([*path, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        f"print([name for name in {SLOW_TO_IMPORT!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]", f"{command} --help imports {lines[-1]}"
    assert sum(line.startswith("usage: agentrl") for line in lines) == len(paths)


def test_an_alias_is_the_command_itself():
    assert ALIASES == {"lld": "lab"}
    shown = agentrl("lld", "delta", "--help").stdout
    assert shown.startswith("usage: agentrl lab delta") and shown == agentrl("lab", "delta", "--help").stdout


def test_without_a_command_the_help_is_shown_and_it_is_an_error():
    done = agentrl(code=2)
    assert done.stdout == "" and "quickstart" in done.stderr and "Traceback" not in done.stderr
    assert agentrl("--help").stdout.startswith("usage: agentrl")
    assert agentrl("--version").stdout.startswith("agentrl 0.")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train", "x", "--dryrun"], "unknown option --dryrun; did you mean '--dry-run'?"),
        (["train", "x", "--forc"], "did you mean '--force'?"),  # no abbreviations: they change meaning with time
        (["retriever", "qeury"], "did you mean 'query'?"),
        (["retriever", "serve", "x", "--prot=1"], "unknown option --prot; did you mean '--port'?"),
        (["resume", "a", "b"], "unexpected argument 'b'"),
        (["quickstart", "--seed", "many"], "invalid int value: 'many'"),
    ],
)
def test_mistakes_name_the_nearest_valid_word(arguments, wanted, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert wanted in capsys.readouterr().err


def test_a_word_like_nothing_gets_no_suggestion(capsys):
    with pytest.raises(SystemExit):
        cli.main(["xyzzyplugh"])
    assert "did you mean" not in capsys.readouterr().err


class Fails:
    """A command that raises."""

    def __init__(self, error):
        self.error = error

    def add_arguments(self, parser):
        pass

    def run(self, args):
        raise self.error


@pytest.fixture
def failing(monkeypatch):
    def put(error):
        monkeypatch.setitem(COMMANDS, "fails", ("a_module_that_fails", "fails"))
        monkeypatch.setitem(sys.modules, "a_module_that_fails", Fails(error))
        return cli.main(["fails"])

    return put


@pytest.mark.parametrize(
    ("error", "code"),
    [(AgentRLError("no"), 2), (RunError("no"), 2), (NonFiniteError("no"), 3), (CorpusError("no"), 2)],
)
def test_errors_for_people_are_one_line(failing, capsys, error, code):
    assert failing(error) == code
    printed = capsys.readouterr()
    assert printed.err == "error: no\n" and printed.out == ""


def test_all_problems_of_a_config_are_shown(failing, capsys):
    assert failing(ConfigError(["a.b: one", "c.d: two"])) == 2
    assert capsys.readouterr().err == "errors:\na.b: one\nc.d: two\n"


def test_ctrl_c_is_130(failing, capsys):
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_bugs_keep_their_traceback_and_debug_shows_all(failing, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())
    monkeypatch.setenv("AGENTRL_DEBUG", "1")
    with pytest.raises(RunError):
        failing(RunError("no"))


def test_debug_in_a_process(tmp_path):
    missing = str(tmp_path / "run")
    assert "Traceback" not in agentrl("resume", missing, code=2).stderr
    assert "Traceback" in agentrl("resume", missing, code=1, AGENTRL_DEBUG="1").stderr


def test_a_closed_pipe_is_no_error(tmp_path):
    code = "import sys; from agentrl.cli import main; sys.stdin.read(); sys.exit(main(['runs', sys.argv[1]]))"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=pipe, stdout=pipe, stderr=pipe)
    process.stdout.close()  # before anything is written
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141
    process.stderr.close()


def test_threads_spin_briefly_unless_told_otherwise(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "GOMP_SPINCOUNT", "unset below")
    del os.environ["GOMP_SPINCOUNT"]
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    os.environ["GOMP_SPINCOUNT"] = "7"
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def in_terminal(*arguments, **environment):
    """What the command writes to a terminal."""
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | environment
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "agentrl", *arguments], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    out = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux's end of file on a terminal
            break
        if not data:
            break
        out += data
    os.close(ours)
    assert process.wait(60) == 0
    return out.decode()


def test_colours_only_in_a_terminal_and_never_against_no_color():
    coloured = in_terminal("env", "list")
    plain = in_terminal("env", "list", NO_COLOR="1")
    assert "\x1b[" in coloured and "\x1b[" not in plain and "agentrl/Search-v0" in plain
    assert "\x1b[" not in agentrl("env", "list").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command(shell):
    script = agentrl("completion", shell).stdout
    assert all(name in script for name in COMMANDS)
    assert "--dry-run" in script and "--topk" in script


def test_bash_completes_commands_options_and_subcommands(tmp_path):
    script = tmp_path / "agentrl.bash"
    script.write_text(agentrl("completion", "bash").stdout)

    def complete(*words):
        code = (
            'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
            'name=$(complete -p agentrl | grep -o "_shtab[a-z_]*"); $name; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", code, "bash", str(script), "agentrl", *words],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        return done.stdout.split()

    assert "train" in complete("tr")
    assert "--dry-run" in complete("train", "--dr")
    assert complete("retriever", "qu") == ["query"]
    (tmp_path / "mine.yaml").touch()
    assert complete("train", "mi") == complete("eval", "runs/x", "mi") == ["mine.yaml"]


@pytest.mark.slow
def test_dry_run_as_json_has_the_config_and_every_origin():
    result = json.loads(agentrl("train", "search_tiny", "--dry-run", "--json", "--set", "optim.lr=1e-3").stdout)
    assert result["config"]["optim"]["lr"] == 1e-3
    assert result["origins"]["optim.lr"] == "--set"
    assert result["origins"]["train.epochs"] == "default"


def test_wrong_keys_are_all_reported_and_nothing_is_trained(tmp_path):
    wrong = ("--set", "optm.lr=1", "--set", "rollout.group_size=1")
    done = agentrl("train", "search_tiny", *wrong, "--set", f"log.runs_dir={tmp_path}", code=2)
    assert "optm" in done.stderr and "optim" in done.stderr and "group_size" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_text_that_the_terminal_cannot_show_is_escaped(tmp_path):
    done = agentrl("runs", str(tmp_path / "läufe"), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "l\\xe4ufe" in done.stdout
