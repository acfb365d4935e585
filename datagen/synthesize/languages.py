"""The languages that an LLM is asked to write: code, script, English name and weight, as data.

`data/languages.tsv` lists them, the most written first. A weight is the language's rough share of
public web pages in ten thousandths, high-resource languages first. It is meant as an order of
magnitude: counts of the web by language differ between crawls by a factor of two, so the first
thirty carry one or two digits and the rest are put into classes from 10 down to 1. Drawn in
proportion to weight ** (1 / temperature): 1 gives the web as it is, 3 makes small languages several
times as likely, a very high temperature makes all equal. E5-mistral (arXiv 2401.00368, section 3.1)
draws languages in the same spirit: all of XLM-R's, high-resource ones more often.

Codes are ISO 639-3 of the variety that is written (`arb`, `zho`, `swh`), as everywhere in the mix.
"""

import bisect
import difflib
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from datagen.codes import standard_language
from datagen.schema import UserError
from datagen.synthesize.seeds import fraction, lines


@dataclass(frozen=True, kw_only=True)
class Language:
    """One row of the table."""

    code: str  # ISO 639-3
    script: str  # ISO 15924, the one it is mostly written in
    name: str  # English, as prompts call it
    weight: int  # rough share of web pages, in ten thousandths


@functools.cache
def languages() -> dict[str, Language]:
    """The table by code, the most written first."""
    rows = [line.split("\t") for line in lines("languages.tsv")[1:]]
    return {
        code: Language(code=code, script=script, name=name, weight=int(weight))
        for code, script, name, weight in rows
    }


def language(code: str) -> Language:
    """The row of a code (`deu`, `de`, or a macro-language as `ara`); UserError when there is none.

    The error names languages whose code or name looks alike.
    """
    found = languages().get(standard_language(code))
    if found is None:
        raise UserError(
            found=f"language {code!r}",
            expected="a code of ISO 639-3 that the table of languages has; near ones: "
            + ", ".join(f"{row.code} ({row.name})" for row in _near(code)),
            do="name another language, or add a row to datagen/synthesize/data/languages.tsv",
            exit_status=2,
        )
    return found


def language_name(code: str) -> str:
    """English name of a language for a prompt."""
    return language(code).name


def script_of(code: str) -> str:
    """Script in which a language is mostly written."""
    return language(code).script


def check_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """The codes in standard form, each once, in the order given; UserError names a bad one."""
    if not codes:
        raise UserError(
            found="no language",
            expected="one code of ISO 639-3 or more, such as eng or deu",
            do="name the languages to be written",
            exit_status=2,
        )
    return tuple(dict.fromkeys(language(code).code for code in codes))


def sample_language(key: str, codes: Sequence[str], *, temperature: float = 1.0) -> str:
    """One of the languages, decided by the key, in proportion to weight ** (1 / temperature)."""
    if temperature <= 0:
        raise UserError(
            found=f"language temperature {temperature}",
            expected="a number above 0; 1 keeps the weights of the table",
            do="mend the temperature",
            exit_status=2,
        )
    ordered, bounds = _bounds(tuple(codes), temperature)
    return ordered[min(bisect.bisect(bounds, fraction(key) * bounds[-1]), len(ordered) - 1)]


@functools.cache
def _bounds(codes: tuple[str, ...], temperature: float) -> tuple[list[str], list[float]]:
    ordered = sorted(check_languages(codes))
    weights = [language(code).weight ** (1 / temperature) for code in ordered]
    return ordered, list(itertools.accumulate(weights))


def _near(code: str, count: int = 4) -> list[Language]:
    known = {name: row for row in languages().values() for name in (row.code, row.name.lower())}
    names = difflib.get_close_matches(code.strip().lower(), known, n=2 * count, cutoff=0.3)
    rows = {known[name].code: known[name] for name in names} or languages()
    return list(rows.values())[:count]
