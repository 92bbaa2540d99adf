"""Alarms on their way to a receiver on this machine: slow, failing, refusing, redirecting, resetting, picky."""

import email.utils
import json
import logging
import math
import socket
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from agentrl.monitors import bodies, sinks
from agentrl.monitors.delivery import LONGEST_WAIT_S, Webhook, seconds_of
from agentrl.types import Alarm

QUICK = (0.01, 0.02)


def alarm(number=7, level="warn", value=0.5, message="message"):
    signals = {"x": {"value": value, "threshold": 1.0}}
    return Alarm(f"r-{number}", number, "r", level, message, signals, groups=["q1"], rollouts=["s1"], remedy="Set a=b.")


def test_json_with_who_where_and_when(receiver, monkeypatch):
    monkeypatch.setenv("AGENTRL_DASHBOARD_URL", "https://dash.example.org/")
    hook = Webhook(receiver.url, extra=bodies.about(run="a/b c", source="x.jsonl"))
    hook(alarm(value=math.nan))
    hook.close()
    [got] = receiver.got
    assert (got["rule"], got["run"], got["source"], got["host"]) == ("r", "a/b c", "x.jsonl", socket.gethostname())
    assert time.strptime(got["time"], "%Y-%m-%dT%H:%M:%SZ") and got["signals"]["x"]["value"] is None
    assert got["url"] == "https://dash.example.org/run?run=a%2Fb%20c&alarm=r-7"
    assert "WARN r at step 7 of a/b c on" in got["text"] and got["text"] == got["content"]
    assert receiver.headers[0]["Idempotency-Key"] == "r-7"
    assert (hook.sent, hook.failed, hook.dropped, hook.undelivered) == (1, 0, 0, 0)


def test_a_receiver_that_fails_in_half_of_its_calls_gets_every_alarm_once_in_order(receiver):
    receiver.answer = lambda n, body: (503 if n % 2 == 0 else 200, {}, "")
    hook = Webhook(receiver.url, pauses=QUICK)
    for number in range(20):
        hook(alarm(number))
    hook.close()
    assert [b["step"] for b in receiver.got] == list(range(20)) and len(receiver.tries) == 40
    assert hook.undelivered == 0


@pytest.mark.parametrize("status", [0, 408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(receiver, status):
    receiver.answer = lambda n, body: (status if n < 3 else 204, {}, "")
    hook = Webhook(receiver.url, pauses=QUICK)
    hook(alarm())
    hook.close()
    assert len(receiver.got) == 1 and len(receiver.tries) == 4 and hook.undelivered == 0


def test_the_pauses_grow(receiver):
    times = []

    def answer(n, body):
        times.append(time.monotonic())
        return (503 if n < 4 else 200, {}, "")

    receiver.answer = answer
    hook = Webhook(receiver.url, pauses=(0.05, 0.1, 0.2))
    hook(alarm())
    hook.close()
    gaps = [b - a for a, b in pairwise(times)]
    assert all(gap >= wanted for gap, wanted in zip(gaps, (0.05, 0.1, 0.2, 0.2))) and len(gaps) == 4


def test_retry_after_is_kept_to(receiver):
    times = []

    def answer(n, body):
        times.append(time.monotonic())
        return (429 if n == 0 else 200, {"Retry-After": "1"}, "")

    receiver.answer = answer
    hook = Webhook(receiver.url, pauses=QUICK)
    hook(alarm())
    hook.close()
    assert times[1] - times[0] >= 1.0 and hook.sent == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("", 0), ("7", 7), ("2.5", 2.5), ("-3", 0), ("nan", 0), ("soon", 0), ("1e99", LONGEST_WAIT_S)],
)
def test_retry_after_as_a_number(text, wanted):
    assert seconds_of(text) == wanted


def test_retry_after_as_a_date():
    assert seconds_of(email.utils.formatdate(1000.0, usegmt=True), now=940.0) == 60.0
    assert seconds_of(email.utils.formatdate(1000.0, usegmt=True), now=2000.0) == 0.0


def test_a_refusal_is_final_and_its_reason_is_kept(receiver, caplog):
    receiver.answer = lambda n, body: (400, {}, "no_text\x1b[31m in the payload")
    hook = Webhook(receiver.url + "/s3cret", pauses=QUICK)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            hook(alarm(number))
        hook.close()
    assert len(receiver.tries) == 3 and hook.undelivered == 3 and len(caplog.records) == 1
    assert hook.reason == "it answered 400: no_text?[31m in the payload"
    assert "no_text" in caplog.text and "s3cret" not in caplog.text


def test_a_redirect_is_refused_and_named(receiver):
    receiver.answer = lambda n, body: (307, {"Location": "http://elsewhere.invalid/x"}, "")
    hook = Webhook(receiver.url, pauses=QUICK)
    hook(alarm())
    hook.close()
    assert hook.undelivered == 1 and len(receiver.tries) == 1
    assert "redirect to elsewhere.invalid" in hook.reason


def test_a_receiver_that_hangs_is_counted_and_named(receiver):
    receiver.gate.clear()
    hook = Webhook(receiver.url, timeout_s=0.2, pauses=QUICK)
    hook(alarm())
    begun = time.monotonic()
    hook.close(timeout_s=1.0)
    assert time.monotonic() - begun < 5 and hook.undelivered == 1
    assert hook.reason == "no answer within 0.2 s"


def test_a_receiver_that_sends_its_answer_drop_by_drop_does_not_hold_up_the_end():
    listening = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip():
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 500 No\r\n")
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"X: y\r\n")
                except OSError:
                    return

    threading.Thread(target=drip, daemon=True).start()
    hook = Webhook(f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout_s=1.0)
    hook(alarm())
    begun = time.monotonic()
    hook.close(timeout_s=1.0)
    seconds, undelivered, reason = time.monotonic() - begun, hook.undelivered, hook.reason
    stop.set()  # resets the connection, which is another reason
    listening.close()
    assert seconds < 5 and undelivered == 1 and "no answer" in reason


def test_a_slow_receiver_never_blocks_and_the_oldest_are_dropped(receiver):
    receiver.gate.clear()
    hook = Webhook(receiver.url, capacity=3)
    for number in range(20):
        hook(alarm(number))  # would wait for ever if it waited for the gate
    assert hook.dropped >= 16
    receiver.gate.set()
    hook.close()
    assert hook.sent + hook.dropped == 20 == hook.total and hook.undelivered == hook.dropped


def test_nobody_there():
    hook = Webhook("http://127.0.0.1:9/x", timeout_s=0.5, pauses=QUICK)
    hook(alarm())
    hook.close(timeout_s=0.5)
    assert hook.undelivered == 1 and "ConnectError" in hook.reason
    with pytest.raises(ValueError, match="must start with http"):
        Webhook("ftp://x")


def test_an_alarm_that_waits_for_its_next_try_is_still_tried_at_the_end(receiver):
    receiver.answer = lambda n, body: (503 if n == 0 else 200, {}, "")
    hook = Webhook(receiver.url, pauses=(0.5,))
    hook(alarm())
    hook.close(timeout_s=5)
    assert hook.undelivered == 0


# --------------------------------------------------------------------------------------------------------------- bodies


def fields(message="is <bad> & @everyone", run="r"):
    return bodies.facts(alarm(message=message), {"run": run, "host": "h"}, now=0.0)


def test_the_text():
    lines = bodies.text(fields("x")).split("\n")
    assert lines == ["WARN r at step 7 of r on h (1970-01-01T00:00:00Z)", "x", "Set a=b."]


def test_the_cause_is_posted_as_a_field_and_in_the_text():
    named = replace(alarm(), story="length explosion")
    fields = bodies.facts(named, {})
    assert fields["story"] == "length explosion" and "\nCause: length explosion\n" in bodies.text(fields)
    said = bodies.facts(replace(named, message="Story: length explosion: 9 times"), {})
    assert bodies.text(said).count("length explosion") == 1


def test_slack_and_google_chat_get_a_text_and_nothing_else():
    slack = bodies.body("https://hooks.slack.com/services/T/B/x", fields())
    assert list(slack) == ["text"] and "is &lt;bad&gt; &amp; @everyone" in slack["text"]
    chat = bodies.body("https://chat.googleapis.com/v1/spaces/x/messages?key=k", fields())
    assert list(chat) == ["text"] and "is <bad> &" in chat["text"]


def test_discord_gets_content_that_mentions_nobody():
    body = bodies.body("https://discord.com/api/webhooks/1/x", fields("m" * 5000))
    assert set(body) == {"content", "allowed_mentions"} and body["allowed_mentions"] == {"parse": []}
    assert len(body["content"]) < 2000 and body["content"].endswith("…")


def test_teams_gets_a_card():
    body = bodies.body("https://x.webhook.office.com/webhookb2/x", fields("hello"))
    [card] = body["attachments"]
    assert card["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [b["text"] for b in card["content"]["body"]][1] == "hello"


def test_a_host_that_only_looks_like_slack_gets_everything():
    body = bodies.body("https://hooks.slack.com.evil.example/x", fields())
    assert body["rule"] == "r" and body["text"] and body["content"]


def test_names_from_a_log_drive_no_terminal_and_turn_no_text():
    text = bodies.text(fields("a\x1b[2Jb\u202ec\nd", run="x\r\ny"))
    assert text.split("\n")[0].startswith("WARN r at step 7 of x??y") and text.split("\n")[1] == "a?[2Jb?c?d"
    json.dumps(bodies.body("http://x/", fields("\ud800")), ensure_ascii=False).encode("utf-8", "replace")


def test_what_somebody_else_s_sink_fails_at_is_counted():
    def broken(alarm):
        raise OSError("full")

    guarded = sinks.Guarded(broken, "mine")
    guarded(alarm())
    assert (guarded.undelivered, guarded.total, guarded.reason) == (1, 1, "OSError: full")
