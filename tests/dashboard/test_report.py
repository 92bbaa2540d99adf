import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.dashboard.svg import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, chart, nice_ticks
from agentrl.runs.log import RunLog
from tests.dashboard.conftest import serving
from tests.dashboard.runs import make_run

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


def svg_of(text):
    """The SVG element, which must be well-formed."""
    return ET.fromstring(text[: text.index("</svg>") + 6])


def test_a_line_goes_through_the_corners():
    root = svg_of(chart("t", [Line("a", "#000", [(0, 0.0), (10, 1.0)])]))
    path = next(e.get("d") for e in root.iter("path") if e.get("stroke-width"))
    assert path == f"M{LEFT:.1f} {HEIGHT - 22:.1f}L{WIDTH - RIGHT:.1f} {TOP:.1f}"


def test_bands_and_alarms_lie_where_their_steps_are():
    bands = [{"phase": "II", "from": 5, "to": 10}]
    root = svg_of(
        chart("t", [Line("a", "#000", [(0, 0.0), (10, 1.0)])], bands, [{"step": 5, "level": "warn", "rule": "r"}])
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    assert float(next(root.iter("rect")).get("x")) == pytest.approx(middle)
    mark = next(e.get("d") for e in root.iter("path") if e.get("stroke-dasharray"))
    assert float(re.match(r"M([\d.]+)", mark)[1]) == pytest.approx(middle)


@given(st.lists(st.tuples(st.integers(0, 10**6), NUMBERS), min_size=1, max_size=20), st.text(max_size=10))
def test_any_points_give_well_formed_svg_inside_its_frame(points, name):
    name = "".join(c for c in name if c.isprintable())
    root = svg_of(chart(name, [Line(name, "#123456", sorted(points))]))
    path = next(e.get("d") for e in root.iter("path") if e.get("stroke-width"))
    for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", path):
        assert LEFT - 1 <= float(x) <= WIDTH - RIGHT + 1 and TOP - 1 <= float(y) <= HEIGHT - 21


@given(NUMBERS, NUMBERS)
def test_ticks_are_even_and_cover(a, b):
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high)
    assert len(ticks) >= 2
    gaps = [b - a for a, b in pairwise(ticks)]
    assert all(math.isclose(g, gaps[0], rel_tol=1e-3) for g in gaps)
    if high - low > 1e-6 * max(abs(low), abs(high)) and high - low > 1e-250:
        assert ticks[0] <= low + 1e-6 * gaps[0] and ticks[-1] >= high - 1e-6 * gaps[0]
        assert len(ticks) <= 7


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="no points"):
        chart("t", [])


def agentrl(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "agentrl.cli", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_command_writes_the_file(tmp_path):
    run = make_run(tmp_path, "a", steps=20)
    with RunLog.open(run) as log:
        log.guard_action({"step": 14, "kind": "protect", "reason": "it was time", "llds_weight": 0.2, "lr_scale": 0.5})
    answer = agentrl("report", run)
    assert answer.returncode == 0 and answer.stdout.strip() == str(run / "report.html")
    text = (run / "report.html").read_text()
    assert "it was time" in text and text.count("<svg") >= 8
    assert agentrl("report", run, "--out", "-").stdout.startswith("<!doctype html>")


def test_command_explains_what_is_no_run(tmp_path):
    make_run(tmp_path, "alpha", steps=2)
    answer = agentrl("report", tmp_path / "alpah")
    assert answer.returncode == 2 and "did you mean 'alpha'" in answer.stderr


def test_dashboard_of_one_run_opens_its_page(tmp_path):
    run = make_run(tmp_path, "a b", steps=2)
    with serving(run) as url:
        assert url.endswith("/run?run=a%20b")
