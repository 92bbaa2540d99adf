"""Units of measurement at the end of an answer. One unit on one side only is ignored; two units must be the same."""

from __future__ import annotations

import re
from functools import lru_cache

Unit = tuple[tuple[str, int], ...]  # (name, power), sorted; () is "units", which say nothing

_NAMES = """
mm millimeter millimeters millimetre millimetres
cm centimeter centimeters centimetre centimetres
m meter meters metre metres
km kilometer kilometers kilometre kilometres
nm nanometer nanometers
µm \\mum micron microns micrometer micrometers
Å angstrom angstroms \\AA
inch inches in
ft foot feet
yd yard yards
mile miles mi
AU au
pc parsec parsecs
kpc kiloparsec kiloparsecs
Mpc megaparsec megaparsecs
ly lightyear lightyears
mg milligram milligrams
g gram grams
kg kilogram kilograms
lb lbs pound pounds
oz ounce ounces
ton tons tonne tonnes
s sec secs second seconds
ms millisecond milliseconds
min mins minute minutes
h hr hrs hour hours
day days
week weeks
month months
yr year years
L l liter liters litre litres
mL ml milliliter milliliters
gallon gallons
cup cups
quart quarts
J joule joules
kJ kilojoule kilojoules
eV
keV
MeV
GeV
erg ergs
cal calorie calories
W watt watts
kW kilowatt kilowatts
N newton newtons
dyn dyne dynes
Pa pascal pascals
K kelvin kelvins
V volt volts
A amp amps ampere amperes
C coulomb coulombs
T tesla teslas
F farad farads
H henry
Wb weber
ohm ohms \\Omega
Hz hertz
kHz
MHz
GHz
mol mole moles
M molar
mph
dollar dollars
cent cents
euro euros
degree degrees deg ^\\circ
rad radian radians
^\\circC
^\\circF
% \\% percent
"""
NAMES = {name: line.split()[0] for line in _NAMES.strip().splitlines() for name in line.split()}
PERCENT: Unit = (("%", 1),)
DEGREE: Unit = (("degree", 1),)
_BRIEF = {name for name in NAMES if len(name) == 1 and name.isalpha()} | {"in"}  # words and variables too
_COUNT_NOUN = re.compile(r"[a-z]{3,20}")
_NO_NOUNS = """
and not
nor more less least most than greater fewer above below over under the but false true even odd wrong any all none
every half dozen hundred thousand million billion trillion twice squared cubed factorial base mod prime plus minus times
pairs sin cos tan cot sec csc log exp arcsin arccos arctan sinh cosh tanh
"""
_NO_NOUN = frozenset(_NO_NOUNS.split())
_END = re.compile(
    r"^(.*?[\d}).!]|.*?\\pi|.*?\\infty)\s*((?:[*/]|\\cdot|\\times|\s|\^\{?-?\d\}?|\\text\{(?:[^{}^]|\^\{-?\d\}|\^\d)*\}|\\%|\^\\circ|"
    r"\\AA|\\Omega|\\mu|[a-zA-Zµ%Å-])+)$",
    re.DOTALL,
)
_TEXT_COMMAND = re.compile(r"\\(?:textrm|textnormal|mathrm|mbox|operatorname|rm)(?=\s*\{)")
_QUOTIENT = re.compile(r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}")
_TOKEN = re.compile(
    r"\^\\circ ?[CF](?![a-z])|\^\\circ|\\%|\\AA|\\Omega|\\mum|[a-zA-Zµ%Å]+|\^\{?(-?\d)\}?|/|\s+|[*-]|\\cdot|\\times"
)


def split_unit(text: str) -> tuple[str, Unit | None]:
    """(the rest, its unit) of an answer whose signs are spelt as `tidy.spell` does it; None where there is no unit.

    A single letter is a unit inside a text command and in a quotient (`5 m/s`); `5m` alone is five times m. A word
    inside a text command that is no unit counts what there is (`12\\text{ apples}`).
    """
    text = _TEXT_COMMAND.sub(r"\\text", text)
    text = _QUOTIENT.sub(r"\\text{\1}/\\text{\2}", text)
    match = _END.match(text)
    if match is None:
        return text, None
    rest, tail = match.groups()
    if rest.endswith("}") and "\\text{" in rest and rest.rfind("\\text{") > rest.rfind("}", 0, -1):
        return text, None
    marked = "\\text{" in tail
    plain = tail.replace("\\text{", " ").replace("}", " ") if marked else tail
    plain = re.sub(r"\^\{(-?\d) ", r"^{\1}", plain)
    unit = _parse(plain.strip(), marked)
    return (text, None) if unit is None else (rest.strip(), unit)


@lru_cache(maxsize=4096)
def _parse(text: str, marked: bool) -> Unit | None:
    powers: dict[str, int] = {}
    sign, position, last, factor = 1, 0, "", 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        token, position = match.group().replace(" ", ""), match.end()
        if token in ("", "*", "-", "\\cdot", "\\times"):
            continue
        if token in ("/", "per"):
            sign = -1
        elif token in ("square", "sq", "cubic"):
            factor = 3 if token == "cubic" else 2
        elif match.group(1):
            if not last:
                return None
            powers[last] += (int(match.group(1)) - 1) * (1 if powers[last] > 0 else -1)
        elif token in ("unit", "units"):
            last = ""
            factor = 1
        else:
            name = NAMES.get(token) or NAMES.get(token.lower() if len(token) > 2 else token)
            if name is None and marked and _COUNT_NOUN.fullmatch(token) and token not in _NO_NOUN:
                name = token
            if name is None or (token in _BRIEF and not (marked or "/" in text)):
                return None
            powers[name] = powers.get(name, 0) + sign * factor
            last, factor = name, 1
    return tuple(sorted((n, p) for n, p in powers.items() if p))
