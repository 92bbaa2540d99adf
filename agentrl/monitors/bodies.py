"""What is posted about an alarm: one text for people, and the body that a receiver takes.

Slack, Google Chat and Teams refuse or show nothing without a text of theirs, Discord wants `content`; Google Chat also
refuses fields that it does not know. Who takes what is decided by the host's name alone. Every other receiver gets all
fields of the alarm, with `text` and `content` among them, which Mattermost, Rocket.Chat, Telegram and others take too.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import quote, urlsplit

from agentrl.types import Alarm

DASHBOARD_VARIABLE = "AGENTRL_DASHBOARD_URL"  # where people reach the dashboard
LONGEST = 1900  # characters of a text; Discord takes 2000


def as_json(alarm: Alarm) -> str:
    """One line of strict JSON; a value that is not finite becomes null, because JSON has no word for it."""
    return json.dumps(_plain(alarm), allow_nan=False, ensure_ascii=False)


def _plain(alarm: Alarm) -> dict[str, Any]:
    plain = asdict(alarm)
    for pair in plain["signals"].values():
        pair.update({k: None for k, v in pair.items() if isinstance(v, float) and not math.isfinite(v)})
    return plain


def about(run: str = "", source: str = "") -> dict[str, Any]:
    """Whose alarms these are: run, source, this host, and the dashboard's address where the environment has it."""
    import socket  # for who posts

    known = {"run": run, "source": source, "host": socket.gethostname()}
    known["dashboard"] = os.environ.get(DASHBOARD_VARIABLE, "").rstrip("/")
    return {k: v for k, v in known.items() if v}


def facts(alarm: Alarm, whose: Mapping[str, Any], now: float | None = None) -> dict[str, Any]:
    """All fields of the alarm, whose it is, and when: UTC, to the second."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    out = {**whose, **_plain(alarm), "time": when}
    if link := _link(alarm, whose):
        out["url"] = link
    return out


def text(fields: Mapping[str, Any]) -> str:
    """What a person reads: level, rule, step, run and host; what was seen; what to do; where to look."""
    where = f" of {fields['run']}" if fields.get("run") else ""
    host = f" on {fields['host']}" if fields.get("host") else ""
    lines = [
        f"{str(fields['level']).upper()} {fields['rule']} at step {fields['step']}{where}{host} ({fields['time']})",
        str(fields["message"]),
    ]
    lines += cause(fields)
    lines += [str(fields[name]) for name in ("remedy", "url") if fields.get(name)]
    whole = "\n".join(map(_visible, lines))
    return whole if len(whole) <= LONGEST else whole[: LONGEST - 1] + "…"


def cause(fields: Mapping[str, Any]) -> list[str]:
    """The line that names the cause that fits; none where no cause is named, or the message does."""
    story = str(fields.get("story") or "")
    return [f"Cause: {story}"] if story and story not in str(fields.get("message")) else []


def body(url: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What to post to `url`. Names in a log are hostile: they mention nobody and link nowhere in a chat."""
    said, host = text(fields), (urlsplit(url).hostname or "").lower()
    if _is(host, "slack.com", "slack-gov.com"):
        return {"text": said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if _is(host, "discord.com", "discordapp.com"):
        return {"content": said, "allowed_mentions": {"parse": []}}
    if _is(host, "chat.googleapis.com"):
        return {"text": said}
    if _is(host, "webhook.office.com", "logic.azure.com", "powerplatform.com"):
        return {"type": "message", "attachments": [_card(said)]}
    return {**fields, "text": said, "content": said, "allowed_mentions": {"parse": []}}


def _card(said: str) -> dict[str, Any]:
    blocks = [{"type": "TextBlock", "text": line, "wrap": True} for line in said.split("\n")]
    card = {"type": "AdaptiveCard", "version": "1.4", "body": blocks}
    return {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}


def _is(host: str, *names: str) -> bool:
    return any(host == name or host.endswith(f".{name}") for name in names)


def _link(alarm: Alarm, whose: Mapping[str, Any]) -> str:
    base, run = whose.get("dashboard"), whose.get("run")
    if not base:
        return ""
    return f"{base}/run?run={quote(str(run), safe='')}&alarm={quote(alarm.id, safe='')}" if run else f"{base}/"


def _visible(line: str) -> str:
    """Without control characters and what turns the direction of writing."""
    return "".join(c if c.isprintable() else "?" for c in line)
