"""Named rules that drop pairs: each a function of whole columns that says which rows it takes.

A rule sees cleaned pairs as `Pairs` and gives a mask. Rules about language leave code alone, and of
a classification pair look only at the text, for labels are short. Where an exact answer needs
Python, a pattern over the column first finds the few rows that it can concern. All rules together
cost some 10 microseconds a pair, most of them in `repetition`.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from datagen.clean_patterns import BOILERPLATE, NAVIGATION, UNFILLED, URLS
from datagen.repetition import repeats
from datagen.schema import normalise

REPETITION_CHARACTERS = 40  # shorter texts are never called repetitive
REPETITION_WINDOW = 2000  # characters looked at on each end; the share falls with length
REPETITION_SHARE = 0.2  # of distinct runs of five characters; prose has about 0.8 in a window
BOILERPLATE_BYTES = 2000  # longer texts say something besides
TEMPLATE_BYTES = 400

# A letter of these is a word or a syllable by itself: Han, kana, Hangul, Ethiopic, Cherokee,
# Canadian syllabics, Yi, Vai.
_SYLLABLE = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff\u1200-\u139f\u2d80-\u2ddf"
    "\u13a0-\u13ff\uab70-\uabbf\u1400-\u167f\ua000-\ua63f]"
)
# Where vowels are signs on a letter (India, Tibet, Southeast Asia), they count as letters do.
_VOWEL_SIGNS = re.compile(
    "[\u0900-\u109f\u1700-\u1a7f\u1b00-\u1c7f\ua800-\uabff\U00011000-\U00011fff]"
)
_DENSE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"
_DENSE_CHARACTERS = 3  # characters of other scripts that say as much as one of these
# Letters whose case folding is not their lower case, or depends on the place in the word.
_SPECIAL_CASE = (
    "[ßŉſΣςΐΰͅϐϑϕϖϰϱϵևİ\u01f0\u0390\u13a0-\u13fd\u1c80-\u1c8f\u1e96-\u1e9e\u1f50-\u1fff\u0300-\u036f"
    "\ufb00-\ufb17\uab70-\uabbf\u2126\u212a\u212b]"
)
_SPECIAL = rf"{_SPECIAL_CASE}|\s\s|^\s|\s$"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a text may be.

    In `min_letters` a letter that is a word or a syllable by itself counts as two; in the maxima
    one of Han, kana and Hangul counts as three characters.
    """

    min_letters: int = 2
    max_query_characters: int = 10_000
    max_document_characters: int = 100_000


DEFAULT_LIMITS = Limits()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Cleaned pairs as columns; `query_code` and `document_code` say which sides are code."""

    query: pl.Series
    text: pl.Series
    task: pl.Series
    query_code: np.ndarray
    document_code: np.ndarray
    limits: Limits = DEFAULT_LIMITS

    @functools.cached_property
    def natural(self) -> tuple[tuple[pl.Series, np.ndarray], ...]:
        """Each side with the rows where it is natural text."""
        documents = ~self.document_code & (self.task != "classification").to_numpy()
        return (self.query, ~self.query_code), (self.text, documents)

    @functools.cached_property
    def documents(self) -> np.ndarray:
        """Rows whose document is a natural text that stands for itself: neither label nor
        translation."""
        served = self.task.is_in(["retrieval", "clustering", "pair_classification"])
        return ~self.document_code & served.to_numpy()


Rule = Callable[[Pairs], np.ndarray]


def _either(pairs: Pairs, test: Callable[[pl.Series], np.ndarray]) -> np.ndarray:
    """Rows with a natural side that passes the test."""
    found = np.zeros(len(pairs.query), bool)
    for texts, rows in pairs.natural:
        places = np.flatnonzero(rows)
        found[places] |= test(texts.gather(places))
    return found


def _among(rows: np.ndarray, texts: pl.Series, test: Callable[[str], bool]) -> np.ndarray:
    """The rows of a mask whose text passes the test, one by one."""
    found = np.zeros(len(rows), bool)
    places = np.flatnonzero(rows)
    found[places] = [test(text) for text in texts.gather(places)]
    return found


def query_equals_document(pairs: Pairs) -> np.ndarray:
    """Both sides are the same text, case aside."""
    query, text = pairs.query, pairs.text
    a, b = query.str.len_bytes().to_numpy(), text.str.len_bytes().to_numpy()
    # Folding case makes at most three letters of one; code keeps its runs of blanks.
    near = (a <= 3 * b) & (b <= 3 * a) | pairs.query_code
    places = np.flatnonzero(~pairs.document_code & near)
    query, text = query.gather(places), text.gather(places)
    special = _special(query) | _special(text) | pairs.query_code[places]
    # What is left keeps its number of characters in lower case.
    plain = ~special & (query.str.len_chars() == text.str.len_chars()).to_numpy()
    same = np.zeros(len(places), bool)
    same[plain] = (_lower(query.filter(plain)) == _lower(text.filter(plain))).to_numpy()
    for i in np.flatnonzero(special):
        same[i] = _folded(query[int(i)]) == _folded(text[int(i)])
    found = np.zeros(len(pairs.query), bool)
    found[places] = same
    return found


def _special(texts: pl.Series) -> np.ndarray:
    return texts.str.contains(_SPECIAL).to_numpy()


def _lower(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all(r"\s+", " ").str.strip_chars().str.to_lowercase()


def _folded(text: str) -> str:
    return normalise(text).casefold()


def query_in_document(pairs: Pairs) -> np.ndarray:
    """The document says the whole query, case aside: a search for its words finds it."""
    query, text = _lower(pairs.query), _lower(pairs.text)
    frame = pl.DataFrame({"query": query, "text": text})
    inside = frame.select(pl.col("text").str.contains(pl.col("query"), literal=True))
    return inside.to_series().to_numpy() & pairs.documents


def url_only(pairs: Pairs) -> np.ndarray:
    """A side that is nothing but addresses."""
    return _either(pairs, lambda texts: texts.str.contains(URLS).to_numpy())


def no_letters(pairs: Pairs) -> np.ndarray:
    """A side without any letter: numbers, dates, punctuation."""
    return _either(pairs, lambda texts: ~texts.str.contains(r"\p{L}").to_numpy())


def too_short(pairs: Pairs) -> np.ndarray:
    """A side with fewer than `min_letters` letters."""
    least = pairs.limits.min_letters
    enough = rf"(?:\p{{L}}[^\p{{L}}]*){{{least}}}"

    def test(texts: pl.Series) -> np.ndarray:
        few = ~texts.str.contains(enough).to_numpy()
        return _among(few, texts, lambda text: count_letters(text) < least)

    return _either(pairs, test)


def count_letters(text: str) -> int:
    """Letters of a text; a syllable counts as two, a vowel sign as one."""
    return sum(map(_letters, text))


@functools.cache
def _letters(character: str) -> int:
    if character.isalpha():
        return 2 if _SYLLABLE.match(character) else 1
    is_mark = unicodedata.category(character).startswith("M")
    return 1 if is_mark and _VOWEL_SIGNS.match(character) else 0


def too_long(pairs: Pairs) -> np.ndarray:
    """A query or document, code as well, of more characters than the limits allow."""
    limits = pairs.limits
    found = np.zeros(len(pairs.query), bool)
    for texts, limit in (
        (pairs.query, limits.max_query_characters),
        (pairs.text, limits.max_document_characters),
    ):
        places = np.flatnonzero((texts.str.len_bytes() > limit).to_numpy())
        some = texts.gather(places)
        dense = some.str.count_matches(_DENSE) * (_DENSE_CHARACTERS - 1)
        found[places] |= (some.str.len_chars() + dense > limit).to_numpy()
    return found


def repetition(pairs: Pairs) -> np.ndarray:
    """A side, code as well, that repeats itself endlessly, at its head or at its tail."""
    query, text = (
        repeats(
            side, shortest=REPETITION_CHARACTERS, window=REPETITION_WINDOW, share=REPETITION_SHARE
        )
        for side in (pairs.query, pairs.text)
    )
    return query | text


def template(pairs: Pairs) -> np.ndarray:
    """A side of nothing but placeholders that nobody filled in; between words they are normal."""

    def test(texts: pl.Series) -> np.ndarray:
        rows = (texts.str.len_bytes() <= TEMPLATE_BYTES) & texts.str.contains(UNFILLED)
        places = np.flatnonzero(rows.to_numpy())
        rest = texts.gather(places).str.replace_all(UNFILLED, "")
        found = np.zeros(len(texts), bool)
        found[places] = ~rest.str.contains(r"\p{L}").to_numpy()
        return found

    return _either(pairs, test)


def boilerplate(pairs: Pairs) -> np.ndarray:
    """A document that any site could have: cookie and script notices, rights, errors, menus."""
    short = (pairs.text.str.len_bytes() <= BOILERPLATE_BYTES).to_numpy()
    places = np.flatnonzero(pairs.documents & short)
    texts = pairs.text.gather(places)
    found = np.zeros(len(short), bool)
    found[places] = (texts.str.contains(BOILERPLATE) | texts.str.contains(NAVIGATION)).to_numpy()
    return found


def label_in_text(pairs: Pairs) -> np.ndarray:
    """A classification label that stands in the text as a word: nothing is left to learn."""
    found = np.zeros(len(pairs.query), bool)
    places = np.flatnonzero((pairs.task == "classification").to_numpy())
    labels = pairs.text.gather(places).to_list()
    patterns = {
        label: re.compile(rf"(?<!\w){re.escape(_folded(label))}(?!\w)") for label in {*labels}
    }
    queries = pairs.query.gather(places).to_list()
    found[places] = [
        patterns[label].search(_folded(query)) is not None
        for query, label in zip(queries, labels, strict=True)
    ]
    return found


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        query_equals_document,
        url_only,
        no_letters,
        too_short,
        too_long,
        template,
        boilerplate,
        repetition,
        label_in_text,
        query_in_document,
    )
}

# Natural texts name their topic, and good documents repeat the question: asked for by name.
OPTIONAL_RULES = ("label_in_text", "query_in_document")
DEFAULT_RULES = tuple(rule for rule in RULES if rule not in OPTIONAL_RULES)


def first_reasons(pairs: Pairs, rules: Sequence[str]) -> np.ndarray:
    """For each pair the first rule that takes it, or an empty string."""
    reasons = np.full(len(pairs.query), "", dtype=object)
    for name in reversed(rules):
        reasons[RULES[name](pairs)] = name
    return reasons
