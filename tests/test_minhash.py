import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.fold import fold, form_keys, is_unsegmented
from datagen.minhash import (
    BACKENDS,
    candidate_pairs,
    check_options,
    leaders,
    shingles,
    signatures,
    similarities,
    text_bands,
    verified,
)
from datagen.row_dedup import find_duplicates
from datagen.schema import UserError

LONG = (
    "The river rises in the northern hills, passes three small towns with old stone bridges, "
    "turns east at the mill, and after some forty miles reaches the sea in a wide bay where "
    "herons nest in spring and fishermen mend their nets on the shore all summer long."
)


def same(*texts: str) -> bool:
    """Whether dedup takes all the texts for one."""
    leader, _, _ = find_duplicates(pl.Series(texts), similarity=0.8)
    return set(leader) == {0}


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
    assert form_keys(fold(short)).n_unique() == 2
    assert form_keys(fold(long)).n_unique() == 1
    numbers = pl.Series([f"{LONG} 1 50", f"{LONG} 15 0"])
    assert form_keys(fold(numbers)).n_unique() == 2


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
    assert is_unsegmented(pl.Series([chinese, LONG])).to_list() == [True, False]
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


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_signatures_estimate_the_jaccard(backend):
    words = [f"word{i}" for i in range(200)]
    texts = pl.Series(
        [" ".join(words[k:] + words[:k]) for k in range(0, 200, 10)] + [" ".join(words[:150])]
    )
    pairs = np.array([[0, j] for j in range(1, len(texts))])
    rows = signatures(texts, backend=backend)
    estimate = (rows[pairs[:, 0]] == rows[pairs[:, 1]]).mean(axis=1)
    assert np.abs(estimate - similarities(texts, pairs)).max() < 0.15
    assert np.abs(estimate - similarities(texts, pairs)).mean() < 0.05


def test_rensa_and_datasketch_find_the_same_duplicates():
    texts = [f"{LONG} Part {chr(97 + i)} is about {i * 7919}." for i in range(40)]
    texts += [text.replace("herons", "storks") for text in texts]
    found = [
        find_duplicates(pl.Series(texts), similarity=0.8, backend=backend)[0].tolist()
        for backend in sorted(BACKENDS)
    ]
    assert found[0] == found[1] == [*range(40), *range(40)]


def test_buckets_propose_pairs_without_squaring():
    bands = np.zeros((1000, 2), dtype=np.uint32)
    bands[:, 1] = np.arange(1000)
    pairs = candidate_pairs(bands)
    assert len(pairs) < 10_000
    assert (pairs[:, 0] < pairs[:, 1]).all() and set(range(1, 1000)) == set(pairs[:, 1])


def test_every_member_resembles_its_leader_itself():
    chain = np.array([[0, 1], [1, 2], [2, 3]])
    assert leaders(4, chain).tolist() == [0, 0, 2, 2]
    assert leaders(3, np.empty((0, 2), dtype=np.int64)).tolist() == [0, 1, 2]


def test_short_texts_have_no_bands():
    where, bands = text_bands(fold(pl.Series(["short", LONG])))
    assert where.tolist() == [1] and bands.shape == (1, 21)
    pairs, jaccard = verified(fold(pl.Series([LONG, LONG])), np.array([[0, 1]]), similarity=1.0)
    assert pairs.tolist() == [[0, 1]] and jaccard.tolist() == [1.0]


@pytest.mark.parametrize(
    ("backend", "similarity"), [("simhash", 0.8), ("rensa", 0.2), ("rensa", 2)]
)
def test_unusable_options_are_refused(backend, similarity):
    with pytest.raises(UserError) as error:
        check_options(backend, similarity)
    assert error.value.exit_status == 2


@given(st.lists(st.text(max_size=80), min_size=1, max_size=12))
def test_any_text_can_be_compared(texts):
    leader, scores, exact = find_duplicates(pl.Series(texts, dtype=pl.String), similarity=0.8)
    assert (leader <= np.arange(len(texts))).all()
    assert (leader[leader] == leader).all()
    assert ((scores >= 0.8) & (scores <= 1)).all()
    assert all(e for e, a, b in zip(exact, leader, range(len(texts)), strict=True) if a == b)
