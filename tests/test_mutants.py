"""The mutation script: what is explained, what is drawn, and that the code it hands to mutmut does the same."""

import importlib.util
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script():
    import sys

    spec = importlib.util.spec_from_file_location("mutants_script", ROOT / "scripts" / "mutants.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["mutants_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants_script"]


SOURCE = '''
from dataclasses import dataclass, field
from functools import cache

CALLS = []

def note(word):
    def wrap(f):
        CALLS.append(word)
        return lambda x: (word, f(x))
    return wrap

@note("é")
@note(
    "b"
)
def twice(x):
    """ü"""
    return 2 * x

PAIR = (lambda x: "é" + x, lambda x, *, y=3: (
    x + y
))

@dataclass(frozen=True)
class Box:
    side: int
    found: list = field(default_factory=lambda: [1])

    @property
    def area(self):
        return (lambda s: s * s)(self.side)

    @staticmethod
    def unit():
        return Box(1)
'''


def test_the_code_for_mutmut_does_the_same(script):
    made = script.plain(SOURCE)
    assert "@note" not in made and "@property" not in made and "@staticmethod" in made
    assert made.count("lambda") == 2  # those inside functions
    for text in (SOURCE, made):
        m = types.ModuleType("m")
        exec(compile(text, "m", "exec"), m.__dict__)
        assert m.twice(3) == ("é", ("b", 6)) and m.CALLS == ["b", "é"]
        assert m.PAIR[0]("x") == "éx" and m.PAIR[1](1) == 4 and m.PAIR[1](1, y=1) == 2
        assert m.Box(4).area == 16 and m.Box(4).found == [1] and m.Box.unit().area == 1


@pytest.mark.slow
def test_every_file_can_be_spelled_out(script):
    files = [path for folder in ("agentrl", "envs", "retriever") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        compile(script.plain(path.read_text()), str(path), "exec")


def test_an_explanation_covers_one_change_of_one_function(script):
    [one] = script.read_explanations("# a comment\n\na/b.py f: x + 1 ==> x + 2 :: nobody reads the last column\n")
    assert one.why == "nobody reads the last column"
    assert one.covers("a/b.py", "f", "y = g(x + 1, x + 1)", "y = g(x + 1, x + 2)")
    assert one.covers("a/b.py", "f", "y = g(x\n+ 1)", "y = g(x + 2)")
    assert not one.covers("a/b.py", "f", "y = g(x + 1)", "y = g(x + 3)")
    assert not one.covers("a/b.py", "g", "y = g(x + 1)", "y = g(x + 2)")
    assert not one.covers("a/c.py", "f", "y = g(x + 1)", "y = g(x + 2)")
    [gone] = script.read_explanations("* *: , stable=True ==> , :: ids are unique")
    assert gone.covers("any.py", "any", "sort(a, stable=True)", "sort(a, )")
    with pytest.raises(ValueError, match="line 1 is 'f: a ==> b'; write: FILE FUNCTION"):
        script.read_explanations("f: a ==> b")
    assert script.read_explanations(script.EXPLANATIONS.read_text())


def test_the_sample_depends_on_the_seed_alone(script):
    every = [f"m{i}" for i in range(100)]
    assert script.draw(every, 10, 0) == script.draw(reversed(every), 10, 0) != script.draw(every, 10, 1)
    assert len(script.draw(every, 10, 0)) == 10 and script.draw(every[:3], 10, 0) == every[:3]
