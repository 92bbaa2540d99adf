"""`agentrl doctor`: what this machine and installation can do, what does not fit, and the remedy for each.

Exit code 1 where something is broken.

Everything is measured here and now; nothing is downloaded, no address is contacted. Values of secrets are never shown.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from agentrl.errors import DISTRIBUTION, EXTRAS, installed, pip_install

Level = Literal["ok", "note", "warn", "fail"]

NATIVE = ("numpy", "pydantic_core", "yaml", "tokenizers", "safetensors", "tantivy", "pyarrow")  # can fail to load
TOGETHER = (
    DISTRIBUTION,
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "peft",
    "trl",
    "openrlhf",
    "vllm",
    "deepspeed",
)
VARIABLES = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE",
    "AGENTRL_DATASETS", "AGENTRL_DEBUG", "NO_COLOR",
)  # fmt: skip
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "AGENTRL_RETRIEVER_TOKEN")
PURPOSE = {
    "train": "training, evaluation, the lab, figures",
    "retriever": "search indexes in this process",
    "qdrant": "search in Qdrant (index kind qdrant)",
    "math": "grading of mathematical answers",
    "dev": "tests, lint, types",
    "tensorboard": "log.tensorboard",
    "wandb": "log.wandb",
    "cluster": "the cluster engine (engine: openrlhf)",
    "vllm": "vLLM as the sampler of one process (rollout.sampler)",
    "real": "a pretrained model on real facts (agentrl real)",
    "mcp": "tools over MCP",
    "openenv": "environments over OpenEnv's wire, here and served (agentrl env serve)",
}
GIB = 2**30
MIN_DISK_GIB = 2.0
MARKS = {"ok": ("✓", "green"), "note": ("·", "dim"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """One line. `remedy` is what to do about a `warn` or `fail`."""

    part: str
    name: str
    value: str
    level: Level = "ok"
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs will go (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Examine and print."""
    from agentrl.console import color, print_json

    findings = examine(args.runs_dir)
    broken = sum(f.level == "fail" for f in findings)
    if args.json:
        print_json({"ok": not broken, "findings": [asdict(f) for f in findings]})
        return 1 if broken else 0
    part = ""
    for f in findings:
        if f.part != part:
            part = f.part
            print(color(part, "bold"))
        mark, shade = MARKS[f.level]
        print(f"  {color(mark, shade)} {f.name:<20} {f.value}")
        if f.remedy:
            print(f"    {'':20} {color('→ ' + f.remedy, shade)}")
    warned = sum(f.level == "warn" for f in findings)
    print(f"\n{broken} broken, {warned} to look at" if broken or warned else "\nall is well")
    return 1 if broken else 0


def examine(runs_dir: str = "runs") -> list[Finding]:
    """All findings, in the order they are shown."""
    out: list[Finding] = []
    for look in (_machine, _torch, _packages, _extras, _plugins, _variables):
        out += look()
    return out + list(_disk(runs_dir)) + list(_sizes())


# ------------------------------------------------------------------------------------------------------------ machine


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "Python", f"{platform.python_version()}, {sys.executable}")
    yield Finding("machine", "system", platform.platform())
    yield Finding("machine", "CPU cores", f"{usable_cores()} usable of {os.cpu_count()}")
    total = memory_bytes()
    yield Finding("machine", "memory", "unknown" if total is None else f"{total / GIB:.1f} GiB")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def memory_bytes() -> int | None:
    """Main memory, or a container's limit where that is lower; None where it cannot be told."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _disk(runs_dir: str) -> Iterator[Finding]:
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    for name, folder in (("runs", Path(runs_dir).expanduser()), ("Hugging Face cache", cache)):
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free / GIB
        value = f"{free:.1f} GiB free at {folder}"
        if not os.access(existing, os.W_OK):
            remedy = (
                "set log.runs_dir to a folder you may write to" if name == "runs" else "set HF_HOME to another folder"
            )
            yield Finding("disk", name, f"{folder} cannot be written", "warn", remedy)
        elif free < MIN_DISK_GIB:
            yield Finding("disk", name, value, "warn", "a checkpoint needs 12 bytes per parameter: free some space")
        else:
            yield Finding("disk", name, value)


# -------------------------------------------------------------------------------------------------------------- torch


def _torch() -> Iterator[Finding]:
    if not installed("torch"):
        yield Finding("torch", "torch", "not installed: nothing can be trained here", "note", pip_install("train"))
        return
    try:
        import torch
    except Exception as error:  # a missing or mismatched shared library raises OSError
        yield Finding("torch", "torch", f"cannot be imported: {error}", "fail", "pip install -c constraints.txt torch")
        return
    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    yield Finding("torch", "torch", f"{torch.__version__}, {build} build")
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads > cores:
        remedy = f"more threads than cores wait for each other: OMP_NUM_THREADS={cores}, or model.threads"
        yield Finding("torch", "threads", f"{threads} on {cores} cores", "warn", remedy)
    else:
        yield Finding("torch", "threads", f"{threads} of {cores} cores")
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            bf16 = "bf16" if p.major >= 8 else "no bf16: use model.dtype float32"
            yield Finding("torch", f"cuda:{i}", f"{p.name}, {p.total_memory / GIB:.0f} GiB, {bf16}")
    elif driver and not torch.version.cuda:
        remedy = f"install torch {torch.__version__.partition('+')[0]} with CUDA (pytorch.org, Get Started)"
        yield Finding("torch", "GPU", "an NVIDIA driver is here, but torch is a CPU build", "warn", remedy)
    elif torch.version.cuda:
        remedy = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; without a GPU the CPU build of torch is smaller"
        yield Finding("torch", "GPU", "torch is a CUDA build and sees no GPU", "note", remedy)
    else:
        yield Finding("torch", "GPU", "none: training runs on the CPU, which is enough for the built-in worlds", "note")
    for name in ("torchvision", "torchaudio"):
        version = _version(name)
        if version and version.partition("+")[2] != torch.__version__.partition("+")[2]:
            remedy = f"agentrl does not need it, and another build breaks imports of transformers: pip uninstall {name}"
            yield Finding(
                "torch", name, f"{version} is for another build than torch {torch.__version__}", "warn", remedy
            )


# ----------------------------------------------------------------------------------------------------------- packages


def _packages() -> Iterator[Finding]:
    if _version(DISTRIBUTION) is None:
        remedy = "pip install -c constraints.txt -e ."
        yield Finding("packages", DISTRIBUTION, "runs from a folder and is not installed", "warn", remedy)
    for name in sorted(_requirements(DISTRIBUTION, "")):
        version = _version(name)
        if version is None:
            yield Finding("packages", name, "missing", "fail", f"pip install -c constraints.txt {name}")
    for module in filter(installed, NATIVE):
        try:
            importlib.import_module(module)
        except Exception as error:
            remedy = f"reinstall it: pip install --force-reinstall --no-deps -c constraints.txt {module}"
            yield Finding("packages", module, f"cannot be imported: {error}", "fail", remedy)
    found = 0
    for package in TOGETHER:
        version = _version(package)
        if version is None:
            continue
        found += 1
        clashes = sorted(_clashes(package))
        if clashes:
            remedy = "pip install -c constraints.txt " + " ".join(f"'{need}'" for need, _ in clashes)
            what = ", ".join(f"needs {need}, {have} is installed" for need, have in clashes)
            yield Finding("packages", package, f"{version} {what}", "fail", remedy)
        else:
            yield Finding("packages", package, version)


def _extras() -> Iterator[Finding]:
    try:
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in sorted(extras):
        missing = sorted(n for n in _requirements(DISTRIBUTION, extra) if _version(n) is None)
        purpose = PURPOSE.get(extra, "")
        if missing:
            remedy = f"only if you want it: {pip_install(extra)}"
            yield Finding("extras", extra, f"{purpose}; missing {', '.join(missing)}", "note", remedy)
        else:
            yield Finding("extras", extra, f"{purpose}; installed")


def _plugins() -> Iterator[Finding]:
    """What can be named in a config, and which package brings it. Nothing is imported for it."""
    from agentrl import plugins

    for kind in plugins.BUILTIN:
        own = ", ".join(p.name for p in plugins.available(kind) if p.origin == plugins.OWN)
        others = ", ".join(f"{p.name} ({p.origin})" for p in plugins.available(kind) if p.origin != plugins.OWN)
        yield Finding("plug-ins", kind, "; ".join(part for part in (own, others) if part) or "none")
        for p in plugins.hidden(kind):
            remedy = f"give it another name in the entry points of {p.origin}"
            yield Finding(
                "plug-ins", kind, f"{kind} {p.name!r} of {p.origin} is hidden by agentrl's own", "warn", remedy
            )


def _requirements(package: str, extra: str) -> dict[str, str]:
    """Name to version specifier of what `package` needs on this machine, for the extra alone where one is named."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return {}
    out = {}
    for line in lines:
        try:
            need = Requirement(line)
        except InvalidRequirement:
            continue
        always = need.marker is None or need.marker.evaluate({"extra": ""})
        if always if not extra else (not always and need.marker is not None and need.marker.evaluate({"extra": extra})):
            out[need.name] = str(need.specifier)
            for more in need.extras if need.name == package else ():  # an extra made of others
                out |= _requirements(package, more)
    out.pop(package, None)
    return out


def _clashes(package: str) -> Iterator[tuple[str, str]]:
    """(requirement, installed version) of what is installed in a version that `package` does not accept.

    Of agentrl what its extras need counts, too; of other packages it does not: they are not known to be wanted.
    """
    from packaging.specifiers import SpecifierSet

    needs = _requirements(package, "")
    for extra in EXTRAS if package == DISTRIBUTION else ():
        needs |= _requirements(package, extra)
    for name, specifier in needs.items():
        version = _version(name)
        if version is not None and not SpecifierSet(specifier).contains(version, prereleases=True):
            yield f"{name}{specifier}", version


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# --------------------------------------------------------------------------------------------------- the rest


def _variables() -> Iterator[Finding]:
    for name in VARIABLES:
        if name in os.environ:
            yield Finding("variables", name, os.environ[name])
    for name in SECRETS:
        if name in os.environ:
            yield Finding("variables", name, "set (not shown)")


def _sizes() -> Iterator[Finding]:
    """Parameters that fit: fp32 weights, gradients and AdamW's two moments take 16 bytes each; a fifth is kept free."""
    room, where = memory_bytes(), "memory"
    torch = sys.modules.get("torch")  # absent where it cannot be imported, which is reported above
    if torch is not None and torch.cuda.is_available():
        room, where = torch.cuda.get_device_properties(0).total_memory, "the GPU"
    if room is None:
        return
    whole, lora = 0.8 * room / 16 / 1e9, 0.8 * room / 4.5 / 1e9
    value = f"about {whole:.1f} B parameters whole, {lora:.1f} B with model.lora, in {room / GIB:.0f} GiB of {where}"
    yield Finding("models", "what fits", value, "ok", "")
