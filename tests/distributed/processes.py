"""Processes that the tests start: whose they are, which belongs to an actor, what is left behind."""

import os
import time

MARK = "AGENTRL_TEST_SESSION"  # in the environment of every process that a session starts
GONE_S = 30.0


def pid_of(actor):
    """Of the process that an actor lives in."""
    import ray

    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=120)


def core_of(actor):
    """The process in which vLLM computes, below the actor's."""
    import psutil

    (core,) = [p for p in psutil.Process(pid_of(actor)).children() if "EngineCore" in p.name() + "".join(p.cmdline())]
    return core


def left_behind(mark):
    """Command lines of the processes that were started with this mark, without this one."""
    import psutil

    out = []
    for process in psutil.process_iter():
        try:
            marked = process.pid != os.getpid() and process.environ().get(MARK) == mark
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                out.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        except psutil.Error:
            continue
    return out


def wait_until_gone(mark):
    """AssertionError where a process outlives what it was started for."""
    end = time.monotonic() + GONE_S
    while (left := left_behind(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left, "left behind:\n" + "\n".join(left)
