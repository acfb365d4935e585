import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datagen.duplicates import find_duplicates
from datagen.fold import fold
from datagen.minhash import (
    BACKENDS,
    candidate_pairs,
    check_options,
    components,
    text_keys,
    verified,
)
from datagen.schema import UserError
from datagen.shingles import form_hashes, shingles, similarities

LONG = (
    "The river rises in the northern hills, passes three small towns with old stone bridges, "
    "turns east at the mill, and after some forty miles reaches the sea in a wide bay where "
    "herons nest in spring and fishermen mend their nets on the shore all summer long."
)


def same(*texts: str) -> bool:
    """Whether dedup takes all the texts for one."""
    leader, _, _ = find_duplicates(pl.Series(texts), similarity=0.8)
    return set(leader) == {0}


def forms(texts: pl.Series) -> int:
    """How many of the texts are different, blanks aside where blanks do not count."""
    return len(np.unique(form_hashes(fold(texts)), axis=0))


def test_folding_keeps_what_carries_meaning():
    texts = [
        "It's 1.5 mg, NOT 15!",
        "e-mail",
        "-5 °C",
        "5 °C",
        "10² m",
        "C++",
        "C",
        "Straße",
        "...",
    ]
    assert fold(pl.Series(texts)).to_list() == [
        "its 1 5 mg not 15", "email", "−5 °c", "5 °c", "10 ^2 m", "C++", "c", "strasse", "...",
    ]  # fmt: skip


def test_blanks_may_differ_in_long_texts_and_never_beside_digits():
    short, long = pl.Series(["now here", "nowhere"]), pl.Series([LONG, LONG.replace("n h", "nh")])
    assert forms(short) == 2
    assert forms(long) == 1
    numbers = pl.Series([f"{LONG} 1 50", f"{LONG} 15 0"])
    assert forms(numbers) == 2


@pytest.mark.parametrize(
    "edited",
    [
        LONG.upper(),
        LONG.replace(",", "").replace(".", "!"),
        LONG.replace(" ", "  "),
        LONG.replace("herons", "storks"),
        LONG.replace("three small towns", "three towns"),
        LONG + " Read more.",
        LONG.replace("river", "rivre"),
    ],
)
def test_small_edits_of_a_long_text_are_found(edited):
    assert same(LONG, edited)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Add user", "Add group"),
        ("Error 404", "Error 405"),
        ("ls -l", "ls -L"),
        ("Learn C++", "Learn C"),
        ("How do I reset my password?", "How do I change my password?"),
        ("What are the treatments for Hepatitis B ?", "What are the treatments for Hepatitis C ?"),
        ("How many people live in the city of Berlin today?",
         "How many people live in the city of Madrid today?"),
        (LONG.replace("three", "3"), LONG.replace("three", "4")),
        (LONG + " In 1950.", LONG + " In 1951."),
        ("git log --oneline {{path}} --author {{name}}",
         "git log --oneline {{path}} --grep {{name}}"),
    ],
)  # fmt: skip
def test_texts_about_different_things_are_kept_apart(one, other):
    assert not same(one, other)


def test_a_template_about_two_subjects_is_no_duplicate():
    text = "What are the symptoms of {0}? " + LONG + " Ask your doctor about {0} and what helps."
    assert not same(text.format("scurvy"), text.format("measles"))
    assert same(text.format("scurvy"), text.format("scurvy").replace("hills", "mountains"))


def test_scripts_without_blanks_are_shingled_by_character():
    chinese = "我们在二零一九年的会议上讨论了气候变化对农业生产的影响"
    chinese += "以及各国政府应当采取的措施和资金来源问题"
    chinese += "与会专家认为水资源短缺将成为未来几十年最大的挑战之一因此需要尽快制定长期规划"
    flat, ends = shingles(pl.Series([chinese, LONG]))
    assert np.diff(ends).tolist() == [len(chinese) - 1, len(LONG.split()) + 2]
    assert same(chinese, chinese.replace("专家", "学者"), "，".join([chinese[:20], chinese[20:]]))
    assert not same(chinese[:20], chinese[:18] + "小麦")


def test_shingles_do_not_depend_on_what_else_is_in_the_batch():
    texts = ["one two three four", "一二三四五六七八九十", "five six", "", "a"]
    flat, offsets = shingles(pl.Series(texts))
    for i, text in enumerate(texts):
        alone, _ = shingles(pl.Series([text]))
        assert flat[offsets[i] : offsets[i + 1]].tolist() == alone.tolist()
    assert np.diff(offsets).tolist() == [6, 9, 4, 0, 3]  # words + 2, characters - 1


def test_similarity_is_the_jaccard_of_padded_word_triples():
    def triples(text):
        words = ["^", "^", *text.split(), "$", "$"]
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    one, other = "a b c d e f g", "a b c x e f g h"
    expected = len(triples(one) & triples(other)) / len(triples(one) | triples(other))
    found = similarities(pl.Series([one, other]), np.array([[0, 1]]))
    assert found.tolist() == pytest.approx([expected])


@given(
    st.lists(st.text("abc 水", max_size=60), min_size=2, max_size=6), st.floats(0.5, 1.0), st.data()
)
def test_similarity_is_exact_from_the_least_on(texts, least, data):
    row = st.integers(0, len(texts) - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(row, row), min_size=1, max_size=8)))
    flat, ends = shingles(pl.Series(texts))
    sets = [set(flat[a:b].tolist()) for a, b in zip(ends, ends[1:], strict=False)]
    true = [
        len(sets[i] & sets[j]) / len(sets[i] | sets[j]) if sets[i] | sets[j] else 1.0
        for i, j in pairs
    ]
    assert similarities(pl.Series(texts), pairs).tolist() == true
    found = similarities(pl.Series(texts), pairs, least=least)
    assert all(f == t if t >= least else f < least for f, t in zip(found, true, strict=True))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_signatures_estimate_the_jaccard(backend):
    """Equal shares of 126 minima: unbiased, and off by no more than 126 tosses of a coin are."""
    dice = np.random.default_rng(0)
    for size, common in ((20, 16), (60, 40), (300, 280)):
        union = dice.integers(0, 2**64, (200, 2 * size - common), dtype=np.uint64)
        pairs = np.stack([union[:, :size], np.roll(union, size - common, axis=1)[:, :size]], axis=1)
        offsets = np.arange(0, pairs.size + 1, size)
        rows = BACKENDS[backend](pairs.ravel(), offsets)
        estimate = (rows[::2] == rows[1::2]).mean(axis=1)
        true = common / (2 * size - common)
        coin = np.sqrt(true * (1 - true) / rows.shape[1])
        assert abs(estimate.mean() - true) < 3 * coin / np.sqrt(len(estimate))
        assert estimate.std() < 1.2 * coin


def test_all_backends_find_the_same_duplicates():
    texts = [f"{LONG} Part {chr(97 + i)} is about {i * 7919}." for i in range(40)]
    texts += [text.replace("herons", "storks") for text in texts]
    for backend in sorted(BACKENDS):
        first, _, _ = find_duplicates(pl.Series(texts), similarity=0.8, backend=backend)
        assert first.tolist() == [*range(40), *range(40)], backend


def test_buckets_propose_pairs_without_squaring():
    bands = np.zeros((1000, 2), dtype=np.uint32)
    bands[:, 1] = np.arange(1000)
    pairs = candidate_pairs(bands, np.arange(len(bands)))
    assert len(pairs) < 10_000
    assert (pairs[:, 0] < pairs[:, 1]).all() and set(range(1, 1000)) == set(pairs[:, 1])


def test_what_others_connect_is_one_component():
    chain = np.array([[0, 1], [1, 2], [4, 3]])
    assert components(6, chain).tolist() == [0, 0, 0, 3, 3, 5]
    assert components(3, np.empty((0, 2), dtype=np.int64)).tolist() == [0, 1, 2]
    assert components(0, np.empty((0, 2), dtype=np.int64)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_components_are_those_of_scipy_named_by_their_first_member(edges):
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (30, 30))
    _, label = connected_components(links, directed=False)
    assert components(30, pairs).tolist() == [int(np.argmax(label == own)) for own in label]


def test_the_similarity_of_a_chain_is_that_of_its_ends():
    words = [f"{a}{b}" for a in ("amber", "birch", "cedar", "drift") for b in "abcdefghijklm"]
    changed = [*words[:10], "ember", *words[11:]]
    texts = [" ".join(w) for w in (words, changed, [*changed[:40], "fjord", *changed[41:]])]
    first, scores, exact = find_duplicates(pl.Series(texts), similarity=0.85)
    assert first.tolist() == [0, 0, 0] and exact.tolist() == [True, False, False]
    one, both = similarities(fold(pl.Series(texts)), np.array([[0, 1], [0, 2]]))
    assert scores.tolist() == [1.0, one, both] and both < 0.85 < one


def test_short_texts_have_no_bands():
    keys = text_keys(pl.Series(["short", LONG]))
    assert keys.where.tolist() == [1] and keys.bands.shape == (1, 21)
    assert keys.sizes.tolist() == [5, len(LONG)]
    pairs, jaccard = verified(fold(pl.Series([LONG, LONG])), np.array([[0, 1]]), similarity=1.0)
    assert pairs.tolist() == [[0, 1]] and jaccard.tolist() == [1.0]


def test_keys_do_not_depend_on_what_else_is_in_the_piece():
    texts = pl.Series(
        [LONG, "short", LONG + " x²", "我们在二零一九年的会议上讨论了" * 4, "", LONG[:50]]
    )
    together = text_keys(texts)
    for i in range(len(texts)):
        alone = text_keys(texts[i : i + 1])
        assert (alone.plain[0] == together.plain[i]).all() and alone.sizes[0] == together.sizes[i]
        assert (alone.form[0] == together.form[i]).all()
        assert (alone.bands == together.bands[together.where == i]).all()


@pytest.mark.parametrize(
    ("backend", "similarity"), [("simhash", 0.8), ("rensa", 0.2), ("rensa", 2)]
)
def test_unusable_options_are_refused(backend, similarity):
    with pytest.raises(UserError) as error:
        check_options(backend, similarity)
    assert error.value.exit_status == 2


@given(st.lists(st.text(max_size=80), min_size=1, max_size=12))
def test_any_text_can_be_compared(texts):
    first, scores, exact = find_duplicates(pl.Series(texts, dtype=pl.String), similarity=0.8)
    assert (first <= np.arange(len(texts))).all()
    assert (first[first] == first).all()
    assert ((scores > 0) & (scores <= 1)).all()
    assert all(e for e, a, b in zip(exact, first, range(len(texts)), strict=True) if a == b)
