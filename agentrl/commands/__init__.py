"""The commands of `agentrl`: a table of names, so that `agentrl --help` and a typo import none of them.

A command is a module with `add_arguments(parser)` and `run(args) -> int`. It imports what is heavy inside `run`: the
help of a command must not wait for torch.
"""

from __future__ import annotations

#: name -> (module, what it does); in the order of `agentrl --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("agentrl.commands.quickstart", "train the built-in search agent, and show what it learned"),
    "real": ("agentrl.commands.real", "train a pretrained model on real facts, and show what it learned"),
    "train": ("agentrl.commands.train", "train from a config file or a shipped config"),
    "resume": ("agentrl.commands.resume", "go on with a run that was stopped or killed"),
    "eval": ("agentrl.commands.eval", "evaluate a run's checkpoint, or a model"),
    "export": ("agentrl.commands.export", "a checkpoint's model as a folder that transformers loads"),
    "rollouts": ("agentrl.commands.rollouts", "read the episodes that a run has stored"),
    "runs": ("agentrl.commands.runs", "list runs: status, reward, how to resume"),
    "alarms": ("agentrl.commands.alarms", "list the alarms of a run, or note that they were seen"),
    "dashboard": ("agentrl.commands.dashboard", "watch your runs in a web browser"),
    "report": ("agentrl.commands.report", "one run as a single HTML file"),
    "watch": ("agentrl.commands.watch", "raise the monitors' alarms on any trainer's log"),
    "import": ("agentrl.commands.importing", "another trainer's log as a run in the dashboard"),
    "env": ("agentrl.commands.env", "environments: list them, check your own, be the agent"),
    "retriever": ("agentrl.commands.retriever", "index a corpus, serve it, search it"),
    "lab": ("agentrl.commands.lab", "likelihood displacement: the papers' experiments on your model and task"),
    "plot": ("agentrl.commands.plot", "figures of the algorithms themselves"),
    "config": ("agentrl.commands.config", "what the keys of a config file mean"),
    "doctor": ("agentrl.commands.doctor", "what is installed, what fits together, what to do about the rest"),
    "completion": ("agentrl.commands.completion", "print a completion script for your shell"),
}

#: Another name of a command.
ALIASES = {"lld": "lab"}
