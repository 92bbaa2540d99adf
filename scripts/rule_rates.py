"""How often each rule speaks on recorded runs: healthy ones, where it should not, and the others.

    python scripts/rule_rates.py                                              # our own 61 runs
    python scripts/rule_rates.py --logs FOLDER --labels labels.json           # other people's runs, too
    python scripts/rule_rates.py --causes                                    # the provoked causes of docs/alarms.md

For each rule: in how many runs it had what it looks at (any of `LOOKS_AT` in ten rows; in one for the ills of the first
row), and in how many of the healthy, fallen and other runs (harsh, low, dipped, noisy) it raised a warning or more, and
information at most.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import monitor_table
import real_table

from agentrl.monitors import Monitor, StepRecord

#: rule -> the signals any of which it can speak from.
LOOKS_AT: dict[str, tuple[str, ...]] = {
    "collapse": ("reward",),
    "death_spiral": ("delta_correct",),
    "non_finite": ("loss", "grad_norm", "entropy", "reward"),
    "entropy_collapse": ("entropy",),
    "reward_hacking": ("correct_rate", "answer_in_retrieved", "valid_search_ratio"),
    "mismatch": ("mismatch", "kl_sampler"),
    "tool_outage": ("failed_rollouts", "tool_errors", "tool_latency_s"),
    "invalid_actions": ("valid_action_ratio",),
    "truncation": ("cut_share", "truncated_share"),
    "gradient_spike": ("grad_norm",),
    "no_signal": ("groups_equal", "groups_all_correct", "groups_all_wrong", "reward_group_std"),
    "validation": ("validation",),
    "source_lost": ("validation_at_zero",),
    "template_collapse": ("question_information",),
    "same_responses": ("diversity_within",),
    "control_tokens": ("control_tokens",),
    "cut_from_start": ("cut_share", "truncated_share"),
    "equal_from_start": ("groups_equal", "groups_all_correct", "groups_all_wrong"),
    "no_reward": ("reward",),
    "no_answer": ("answered_share",),
    "no_valid_action": ("valid_action_ratio",),
    "no_entropy": ("entropy",),
    "no_gradient": ("grad_norm",),
    "no_learning_rate": ("lr",),
}
ROWS = {"validation": 3, "source_lost": 4} | {n: 1 for n in LOOKS_AT if n.startswith("no_") or n.endswith("_start")}
#: file of `scripts/provoke.py` -> what was done
CAUSES = {
    "control": "nothing (control)",
    "retriever_empty": "retriever finds nothing",
    "passages_replaced": "passages replaced by others",
    "answers_shuffled": "gold answers shuffled",
    "lr_x10": "learning rate × 10",
    "nan": "a weight becomes NaN",
    "sampler_differs": "sampler's logits × 1.25",
    "hackable_reward": "any answer is rewarded",
    "short_turns": "six tokens a turn",
    "stale_weights": "sampler keeps the weights of step 25",
    "entropy_bonus_reversed": "entropy bonus of the wrong sign (−0.3)",
    "questions_exhausted": "the same twelve solved questions at every step",
}
PROVOKED_AT = 25
KINDS = ("healthy", "fell", "other")
Spoken = dict[str, str]  # rule -> its worst level in a run


def spoken(records: Iterable[StepRecord], clipped_in_loss: bool = False) -> tuple[Spoken, Counter[str]]:
    """What the rules raised in a run, and in how many rows it has each signal."""
    monitor, worst, rows = Monitor(), Spoken(), Counter[str]()
    monitor.clipped_in_loss = clipped_in_loss
    for record in records:
        rows.update(record.metrics.keys())
        for alarm in monitor.observe(record):
            if worst.get(alarm.rule) in (None, "info"):
                worst[alarm.rule] = "info" if alarm.level == "info" else "warn"
    return worst, rows


def table(runs: list[tuple[str, Spoken, Counter[str]]]) -> list[str]:
    """A row for each rule of (kind, what was raised, rows with each signal)."""
    total = Counter(kind for kind, _, _ in runs)
    head = " | ".join(f"{kind} ({total[kind]}): warned, informed" for kind in KINDS)
    out = [f"| rule | has its signals | {head} |", "|---" * (2 + len(KINDS)) + "|"]
    for rule, signals in LOOKS_AT.items():
        could = sum(max(rows[s] for s in signals) >= ROWS.get(rule, 10) for _, _, rows in runs)
        cells = []
        for kind in KINDS:
            raised = Counter(levels.get(rule) for k, levels, _ in runs if k == kind)
            cells.append(f"{raised['warn']}, {raised['info']}")
        out.append(f"| {rule} | {could} of {len(runs)} | {' | '.join(cells)} |")
    return out


def provoked(folder: Path) -> list[str]:
    """A row for each provoked cause: the first story, how many steps after it, and the other rules that spoke."""
    out = []
    for file, done in CAUSES.items():
        monitor, alarms = Monitor(), []
        with open(folder / f"{file}.csv", newline="") as handle:
            for row in csv.DictReader(handle):
                values = {k: float(v) for k, v in row.items() if v}
                alarms += monitor.observe(StepRecord(int(values.pop("step")), values))
        named = next((a for a in alarms if a.story), None)
        story = "none" if named is None else f"{named.story}, {named.step - PROVOKED_AT}"
        others = dict.fromkeys(a.rule for a in alarms if named is None or a.rule != named.rule)
        out.append(f"| {done} | {story} | {', '.join(others) or 'none'} |")
    return out


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, help="other people's runs, JSONL, with --labels")
    parser.add_argument("--labels", type=Path, help="what happened in them")
    parser.add_argument("--causes", action="store_true", help="the provoked causes alone")
    args = parser.parse_args()
    if args.causes:
        print("\n".join(provoked(monitor_table.DATA / "causes")))
        return
    own = monitor_table.load(monitor_table.DATA)
    print("Our own runs\n" + "\n".join(table([(_kind(r.kind), *spoken(r.records)) for r in own])))
    if args.logs and args.labels:
        others = real_table.load(args.logs, args.labels)
        judged = [(_kind(r.label["kind"]), *spoken(r.records, r.clipped_in_loss)) for r in others]
        print("\nOther people's runs\n" + "\n".join(table(judged)))


def _kind(kind: str) -> str:
    return kind if kind in KINDS else "other"


if __name__ == "__main__":
    main()
