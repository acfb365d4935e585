"""Whether what an LLM wrote is in the language that was asked for.

Only a confident disagreement counts: of a text with letters enough, asked for in a language that
the default detector knows, and found in another script, or in a language that is not easily taken
for the one asked. Codes are compared as `datagen.codes.standard_language` reads them (`ara` is
`arb`, `nor` is `nob`). Cost: detection, some 10 microseconds a short text.
"""

from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.codes import LANGUAGE_OF_SCRIPT, standard_language
from datagen.detectors import DEFAULT_BACKEND
from datagen.language import detect_languages
from datagen.language_model import load_tables
from datagen.synthesize.select import Rule, Verdict
from datagen.synthesize.written import written_texts

OTHER_LANGUAGE = "other_language"
MINIMUM_LETTERS = 20
DENSE_LETTERS = 3  # a Chinese, Japanese or Korean letter says as much as so many of an alphabet
# Of the default detector, whose score falls with the number of languages of a script: from here on,
# and `CLOSE` aside, it errs in 6 of 1,000 sentences, and knows 4 in 5 English ones by it.
CONFIDENT = 0.3

MIXED_SHARE = 0.2  # of other letters, from which on a text in Latin script has two languages

_LETTER, _NOT_LATIN = r"\p{L}", r"[\p{L}&&[^\p{Latin}]]"
_DENSE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"
_HAN = {"Hans": "Hani", "Hant": "Hani", "Jpan": "Hani"}  # few letters do not tell these apart
# Languages that the detector takes for each other in sentences of real, labelled text.
CLOSE = (
    "bos hrv srp hbs cnr slv", "srp mkd bul", "ind zsm bjn min iba jav sun ace",
    "dan nob nno swe", "fao isl", "ces slk", "pol szl", "nld afr lim nds", "deu ltz",
    "arb arz ary arq aeb acm acq ajp apc ars knc", "pes prs azb pbt", "kas urd snd knc",
    "hin awa bho mai mag hne npi mar san kas", "ben asm mni", "bod dzo", "zho yue",
    "por glg spa ast arg oci cat", "ita scn lmo vec cos srd lij fur roh", "hat crs fra wln",
    "rus ukr bel", "tat bak", "tur crh azj tuk", "ceb hil tgl war pam pag ilo",
    "aka twi fat", "kin run", "xho zul ssw nbl nde", "tsn sot nso", "bam dyu bci", "kik kam kmb",
    "luo ach", "tum nya toi", "lua kon", "pap kea", "eng pcm kri tpi",
)  # fmt: skip

# Found where English and Romance words are many: no LLM slips into one of these.
MIXTURES = ("ido", "ile", "ina", "lat")


@cache
def close_languages() -> tuple[str, ...]:
    """`dan>nob`: pairs of languages that are not held against each other."""
    groups = [group.split() for group in CLOSE]
    pairs = {f"{one}>{other}" for group in groups for one in group for other in group}
    return tuple(sorted(pairs))


@cache
def known_languages() -> tuple[str, ...]:
    """What the default detector tells apart, as `hin` and as `hin_Deva`: it may know a language in
    one of its scripts only."""
    tags = {
        f"{code}_{script}" for script, table in load_tables().items() for code in table.languages
    }
    tags |= {f"{code}_{script}" for script, code in LANGUAGE_OF_SCRIPT.items()}
    tags |= {"zho_Hans", "zho_Hant", "yue_Hant"}
    return tuple(sorted({*tags, *(tag.partition("_")[0] for tag in tags)}))


def other_language(
    texts: pl.Series, languages: pl.Series, scripts: pl.Series, *, backend: str = DEFAULT_BACKEND
) -> tuple[np.ndarray, np.ndarray]:
    """Which texts are not in the language (and script, where that is not null) asked for, and which
    could be judged: a null text or language, code, and what mixes scripts cannot."""
    tags, scores = detect_languages(texts, backend)
    codes = {code: standard_language(code) for code in languages.drop_nulls().unique()}
    columns = {"text": texts, "asked": languages.replace(codes), "script": scripts}
    letters, asked, tag = pl.col("letters"), pl.col("asked"), pl.col("tag").str.split("_").list
    frame = pl.DataFrame({**columns, "tag": tags, "score": scores}).with_columns(
        *_letters(), found=tag.get(0), found_script=tag.get(1)
    )
    mixed = (pl.col("found_script") == "Latn") & (pl.col("others") >= MIXED_SHARE * letters)
    known = pl.concat_str("asked", "script", separator="_", ignore_nulls=True)
    enough = (letters >= MINIMUM_LETTERS) & asked.is_not_null() & known.is_in(known_languages())
    verdict = frame.select(
        judged=(enough & ~mixed).fill_null(False),
        other=(_other_script() | _far_language()).fill_null(False),
    )
    judged = verdict["judged"].to_numpy()
    return verdict["other"].to_numpy() & judged, judged


def _letters() -> list[pl.Expr]:
    """How many `letters` a text has, and how many `others` than Latin ones."""
    text = pl.col("text").str
    more = (DENSE_LETTERS - 1) * text.count_matches(_DENSE)
    letters, others = text.count_matches(_LETTER), text.count_matches(_NOT_LATIN)
    return [(letters + more).alias("letters"), (others + more).alias("others")]


def _other_script() -> pl.Expr:
    found = pl.col("found_script").replace(_HAN)
    return (pl.col("script").replace(_HAN) != found).fill_null(False)


def _far_language() -> pl.Expr:
    """Confidently found to be another language, and none that is easily taken for the one asked."""
    asked, found = pl.col("asked"), pl.col("found")
    close = pl.concat_str("asked", "found", separator=">").is_in(close_languages())
    confident = pl.col("score") >= CONFIDENT
    return (asked != found) & confident & ~close & ~found.is_in(MIXTURES)


def language_rule(*, backend: str = DEFAULT_BACKEND) -> Rule:
    """Rows of which a side that the LLM wrote is in another language than the row says."""

    def rule(pairs: pa.Table) -> Verdict:
        broken, judged = np.zeros((2, pairs.num_rows), bool)
        for side, texts in written_texts(pairs).items():
            columns = (texts, pairs[f"{side}_language"], pairs[f"{side}_script"])
            other, known = other_language(
                *(pl.Series(column, dtype=pl.String) for column in columns), backend=backend
            )
            broken |= other
            judged |= known
        return Verdict(OTHER_LANGUAGE, broken, judged)

    return rule
