"""Decisions of the guard, step by step."""

from __future__ import annotations

import json

from agentrl.config import GuardConfig
from agentrl.monitors.stop_rule import Guard, as_row
from agentrl.types import Alarm, StepRecord


def alarm(step: int, level: str, rule: str = "collapse") -> Alarm:
    return Alarm(f"{rule}-{step}", step, rule, level, f"{rule} at {step}")  # type: ignore[arg-type]


def record(step: int, **metrics: float) -> StepRecord:
    return StepRecord(step, metrics)


def test_each_warning_protects_more_and_weight_has_a_ceiling():
    guard = Guard(GuardConfig(enabled=True, llds_weight=0.3, lr_factor=0.5))
    first = guard.decide(record(10), [alarm(10, "warn")], None)
    assert first is not None and (first.kind, first.llds_weight, first.lr_scale) == ("protect", 0.3, 0.5)
    second = guard.decide(record(20), [alarm(20, "warn")], None)
    assert second is not None and (second.llds_weight, second.lr_scale) == (0.6, 0.25)
    third = guard.decide(record(30), [alarm(30, "warn")], None)
    assert third is not None and third.llds_weight == 1.0  # not 1.2


def test_alarms_of_other_rules_and_infos_do_nothing():
    guard = Guard(GuardConfig(enabled=True))
    assert guard.decide(record(5), [alarm(5, "warn", "tool_outage"), alarm(5, "info")], None) is None
    assert guard.lr_scale == 1.0 and guard.llds_weight == 0.0


def test_critical_goes_back_before_the_decay_and_without_one_before_the_first_warning():
    guard = Guard(GuardConfig(enabled=True))
    guard.decide(record(40), [alarm(40, "warn")], 35)
    action = guard.decide(record(60), [alarm(60, "critical")], 48)  # the reward may have been at its best at 55
    assert action is not None and action.kind == "rollback" and action.back_to == 48
    assert as_row(action)["back_to"] == 48
    guard.decide(record(70), [alarm(70, "warn")], None)
    guard.decide(record(80), [alarm(80, "warn")], None)
    later = guard.decide(record(90), [alarm(90, "critical")], None)
    assert later is not None and later.back_to == 70  # the warning of 40 is forgotten


def test_warnings_can_be_left_alone_and_still_mark_where_it_began():
    guard = Guard(GuardConfig(enabled=True, on_warn="nothing"))
    assert guard.decide(record(40), [alarm(40, "warn")], None) is None and guard.lr_scale == 1.0
    action = guard.decide(record(60), [alarm(60, "critical")], None)
    assert action is not None and (action.kind, action.back_to, action.llds_weight) == ("rollback", 40, 0.2)


def test_roll_backs_end_in_a_stop():
    guard = Guard(GuardConfig(enabled=True, max_rollbacks=1))
    assert guard.decide(record(10), [alarm(10, "critical")], 8).kind == "rollback"  # type: ignore[union-attr]
    action = guard.decide(record(30), [alarm(30, "critical")], 25)
    assert action is not None and action.kind == "stop" and "did not help" in action.reason


def test_on_critical_stop_and_protect():
    stop = Guard(GuardConfig(enabled=True, on_critical="stop"))
    assert stop.decide(record(3), [alarm(3, "critical")], None).kind == "stop"  # type: ignore[union-attr]
    protect = Guard(GuardConfig(enabled=True, on_critical="protect"))
    assert protect.decide(record(3), [alarm(3, "critical")], None).kind == "protect"  # type: ignore[union-attr]


def test_quiet_steps_take_protections_back_one_by_one():
    guard = Guard(GuardConfig(enabled=True, release_after=3, llds_weight=0.2, patience=0))
    guard.decide(record(0), [alarm(0, "warn")], None)
    guard.decide(record(1), [alarm(1, "warn")], None)
    kinds = [
        (a.kind, a.llds_weight, a.lr_scale) if (a := guard.decide(record(s), [], None)) else None for s in range(2, 9)
    ]
    assert kinds == [None, None, ("release", 0.2, 0.5), None, None, ("release", 0.0, 1.0), None]


def test_a_protection_is_given_time_before_another_warning_counts_but_critical_always_does():
    guard = Guard(GuardConfig(enabled=True, patience=5))
    kinds = [
        a.kind if (a := guard.decide(record(s), [alarm(s, level, rule)], None)) else None
        for s, level, rule in (
            (10, "warn", "collapse"),
            (11, "warn", "death_spiral"),
            (14, "warn", "collapse"),
            (15, "warn", "collapse"),
            (16, "critical", "collapse"),
        )
    ]
    assert kinds == ["protect", None, None, "protect", "rollback"]


def test_a_warning_that_came_too_soon_counts_later_if_its_cause_lasts():
    for lasts, expected in ((["death_spiral"], [20, 30]), (["collapse"], [20])):
        guard = Guard(GuardConfig(enabled=True, patience=10))
        guard.decide(record(20), [alarm(20, "warn")], None, ["collapse"])
        guard.decide(record(25), [alarm(25, "warn", "death_spiral")], None, ["collapse", "death_spiral"])
        acts = [20]
        for step in range(26, 60):
            if step == 28:  # a resume in between
                state, guard = json.loads(json.dumps(guard.state_dict())), Guard(guard.config)
                guard.load_state_dict(state)
            action = guard.decide(record(step), [], None, lasts)
            if action is not None:
                assert action.reason == "death_spiral at 25"
                acts.append(step)
        assert acts == expected


def test_a_warning_that_ended_long_ago_does_not_say_how_far_to_go_back():
    guard = Guard(GuardConfig(enabled=True))
    guard.decide(record(30), [alarm(30, "warn")], None, ["collapse"])
    for step in range(31, 900):
        guard.decide(record(step), [], None, ["collapse"] if step < 40 else [])
    action = guard.decide(record(900), [alarm(900, "critical")], None, ["collapse"])
    assert action is not None and action.back_to == 900


def test_a_schedule_that_rises_does_not_undo_the_protection():
    guard = Guard(GuardConfig(enabled=True, lr_factor=0.5, release_after=1))
    guard.decide(record(10, lr=1e-3), [alarm(10, "warn")], None, ["collapse"])
    assert [guard.scale_of(lr) * lr for lr in (4e-4, 1e-3, 2e-3, 8e-3)] == [2e-4, 5e-4, 5e-4, 5e-4]
    guard.decide(record(20, lr=5e-4), [alarm(20, "warn")], None, ["collapse"])  # 5e-4 was too large as well
    assert guard.scale_of(2e-3) * 2e-3 == 2.5e-4
    assert [guard.decide(record(s), [], None).lr_ceiling for s in (21, 22)] == [5e-4, None]  # type: ignore[union-attr]
    assert guard.scale_of(2e-3) == 1.0


def test_an_alarm_that_lasts_is_not_quiet():
    guard = Guard(GuardConfig(enabled=True, release_after=2))
    guard.decide(record(0), [alarm(0, "warn")], None, ["collapse"])
    lasting = [guard.decide(record(s), [], None, ["collapse"]) for s in range(1, 9)]
    assert lasting == [None] * 8
    ended = [guard.decide(record(s), [], None, ["tool_outage"]) for s in (9, 10)]  # not one of the guard's rules
    assert ended[0] is None and ended[1] is not None and ended[1].kind == "release"


def test_a_restored_guard_decides_the_same():
    config = GuardConfig(enabled=True, release_after=2)
    one, two = Guard(config), Guard(config)
    one.decide(record(0), [alarm(0, "warn")], None)
    one.decide(record(1), [], None)
    two.load_state_dict(one.state_dict())
    for s in (2, 3, 4):
        assert one.decide(record(s), [], None) == two.decide(record(s), [], None)
