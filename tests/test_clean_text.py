"""Normalising texts: what is changed, and that whole columns come out as texts one by one do."""

import unicodedata
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.clean_text import NORMALISERS, clean_code, clean_column, clean_text, mend_mojibake

# Characters that the normalisers care about, more often than chance would bring them.
ODD = st.sampled_from(
    list(" \n\t\r\u00a0\u3000\u2028\x0b\x1c\x85\x93\x00\ufeff\u00ad\u200b\u200d\u200f&;#")
    + ["&amp;", "&#233;", "e\u0301", "\u0915\u093c", "\u1100\u1161", "\u212b", "  ", "\r\n"]
    + ["Ã©", "â€™", "Â ", "Ã", "é", "ក", "a", "b"]
)
_NFC = NORMALISERS["nfc"].pattern
TEXTS = st.lists(ODD | st.characters(), max_size=12).map("".join)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("e\u0301te\u0301", "été"),  # NFC
        ("a\x00b\x1bc\x7fd", "abcd"),
        ("one\ttwo   three\u00a0four\u3000five", "one two three four five"),
        ("a \r\n b\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("a\n\n\n\n\nb", "a\n\nb"),
        ("\ufeffsoft\u00adhyphen \u200fbidi\u202e", "softhyphen bidi"),
        ("Tom &amp; Jerry &lt;b&gt; &#39;x&#39; &eacute;", "Tom & Jerry <b> 'x' é"),
        ("R&D; a &copy b &unknown; &#xD800;", "R&D; a &copy b &unknown; \ufffd"),
        ("\u0093quoted\u0094 \u0097 dash", "“quoted” — dash"),  # Windows-1252 read as Latin-1
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian needs the non-joiner
        ("क्\u200dष", "क्\u200dष"),  # and Devanagari the joiner
        ("ភាសា\u200bខ្មែរ", "ភាសា\u200bខ្មែរ"),  # Khmer parts words with a zero-width space
        ("no\u200bise", "noise"),
        ("  outer  ", "outer"),
        ("David KlÃ¶cker, 3.850 kmÂ²", "David Klöcker, 3.850 km²"),  # of SIB-200, Indonesian
    ],
)
def test_texts_are_normalised(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("gobyernoâ€”ang Kongreso", "gobyerno—ang Kongreso"),
        ("itâ\x80\x99s", "it’s"),  # read as Latin-1
        ("cafÃƒÂ©", "café"),  # twice
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("SÃO PAULO", "SÃO PAULO"),  # Portuguese
        ("“MAÇÃ”", "“MAÇÃ”"),
        ("Ä“", "Ä“"),  # a letter and a quotation mark; one such pair says nothing
        ("cafÃ© 東京", "cafÃ© 東京"),  # only a part: the whole text cannot be put back
        ("© 2024 – «ok»", "© 2024 – «ok»"),
    ],
)
def test_mojibake_is_mended_where_the_whole_text_says_so(text: str, mended: str) -> None:
    assert mend_mojibake(text) == mended


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs", "Cc"))))
def test_what_was_read_wrongly_is_put_back_or_left(text: str) -> None:
    wrong = text.encode().decode("latin-1")
    assert mend_mojibake(wrong) in (wrong, mend_mojibake(text))


@given(st.text() | TEXTS)
def test_cleaned_text_is_nfc_without_controls(text: str) -> None:
    cleaned = clean_text(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not [c for c in cleaned if unicodedata.category(c) == "Cc" and c != "\n"]
    assert cleaned == cleaned.strip()


@given(st.text(alphabet=st.characters(blacklist_characters="&")))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    # Without entities, of which `&amp;amp;` has two layers and loses one a time.
    assert clean_text(clean_text(text)) == clean_text(text)


def test_code_keeps_its_blanks_entities_and_characters() -> None:
    code = "\n\n    x = '&amp;'  \r\n\ty = 'e\u0301'\t\n\n"
    assert clean_code(code) == "    x = '&amp;'\n\ty = 'e\u0301'"


@given(
    st.lists(st.tuples(TEXTS, st.booleans()), max_size=8),
    st.sets(st.sampled_from(sorted(NORMALISERS))),
)
def test_a_column_comes_out_as_its_texts_do(rows: list[tuple[str, bool]], left_out: set) -> None:
    names = tuple(name for name in NORMALISERS if name not in left_out)
    texts = [text.encode("utf-8", "ignore").decode() for text, _ in rows]
    code = np.array([is_code for _, is_code in rows], bool)
    cleaned = clean_column(pl.Series(texts, dtype=pl.String), code, normalisers=names)
    expected = [
        clean_code(text) if is_code else clean_text(text, names)
        for text, is_code in zip(texts, code, strict=True)
    ]
    assert cleaned.texts.to_list() == expected
    changed = [i for i, (a, b) in enumerate(zip(texts, expected, strict=True)) if a != b]
    assert set(changed) <= set(cleaned.rows.tolist())


def test_each_normaliser_says_which_texts_it_changed() -> None:
    texts = pl.Series(["plain", "a &amp; b", "KlÃ¶cker", "a\u00adb", "e\u0301", "a  b", "x = 1  "])
    code = np.array([False] * 6 + [True])
    changed = clean_column(texts, code).changed
    assert {name: rows.tolist() for name, rows in changed.items()} == {
        "entities": [1],
        "mojibake": [2],
        "controls": [3],
        "nfc": [4],
        "blanks": [5],
        "code": [6],
    }


def test_the_pattern_of_nfc_finds_every_character_that_may_change() -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    changed = [c for c in characters if unicodedata.normalize("NFC", c) != c]
    moved = [c for c in characters if unicodedata.combining(c)]
    pairs = [unicodedata.decomposition(c).split() for c in characters]
    joined = [chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and pair[0][0] != "<"]
    hangul = [chr(c) for c in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))]
    found = pl.Series([*changed, *moved, *joined, *hangul]).str.contains(_NFC)
    assert found.all()


def test_real_texts_come_out_as_one_by_one(shared_data: Path) -> None:
    files = {"retrieval/gnome_help": "positive", "classification/sib200": "text"}
    for name, column in files.items():
        texts = pl.Series(pq.read_table(shared_data / f"{name}.parquet")[column].to_pylist()[::40])
        cleaned = clean_column(texts, np.zeros(len(texts), bool)).texts
        assert cleaned.to_list() == [clean_text(text) for text in texts]
