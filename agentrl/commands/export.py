"""`agentrl export RUN OUT`: a checkpoint's model as a folder that transformers and vLLM load.

A checkpoint has the model in Hugging Face layout already, of either engine. Left out: conversions to other formats.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.commands.eval import step_or_best

if TYPE_CHECKING:
    from agentrl.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", type=Path, help="a run directory, or the folder of one of its checkpoints")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--checkpoint", type=step_or_best, metavar="STEP|best", help="default: the newest")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="the LoRA adapter alone, as peft loads it (default: merged into the model)",
    )
    parser.add_argument("--json", action="store_true", help="the last line is the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Export."""
    from agentrl.config.files import load_config
    from agentrl.console import print_json
    from agentrl.errors import RunError
    from agentrl.runs.checkpoint import checkpoint_at, run_of_checkpoint
    from agentrl.runs.read import find_run

    inside = run_of_checkpoint(args.run)
    if inside is not None and args.checkpoint is None:
        args.run, args.checkpoint = inside
    path = find_run(args.run)
    checkpoint = checkpoint_at(path, args.checkpoint)
    model = checkpoint / "model"
    if not (model / "config.json").is_file() and not (model / "adapter_config.json").is_file():
        raise RunError(
            f"{model} is no model in Hugging Face layout: the engine of this run (a plug-in's) writes another, which "
            "its own tools have to export"
        )
    adapter = not (model / "config.json").is_file()
    if args.adapter and not adapter:
        raise RunError(f"{path} trains all weights, so that there is no adapter to export: leave --adapter out")
    with _new_folder(args.out) as folder:
        if adapter and not args.adapter:
            _merge(load_config(path / "config.yaml").config, path, model, folder)
        else:
            shutil.copytree(model, folder, dirs_exist_ok=True)
    what = "adapter" if args.adapter else "merged model" if adapter else "model"
    if args.json:
        print_json({"out": str(args.out), "checkpoint": str(checkpoint), "what": what})
    else:
        print(f"{args.out}: the {what} of {checkpoint}")
    return 0


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` once it is whole. RunError where `out` holds something."""
    from agentrl.errors import RunError
    from agentrl.runs.files import writing

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunError(f"{out} exists and is not empty: give the name of a new folder")
    part = out.with_name(f".{out.name}.part")
    with writing(out):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            os.replace(part, out)  # an empty folder may be there
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _merge(config: RunConfig, run: Path, adapter: Path, out: Path) -> None:
    """The model that the run began with, with the adapter added to its weights, in fp32."""
    from agentrl.engines.kind import INITIAL
    from agentrl.engines.shared.loading import BUILTIN, load_model, load_tokenizer, load_weights
    from agentrl.train.build import build_world, one_world

    base = run / INITIAL  # there where it was made or warmed up for the run
    settings = config.model.model_copy(update={"device": "cpu"} | ({"path": str(base)} if base.is_dir() else {}))
    if settings.path == BUILTIN:
        tokenizer = one_world({name: build_world(one) for name, one in config.alone().items()}).tokenizer()
    else:
        tokenizer = load_tokenizer(settings)
    model: Any = load_model(settings, tokenizer, config.seed)
    load_weights(model, adapter)
    model.merge_and_unload().save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
