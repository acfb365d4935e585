"""What each LLM is asked: request i of a kind, drawn by seeded hashes from what it is about.

A request is a JSON dict: `request` (its id, `<llm>/<kind>/<i>`), `turn` (i), `language` (ISO 639-3
of what is written; of the query where the document's differs) and the kind's knobs, which are drawn
apart from each other (after arXiv 2401.00368, appendix C, and arXiv 2506.05176, appendix A). It is
the same whatever range is asked for, on any machine.

Some kinds are drawn from seeds: places of documents or queries (`places`), or tasks. Request i
takes seed i; when there are fewer seeds than requests they are taken again, and every knob moves on
by one. For that, as many seeds must have been sought as the range has, unless there are no more.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datagen.schema import UserError
from datagen.synthesize.knobs import (
    ASPECTS,
    CLARITIES,
    DIFFICULTIES,
    FLAWS,
    HIGH_SCORES,
    LENGTHS,
    LOW_SCORES,
    ONE_CALL_TYPES,
    PROGRAMS,
    QUERY_TYPES,
    QUERY_WORDS,
    RARITIES,
    SHORT_WORDS,
    TEXT_WORDS,
    UNITS,
    Knobs,
)
from datagen.synthesize.languages import check_languages, sample_language
from datagen.synthesize.llm import LLM
from datagen.synthesize.seeds import draw_some, fraction, lines, number


def requests(
    kind: str,
    llm: LLM,
    indices: range,
    *,
    seed: int,
    knobs: Knobs,
    seeds: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The requests of a kind for an LLM; none when the kind wants seeds and there are none.

    Raises UserError when the LLM writes none of the languages, or only one where two are needed.
    """
    if kind in SEEDED and not seeds:
        return []
    turns = [_Turn(llm=llm, kind=kind, i=i, seed=seed, knobs=knobs, seeds=seeds) for i in indices]
    return [{"request": turn.name, "turn": turn.i, **_DRAWN[kind](turn)} for turn in turns]


def given_tasks(
    llm: LLM, tasks: Sequence[Mapping[str, Any]], *, kind: str, alone: bool
) -> list[Mapping[str, Any]]:
    """The tasks of a kind that an LLM is given: other LLMs' unless it is alone, in its languages.

    A task sentence counts once; every LLM takes them in an order of its own.
    """
    languages = check_languages(llm.languages)
    distinct: dict[str, Mapping[str, Any]] = {}
    for task in sorted(tasks, key=lambda task: task["task_id"]):
        fits = task["kind"] == kind and task["language"] in languages
        if fits and (alone or task["llm"] != llm.name):
            distinct.setdefault(task["instruction"].casefold(), task)
    return sorted(distinct.values(), key=lambda task: number(f"{llm.slug}/{task['task_id']}"))


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Request i of a kind while its knobs are drawn."""

    llm: LLM
    kind: str
    i: int
    seed: int
    knobs: Knobs
    seeds: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.llm.slug}/{self.kind}/{self.i}"

    @property
    def turns(self) -> tuple[int, int]:
        """How often the seeds have been taken before, and the number of this one."""
        return divmod(self.i, len(self.seeds)) if self.kind in SEEDED else (0, self.i)

    def key(self, knob: str) -> str:
        return f"{self.seed}/{self.llm.slug}/{self.kind}/{self.turns[1]}/{knob}"

    def one(self, knob: str, choices: Sequence[Any]) -> Any:
        return choices[(number(self.key(knob)) + self.turns[0]) % len(choices)]

    def some(self, knob: str, choices: Sequence[Any], count: int) -> list[Any]:
        return draw_some(f"{self.key(knob)}/{self.turns[0]}", choices, count)

    def given(self) -> Mapping[str, Any]:
        return self.seeds[self.turns[1]]

    def languages(self, *, without: str | None = None) -> tuple[str, ...]:
        """Those of the recipe that the LLM writes."""
        found = _both(self.knobs.languages, self.llm.languages, without)
        if not found:
            raise UserError(
                found=f"LLM {self.llm.name} writes {', '.join(self.llm.languages)}",
                expected=f"for {self.kind}, of {', '.join(self.knobs.languages)} "
                + (f"one besides {without}" if without else "at least one"),
                do="give the LLM more languages, or leave it out of this kind",
                exit_status=2,
            )
        return found

    def language(self, knob: str = "language", *, without: str | None = None) -> str:
        key = f"{self.key(knob)}/{self.turns[0]}"
        temperature = self.knobs.language_temperature
        return sample_language(key, self.languages(without=without), temperature=temperature)

    def beside(self, language: str) -> str:
        """The language itself, or another with the probability of `cross_lingual`."""
        if fraction(f"{self.key('cross_lingual')}/{self.turns[0]}") >= self.knobs.cross_lingual:
            return language
        if not _both(self.knobs.languages, self.llm.languages, language):
            return language  # it writes no other: an LLM's languages restrict what it is asked
        return self.language("other_language", without=language)


@functools.cache
def _both(
    wanted: tuple[str, ...], written: tuple[str, ...], without: str | None
) -> tuple[str, ...]:
    known = check_languages(written)
    return tuple(one for one in check_languages(wanted) if one in known and one != without)


def _retrieval(turn: _Turn) -> dict[str, Any]:
    place, knobs = turn.given(), turn.knobs
    own = place["language"]
    if place["code"]:  # one asks about code in English
        own = "eng" if "eng" in turn.llm.languages else turn.language()
    drawn = {
        "shard": place["shard"],
        "row": place["row"],
        "code": place["code"],
        "calls": 1 if place["code"] else knobs.calls,
        "language": turn.beside(own),
        "document_language": place["language"],
    }
    if drawn["calls"] == 2:
        return drawn | {
            "personas": turn.some("personas", lines("personas.txt"), 4),
            "types": turn.some("types", QUERY_TYPES, 3),
            "difficulties": turn.some("difficulties", DIFFICULTIES, 2),
            "lengths": turn.some("lengths", tuple(LENGTHS["question"]), 2),
        }
    return drawn | {
        "type": turn.one("type", ONE_CALL_TYPES),
        "words": turn.one("words", QUERY_WORDS),
        "difficulty": turn.one("difficulty", DIFFICULTIES),
    }


def _scratch(turn: _Turn) -> dict[str, Any]:
    task = turn.given()
    long_words = [f"{words} words" for words in turn.knobs.long_words]
    query, _, document = task["shape"].partition("_")
    return {
        **_of_task(task),
        "shape": task["shape"],
        "document_language": turn.beside(task["language"]),
        "query_words": turn.one("query_words", long_words if query == "long" else SHORT_WORDS),
        "document_words": turn.one(
            "document_words", long_words if document == "long" else SHORT_WORDS
        ),
        "rarity": turn.one("rarity", RARITIES),
        "clarity": turn.one("clarity", CLARITIES),
        "difficulty": turn.one("difficulty", DIFFICULTIES),
    }


def _classification(turn: _Turn) -> dict[str, Any]:
    task = turn.given()
    labels = task["labels"]
    return {
        **_of_task(task),
        "labels": labels,
        "label": turn.one("label", labels) if labels else None,
        "words": turn.one("words", TEXT_WORDS),
        "clarity": turn.one("clarity", CLARITIES),
    }


def _clustering(turn: _Turn) -> dict[str, Any]:
    categories = turn.one("categories", (2, 3, 4))
    return {
        **_of_task(turn.given()),
        "categories": categories,
        "category": turn.one("category", range(categories)),
        "positive": turn.one("positive", ("item", "item", "name")),
        "words": turn.one("words", TEXT_WORDS[:2]),
    }


def _of_task(task: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": task["instruction"],
        "task_id": task["task_id"],
        "language": task["language"],
    }


def _sts(turn: _Turn) -> dict[str, Any]:
    language = turn.language()
    return {
        "language": language,
        "document_language": turn.beside(language),
        "subject": turn.one("subject", lines("subjects.txt")),
        "unit": turn.one("unit", UNITS),
        "high": turn.one("high", HIGH_SCORES),
        "low": turn.one("low", LOW_SCORES),
        "difficulty": turn.one("difficulty", DIFFICULTIES),
    }


def _bitext(turn: _Turn) -> dict[str, Any]:
    language = turn.language()
    return {
        "language": language,
        "document_language": turn.language("other_language", without=language),
        "subject": turn.one("subject", lines("subjects.txt")),
        "unit": turn.one("unit", UNITS),
        "flaw": turn.one("flaw", FLAWS),
        "difficulty": turn.one("difficulty", DIFFICULTIES),
    }


def _translation(turn: _Turn) -> dict[str, Any]:
    place = turn.given()
    return {
        **{key: place[key] for key in ("query_shard", "query_row", "shard", "row")},
        "from": place["language"],
        "document_language": place["document_language"],
        "language": turn.language(without=place["language"]),
    }


def _code(turn: _Turn) -> dict[str, Any]:
    return {
        "language": turn.language(),
        "programming": turn.one("programming", turn.knobs.programming_languages),
        "subject": turn.one("subject", lines("code_subjects.txt")),
        "program": turn.one("program", PROGRAMS),
        "difficulty": turn.one("difficulty", DIFFICULTIES),
    }


def _code_translation(turn: _Turn) -> dict[str, Any]:
    place = turn.given()
    others = [name for name in turn.knobs.programming_languages if name != place["language"]]
    return {
        "shard": place["shard"],
        "row": place["row"],
        "document_language": place["language"],
        "programming": turn.one("programming", others),
        "language": turn.one("programming", others),
    }


def _tasks(turn: _Turn) -> dict[str, Any]:
    """Kinds and topics in turn, each LLM from its own start."""
    knobs, topics = turn.knobs, lines("topics.txt")
    kind, _, shape = knobs.task_kinds[turn.i % len(knobs.task_kinds)].partition("/")
    first = number(f"{turn.seed}/{turn.llm.slug}/topic")
    # Every kind meets every topic, whatever the two numbers have in common.
    topic = topics[(first + turn.i // len(knobs.task_kinds)) % len(topics)]
    labels = kind == "classification" and knobs.labels
    return {
        "kind": kind,
        "shape": shape,
        "topic": topic,
        "aspect": turn.one("aspect", ASPECTS),
        "labels": turn.one("labels", (2, 3, 4, 5)) if labels else 0,
        "tasks": knobs.tasks_per_call,
        "language": turn.language(),
    }


_DRAWN: Mapping[str, Callable[[_Turn], dict[str, Any]]] = {
    "retrieval": _retrieval,
    "scratch": _scratch,
    "classification": _classification,
    "sts": _sts,
    "bitext": _bitext,
    "clustering": _clustering,
    "translation": _translation,
    "code": _code,
    "code_translation": _code_translation,
    "tasks": _tasks,
}
# Kinds that are drawn from seeds: places of documents or queries, or tasks.
SEEDED = frozenset(
    {"retrieval", "scratch", "classification", "clustering", "translation", "code_translation"}
)
