"""The sandbox's own process: shuts itself in, says so, then runs the program that it was given. Linux alone.

Run by `agentrl.envs.sandbox` as `python -I -S inside.py LIMITS`, with the program on standard input; it imports the
standard library alone. It writes `isolated` to standard error once nothing is left to do, and why not where it cannot:
the program does not run then. In order: another user where it was root; namespaces of its own for users, files,
processes, network, IPC and host name; an empty root file system; limits; no capabilities; and a filter that lets some
thirty system calls through. Modules are imported before, because there are no files to import them from afterwards.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import json
import os
import platform
import resource
import signal
import struct
import sys
import traceback
from contextlib import suppress
from typing import Any

#: What a program can import; there is nothing else.
MODULES = (
    "_strptime", "abc", "array", "base64", "binascii", "bisect", "calendar", "cmath", "collections",
    "collections.abc", "colorsys", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib",
    "enum", "fractions", "functools", "graphlib", "hashlib", "heapq", "html", "inspect", "io", "itertools", "json",
    "keyword", "math", "numbers", "operator", "pprint", "random", "re", "secrets", "statistics", "string", "struct",
    "textwrap", "time", "timeit", "traceback", "types", "typing", "unicodedata", "uuid", "zlib", "zoneinfo",
    "encodings.ascii", "encodings.cp437", "encodings.idna", "encodings.latin_1", "encodings.utf_16",
    "encodings.utf_32", "encodings.unicode_escape",
)  # fmt: skip

NOBODY = 65534
CLONE = 0x00020000 | 0x08000000 | 0x04000000 | 0x10000000 | 0x20000000 | 0x40000000  # files IPC UTS users processes net
CLONE |= 0x02000000  # cgroups
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
PROT_EXEC = 4

#: System calls that a program may make, by machine. What is not here fails with EPERM: files, sockets, processes,
#: threads, signals to others.
CALLS = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25, "madvise": 28,
        "nanosleep": 35, "getpid": 39, "exit": 60, "gettimeofday": 96, "getrusage": 98, "times": 100,
        "sigaltstack": 131, "time": 201, "futex": 202, "restart_syscall": 219, "clock_gettime": 228,
        "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318, "membarrier": 324,
        "rseq": 334,
    },
    "aarch64": {
        "read": 63, "write": 64, "close": 57, "fstat": 80, "lseek": 62, "mmap": 222, "mprotect": 226, "munmap": 215,
        "brk": 214, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "sched_yield": 124, "mremap": 216,
        "madvise": 233, "nanosleep": 101, "getpid": 172, "exit": 93, "gettimeofday": 169, "getrusage": 165,
        "times": 153, "sigaltstack": 132, "futex": 98, "restart_syscall": 128, "clock_gettime": 113,
        "clock_getres": 114, "clock_nanosleep": 115, "exit_group": 94, "getrandom": 278, "membarrier": 283, "rseq": 293,
    },
}  # fmt: skip
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # the second: errno 1, EPERM
LOAD, EQUAL, ANY, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: load a word, jump where equal, where a bit is set, return

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """A step of the isolation is not possible here."""


def check(result: int, what: str) -> None:
    """Refused where a call of the C library has failed."""
    if result != 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """See the module's docstring."""
    limits = json.loads(sys.argv[1])
    try:
        code = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
        for name in MODULES:
            importlib.import_module(name)
        machine = machine_here()
        used = address_space()
        leave_root()
        own_namespaces()
        empty_root(machine)
        limit(limits, used)
        no_capabilities()
        allow_only(machine)
    except BaseException as why:  # whatever it is: the program must not run
        os.write(2, f"{type(why).__name__}: {why}"[:500].encode())
        os._exit(97)
    os.write(2, b"isolated")
    sys.stderr = sys.stdout
    run(code)


def machine_here() -> str:
    """The processor's name. Refused where its system calls are not known here."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in CALLS or struct.calcsize("P") != 8:
        raise Refused(f"there is no list of system calls for {sys.platform} on {machine}")
    return machine


def leave_root() -> None:
    """Become nobody where this is root, so that what root may do is lost outside of the namespaces, too."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")  # else /proc/self is root's
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def own_namespaces() -> None:
    """Namespaces of its own; what is left of this process waits in the old one for the first of the new one."""
    uid, gid, parent = os.getuid(), os.getgid(), os.getpid()
    check(libc.unshare(CLONE), "unshare (user, mount, process, network, IPC and host name namespaces)")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/{parent}/{name}", "w") as file:
            file.write(text)
    child = os.fork()
    if child == 0:
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
        return
    os.closerange(0, 3)
    status = os.waitpid(child, 0)[1]
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def empty_root(machine: str) -> None:
    """A root file system of which nothing can be read, and into which nothing can be written."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.closerange(3, 4096)
    mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555")
    os.chdir("/tmp")
    check(libc.syscall(PIVOT_ROOT[machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")
    mount("none", "/", None, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    if os.listdir("/"):
        raise Refused("the root file system is not empty")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    """mount(2)."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    given = None if data is None else data.encode()
    check(libc.mount(*encoded, ctypes.c_ulong(flags), given), f"mount {target}")


def limit(limits: dict[str, Any], used: int) -> None:
    """Memory beside the `used` bytes, CPU time; no files, no core, no further processes."""
    cpu, memory = max(1, int(limits["cpu_s"])), int(limits["memory_mb"]) << 20
    for kind, most in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_STACK, 8 << 20),
    ):
        resource.setrlimit(kind, (most, most))


def address_space() -> int:
    """Bytes that this process has mapped by now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def no_capabilities() -> None:
    """Neither now nor by anything that it might start."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # those that the kernel does not know fail
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    check(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def allow_only(machine: str) -> None:
    """The filter: the calls of `CALLS` pass, memory that can be executed does not, all else fails with EPERM."""
    calls = CALLS[machine]
    rules = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for name in ("mmap", "mprotect"):  # the third argument is the protection
        rules += [(EQUAL, 0, 4, calls[name]), (LOAD, 0, 0, 32), (ANY, 0, 1, PROT_EXEC), (RETURN, 0, 0, FAIL)]
        rules += [(RETURN, 0, 0, ALLOW)]
    for name, number in calls.items():
        if name not in ("mmap", "mprotect"):
            rules += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    rules.append((RETURN, 0, 0, FAIL))
    program = b"".join(struct.pack("HBBI", code, yes, no, value) for code, yes, no, value in rules)
    kept = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(kept))
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(header), 0, 0), "prctl(PR_SET_SECCOMP)")


def run(code: str) -> None:
    """The program; the value of a last expression is printed, as in an interactive session."""
    sys.setrecursionlimit(1000)
    sys.argv = ["program"]
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        tree = ast.parse(code, "program")
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, "program", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "program", "eval"), names)
            print(repr(value)) if value is not None else None
        code_ = 0
    except SystemExit as stop:
        code_ = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        code_ = 1
        with suppress(BaseException):
            told(error, code)
    with suppress(BaseException):
        sys.stdout.flush()
    os._exit(code_ & 0x7F)


def told(error: BaseException, code: str) -> None:
    """The error as Python prints it, without the frames of this file, and with the program's lines."""
    lines = code.splitlines()
    shown = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == "program":
            text = lines[frame.lineno - 1].strip() if frame.lineno and frame.lineno <= len(lines) else ""
            shown.append(f"  line {frame.lineno}: {text[:200]}")
    shown = shown if len(shown) <= 6 else [*shown[:3], f"  … {len(shown) - 6} more", *shown[-3:]]
    print(*shown, *traceback.format_exception_only(error), sep="\n", end="")


if __name__ == "__main__":
    main()
