"""Python in a process that has nothing: what a program can do, what it cannot, and where the tool refuses to exist.

The attacks run for real where this machine can shut a program in; the refusals run everywhere.
"""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from agentrl.envs import sandbox
from agentrl.envs.errors import ToolFailure
from agentrl.envs.sandbox import NoIsolation, Python, missing_isolation
from agentrl.envs.tools import ToolEnv

shut_in = pytest.mark.skipif(bool(missing_isolation()), reason=missing_isolation())
TASK = {"question": "how much?", "golden_answers": ["3"]}


def run(code, **limits):
    return asyncio.run(Python.python.call(Python(**limits), code))


@pytest.fixture(scope="module")
def patient():
    """Limits that a busy machine does not reach by itself."""
    return {"deadline_s": 60.0, "cpu_s": 20}


@shut_in
@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("print(6 * 7)", "42"),
        ("import math, statistics\nx = math.sqrt(2)\nround(x, 3)", "1.414"),
        ("print('a', end='')\nNone", "a"),
        ("x = 1", "(nothing was printed)"),
        ("import sys; print('to stderr', file=sys.stderr); sys.exit(3)", "to stderr"),
        (
            "def f():\n    return 1 / 0\nf()",
            "  line 3: f()\n  line 2: return 1 / 0\nZeroDivisionError: division by zero",
        ),
        ("if True print(1)", '"program", line 1'),
        ("print('\\ud800 é')", "UnicodeEncodeError"),
        ("class A:\n    x = [n for n in range(3)]\nA.x", "[0, 1, 2]"),
        ("import datetime\ndatetime.datetime.strptime('2020-02-03', '%Y-%m-%d').day", "3"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
    ],
)
def test_a_program_is_run(code, wanted, patient):
    assert wanted in run(code, **patient)


ATTACKS = {
    "fork": "import os\nwhile True:\n    os.fork()",
    "posix_spawn": "import os\nos.posix_spawn('/bin/sh', ['sh'], {})",
    "exec": "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo reached'])",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill all": "import os\nos.kill(-1, 9)",
    "read": "open('/etc/passwd').read()",
    "read itself": "open('/proc/self/environ').read()",
    "list": "import os\nos.listdir('/')",
    "write": "open('/tmp/agentrl-sandbox-was-here', 'w')",
    "make a folder": "import os\nos.mkdir('/tmp/agentrl-sandbox-was-here')",
    "socket": "import _socket",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "nice": "import os\nos.nice(-5)",
    "chroot": "import os\nos.chroot('.')",
    "be root": "import os\nos.setuid(0)",
}


TRY = """
for name, code in {attacks!r}.items():
    try:
        exec(code)
        print("reached:", name)
    except (OSError, ImportError, ValueError) as error:
        print(type(error).__name__)
"""


@shut_in
def test_attacks_are_errors_inside(patient):
    said = run(TRY.format(attacks=ATTACKS), **patient).split("\n")
    kinds = {"more memory": "ValueError", "socket": "ModuleNotFoundError"}
    assert said == [kinds.get(name, "PermissionError") for name in ATTACKS]
    assert not Path("/tmp/agentrl-sandbox-was-here").exists()


SYSCALLS = """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
for name, arguments in {
    "socket": (2, 1, 0), "fork": (), "ptrace": (0, 0, 0, 0), "open": (b"/etc/passwd", 0), "unshare": (0x10000000,),
    "mount": (b"x", b"/", b"proc", 0, None), "kill": (1, 9), "prctl": (22, 0, 0, 0, 0), "setns": (0, 0),
    "chroot": (b"/",),
    "memfd_create": (b"x", 0), "syscall": (425, 1, 0), "eventfd": (0, 0), "shmget": (1, 4096, 0o1666), "mlockall": (3,),
    "process_vm_readv": (1, None, 0, None, 0, 0), "sched_setaffinity": (0, 0, None), "dup": (1,), "fcntl": (1, 0, 5),
}.items():
    if getattr(c, name)(*arguments) != -1 or ctypes.get_errno() != 1:
        print(name, ctypes.get_errno())
c.mmap.restype = ctypes.c_void_p
for executable, wanted in ((0, False), (4, True)):
    if (c.mmap(None, 4096, 3 | executable, 34, -1, 0) == ctypes.c_void_p(-1).value) is not wanted:
        print("mmap", executable)
print("done")
"""


@shut_in
def test_system_calls_fail_where_no_library_stands_between(patient):
    assert run(SYSCALLS, **patient) == "done"


@shut_in
def test_no_variable_of_the_parent_is_seen(monkeypatch, patient):
    monkeypatch.setenv("AGENTRL_API_KEY", "sk-secret")
    assert "secret" not in run(
        "import os, sys\nprint(dict(os.environ), sys.argv, sys.path, __file__ if 0 else '')", **patient
    )
    assert run("import os\n(os.getpid(), os.getuid() != 0)", **patient) == "(1, True)"


@shut_in
def test_an_endless_loop_ends_by_its_processor_time():
    began = time.process_time()
    assert run("print('begun', flush=True)\nwhile True: pass", cpu_s=1, deadline_s=60) == (
        "begun\nstopped: it used more than 1 s of processor time"
    )
    assert time.process_time() - began < 1


@shut_in
@pytest.mark.parametrize(
    "code", ["import time\ntime.sleep(60)", "import sys\nsys.stdin.read()\nimport time\ntime.sleep(60)"]
)
def test_one_that_waits_ends_by_the_clock(code):
    assert run("print('begun', flush=True)\n" + code, deadline_s=0.3) == "begun\nstopped: it ran longer than 0.3 s"
    assert not left_over()


@shut_in
@pytest.mark.parametrize(
    "code",
    ["x = bytearray(10**10)", "x = []\nwhile True:\n    x.append(bytearray(10**7))", "'x' * 10**10", "10**10**9"],
)
def test_gigabytes_are_not_had(code):
    said = run(code, memory_mb=64, cpu_s=1, deadline_s=60)
    assert "MemoryError" in said or "processor time" in said


@shut_in
def test_memory_within_the_limit_is_had(patient):
    assert run("len(bytearray(100 << 20))", memory_mb=128, **patient) == str(100 << 20)
    assert "MemoryError" in run("len(bytearray(100 << 20))", memory_mb=64, **patient)


@shut_in
def test_gigabytes_of_output_are_cut(patient):
    said = run("while True:\n    print('x' * 10_000)", output_characters=100, **patient)
    assert said == "x" * 100 + " …\nstopped: it printed more than 100 characters"
    said = run("import sys\nsys.stdout.write('é' * 150)", output_characters=100, **patient)
    assert said == "é" * 100 + " …\nonly the first 100 characters are shown"
    assert (
        run("import os\nwhile os.write(2, b'isolated' * 1000): pass", deadline_s=0.3)
        == "stopped: it ran longer than 0.3 s"
    )


@shut_in
def test_a_crash_of_the_interpreter_is_told(patient):
    said = run("import ctypes\nctypes.string_at(0)", **patient)
    assert said == "stopped: the interpreter crashed (signal 11)"
    deep = "import sys\nsys.setrecursionlimit(10**8)\nx = []\nfor _ in range(10**5): x = [x]\nprint(repr(x)[:1])"
    said = run(deep, **patient)
    assert "crashed (signal" in said or "Error" in said


def left_over():
    """Processes of a sandbox that are still there: ours and those without a parent, not those of a test beside this."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(sandbox.INSIDE).encode() in path.read_bytes() and not of_another(int(path.parent.name)):
                found.append(path.parent.name)
    return found


def of_another(pid):
    """Whether another process has started it, which this one has not."""
    above = []
    while pid > 1 and pid != os.getpid():
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(status.partition("PPid:")[2].split()[0])
        above.append(pid)
    shut_in = [p for p in above if p > 1 and str(sandbox.INSIDE).encode() in Path(f"/proc/{p}/cmdline").read_bytes()]
    return pid != os.getpid() and len(above) > len(shut_in) + 1


def wait_until_none_is_left():
    until = time.monotonic() + 20
    while left_over() and time.monotonic() < until:
        time.sleep(0.05)
    assert not left_over()


@shut_in
def test_nothing_outlives_the_process_that_asked():
    code = (
        "import asyncio\nfrom agentrl.envs.sandbox import Python\np = Python(deadline_s=100)\nprint('go', flush=True)\n"
        "asyncio.run(Python.python.call(p, 'import time\\ntime.sleep(100)'))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"go\n"
        while not left_over():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)
        process.kill()
    wait_until_none_is_left()


@shut_in
def test_it_is_a_tool_by_name_and_several_run_at_once():
    env = ToolEnv(tools=["python"], reward="exact_match")
    assert env.schemas[0]["function"]["parameters"]["required"] == ["code"]
    prompt, _ = env.reset(options=TASK)
    assert "Run a Python program" in prompt
    calls = [env._format.write("python", {"code": f"print({n} + 1)"}) for n in range(4)]
    shown, _, _, _, info = env.step("\n".join(calls))
    assert [m.strip() for m in info["messages"]] == ["1", "2", "3", "4"] and info["valid"]
    assert env.step("3")[1] == 1.0 and "</tool_response>" in shown


def test_a_long_program_is_a_message():
    python = Python.__new__(Python)
    assert asyncio.run(Python.python.call(python, "x" * 100_001)) == (
        "error: the program has 100001 characters; at most 100000 are run"
    )


@pytest.mark.parametrize(
    "limits", [{"memory_mb": 0}, {"cpu_s": 0}, {"deadline_s": float("nan")}, {"output_characters": 0}]
)
def test_limits_must_be_above_0(limits):
    with pytest.raises(ValueError, match="each must be above 0"):
        Python(**limits)


#: Installs a filter that makes one system call fail, as containers do, and then asks for the tool.
DENIED = """
import ctypes, struct, sys
libc = ctypes.CDLL(None)
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
kept = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *r) for r in rules))
assert libc.prctl(38, 1, 0, 0, 0) == 0
header = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(kept))
assert libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0) == 0
from agentrl.envs.sandbox import NoIsolation, Python
try:
    Python()
except NoIsolation as why:
    print(why)
"""
UNSHARE, OTHERS = 272, (165, 155, 166, 126)  # mount, pivot_root, umount2, capset


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="numbers of x86-64 Linux")
@pytest.mark.parametrize("number", [UNSHARE, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_a_machine_that_denies_a_step_gets_no_tool(number):
    done = subprocess.run([sys.executable, "-c", DENIED, str(number)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Python programs cannot be shut in on this machine: "), done.stderr
    assert "Operation not permitted" in done.stdout and "It does not run programs without" in done.stdout


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("import os; os.write(2, b'isolated'); print('open')", "did what it must not \\(open\\)"),
        ("import os; os.write(2, b'isolated'); print('shut 77')", "did what it must not \\(shut, 77\\)"),
        ("pass", "it ended with 0"),
        ("import sys; sys.exit('no such call')", "no such call"),
    ],
)
def test_one_that_only_says_that_it_is_shut_in_is_not_believed(program, wanted, monkeypatch, tmp_path):
    inside = tmp_path / "inside.py"
    inside.write_text(program)
    monkeypatch.setattr(sandbox, "INSIDE", inside)
    missing_isolation.cache_clear()
    try:
        with pytest.raises(NoIsolation, match=wanted):
            Python()
    finally:
        missing_isolation.cache_clear()


@shut_in
def test_isolation_that_is_lost_later_fails_the_episode(monkeypatch, tmp_path):
    python = Python()
    inside = tmp_path / "inside.py"
    inside.write_text("import os; os.write(2, b'unshare: no'); os.write(1, b'42')")
    monkeypatch.setattr(sandbox, "INSIDE", inside)
    with pytest.raises(ToolFailure, match="does not start: unshare: no"):
        asyncio.run(Python.python.call(python, "print(42)"))
