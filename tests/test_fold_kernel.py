import re
from collections import Counter

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.fold import fold, plain
from datagen.fold_kernel import fold_defined, fold_fast, fold_slow, fold_texts
from datagen.fold_tables import COMPLEX, Tables, make_tables, tables
from datagen.shingles import shingles
from datagen.subjects import same_subject

# Letters that compose, marks in and out of order, jamo, forms that folding maps to more than one
# character, what is dropped, raised or kept by context, and code points above the tables.
HARD = (
    "İaé\u0301ẹ\u0323\u0300ë\u0323oßςΣİ-–(). ,5٣½…’'ʼ\u200b\u200d\xad\ufeff\t\n\xa0\u3000\u0308"
    "가\u1100\u1161각ﾊﾞパ゙ﬁ①²\u09cd\u09be\u09be\u09dc\u09bc\u09df\u09b0क्ष\u093fञअ𝔸𝟘𐑂漢𠀀字かｶ"
    'x{}[]<>=--a -b ~|`$^*_#@&+/%\\"“„\0'
)
TEXTS = st.text(
    st.one_of(st.sampled_from(HARD), st.characters(exclude_categories=["Cs"])), max_size=40
)


def column(texts: list[str]) -> pl.Series:
    return pl.Series("text", texts, dtype=pl.String)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Quick, brown\nFOX!", "the quick brown fox"),
        ("It's 1.5 mg (-5 °C), e-mail", "its 1 5 mg −5 °c email"),
        ("Straße ΣΑΣ ﬁn½", "strasse σασ fin1⁄2"),
        ("10² m", "10 ^2 m"),
        ("git log --oneline {{path}}", "git log --oneline {{path}}"),
        ("ls -L ‘x’", "ls -L 'x'"),
        ("e\u0301a", "éa"),
        ("İzmir", "i\u0307zmir"),
        ("آ\u064e", "آ\u064e"),  # a mark that goes before the one inside the letter, and out again
        ("ক\u09cd\u200dষ", "ক\u09cdষ"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_folding_by_example(text, expected):
    assert fold_texts(column([text])).to_list() == [expected]
    assert fold(column([text])).to_list() == [expected]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=30))
def test_the_compiled_fold_is_the_fold(texts):
    texts = column(texts)
    assert fold_texts(texts).to_list() == fold(texts).to_list()


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=30))
def test_hashes_and_sizes_are_those_of_the_plain_form(texts):
    texts = column(texts)
    found, slow = fold_fast(texts)
    rest = fold_slow(texts.gather(slow))
    found.hashes[slow], found.sizes[slow] = rest.hashes, rest.sizes
    forms = texts.alias("text").to_frame().select(plain(pl.col("text")))["text"]
    defined = fold_defined(forms)
    assert (found.hashes == defined.hashes).all()
    assert found.sizes.tolist() == [len(form) for form in forms.to_list()]
    assert len(set(map(tuple, found.hashes.tolist()))) == forms.n_unique()


def test_real_texts_of_all_scripts_fold_alike(shared_data):
    table = pq.read_table(shared_data / "langid" / "flores_sib200_train.parquet")
    texts = pl.Series("text", table["text"].to_pylist()[::20])
    assert (fold_texts(texts) == fold(texts)).all()
    _, slow = fold_fast(texts)
    assert len(slow) < 0.1 * len(texts)


@settings(deadline=None)
@given(st.lists(st.text("ab c一丁", max_size=20).map(lambda t: " ".join(t.split())), max_size=8))
def test_shingles_are_runs_of_padded_tokens(texts):
    flat, ends = shingles(column(texts))
    names: dict[tuple, int] = {}
    for i, text in enumerate(texts):
        dense = sum(c in "一丁" for c in text) * 3 >= len(text)
        tokens = ["^", "^", *(text if dense else text.split(" ")), "$", "$"]
        width = 6 if dense else 3
        runs = [tuple(tokens[k : k + width]) for k in range(len(tokens) - width + 1)]
        found = flat[ends[i] : ends[i + 1]].tolist()
        assert len(found) == len(runs)
        for run, value in zip(runs, found, strict=True):
            assert names.setdefault(run, value) == value
    assert len(set(names.values())) == len(names)


def says_the_same(one: str, other: str) -> bool:
    """`same_subject` as its docstring says it, over counts of words."""

    def numbers(words):
        return {word for word in words if re.search(r"\d", word)}

    def letters(words):
        return any(re.fullmatch(r"[a-zα-ωа-я]|[ivx]+|[-+*/%<>=!&|^~]+", word) for word in words)

    counts = [Counter(re.findall(r"[一丁]|[^\s一丁]+", text)) for text in (one, other)]
    left, right = counts[0] - counts[1], counts[1] - counts[0]
    same_digits = re.sub(r"\D", "", one) == re.sub(r"\D", "", other)
    digits = [numbers(left), numbers(right)]
    if not same_digits and (all(digits) or digits[0] | digits[1] == left.keys() | right.keys()):
        return False
    if left.total() + right.total() <= 4 and letters(left) and letters(right):
        return False
    new = [left.keys() - counts[1].keys() - digits[0], right.keys() - counts[0].keys() - digits[1]]
    return not all(any(left[w] + right[w] > 1 for w in words) for words in new)


FOLDED = st.text("abiv xy1 2-+ 一丁3", max_size=24).map(lambda text: " ".join(text.split()))


@settings(max_examples=500, deadline=None)
@given(FOLDED, FOLDED)
def test_a_subject_is_told_by_its_words(one, other):
    found = same_subject(column([one, other]), np.array([[0, 1], [1, 0]]))
    assert found.tolist() == [says_the_same(one, other), says_the_same(other, one)]


def test_the_tables_are_those_of_the_definition():
    """A code point that only a later Unicode knows may be COMPLEX in the file and known here."""
    kept, made = tables(), make_tables()
    known = kept.classes & COMPLEX == 0
    for name in Tables._fields:
        ours, theirs = getattr(kept, name), getattr(made, name)
        assert ours.dtype == theirs.dtype
        if name == "pairs":
            assert set(ours.tolist()) <= set(theirs.tolist())
        else:
            assert (ours == theirs)[known].all(), name
    assert known.mean() > 0.4
