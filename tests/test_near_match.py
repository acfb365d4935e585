import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.near_index import TEXTS, NearIndex, build_index
from datagen.near_match import near_matches
from datagen.near_tokens import NO_SHINGLE, token_form, tokenise

RIVER = (
    "The river rises in the northern hills, passes three small towns with old stone bridges, "
    "turns east at the mill, and after some forty miles reaches the sea in a wide bay where "
    "herons nest in spring and fishermen mend their nets on the shore all summer long."
)
CHINESE = (
    "这条河发源于北方的山丘,流经三座有古老石桥的小镇,在磨坊处向东拐弯,大约四十英里后注入宽阔的海湾,"
    "春天苍鹭在那里筑巢,渔民整个夏天都在岸边修补渔网。"
)
THAI = (
    "แม่น้ำสายนี้มีต้นกำเนิดจากเนินเขาทางเหนือไหลผ่านเมืองเล็กสามเมืองที่มีสะพานหินเก่าแก่"
    "แล้วเลี้ยวไปทางตะวันออกที่โรงสีก่อนจะไหลลงสู่ทะเลในอ่าวกว้าง"
)
BIRDS = "Herons are long-legged birds that live near fresh water on every continent but one."
QUERY = "who built the old stone bridge over the river in the north of the country"


def index_of(*texts: str, query: bool = False) -> NearIndex:
    rows = [(i + 1, query, text) for i, text in enumerate(texts)]
    return build_index(pl.DataFrame(rows, schema=TEXTS, orient="row"))


def matched(text: str, *evaluation: str, query: bool = False) -> list[int]:
    """Positions of the evaluation texts that `text` is a near-duplicate of."""
    found = near_matches(pl.Series([text]), index_of(*evaluation, query=query))
    return found["text"].to_list()


def changed(text: str, draw: random.Random, share: float = 0.1) -> str:
    """The text with this share of its words replaced by words that it does not have."""
    words = text.split()
    for at in draw.sample(range(len(words)), max(1, round(len(words) * share))):
        words[at] = draw.choice(["granite", "seldom", "velvet", "orbit", "quiet", "parcel"])
    return " ".join(words)


@pytest.mark.parametrize(
    "text",
    [
        RIVER.replace("herons", "storks").replace("forty", "thirty"),
        RIVER.replace("with old stone bridges, ", ""),
        RIVER.replace("small towns", "towns small").replace("wide bay", "bay wide"),
        RIVER.upper().replace(",", " --").replace("MILES", "KILOMETRES"),
        f"{BIRDS} {RIVER} {BIRDS} {BIRDS}",
        RIVER[: RIVER.index(" reaches")],
    ],
    ids=["replaced", "deleted", "swapped", "case and one word", "inside a longer text", "a part"],
)
def test_a_changed_document_is_found(text):
    assert matched(text, BIRDS, RIVER) == [1]


@pytest.mark.parametrize(
    ("text", "document"),
    [
        (CHINESE.replace("北方", "南方").replace("石桥", "木桥"), CHINESE),
        (CHINESE.replace("大约四十英里后", ""), CHINESE),
        ("前言。" * 3 + CHINESE + "后记。" * 3, CHINESE),
        (THAI.replace("เก่าแก่", "ใหม่"), THAI),
        (THAI.replace("ทางเหนือ", ""), THAI),
    ],
)
def test_scripts_without_blanks(text, document):
    assert matched(text, RIVER, document) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "The river rises in the southern plains, crosses one large town with a new steel bridge, "
        "turns west at the lake, and after some ninety miles joins another river near a harbour.",
        BIRDS,
        "The river rises in the northern hills.",  # a sentence of it, too short to tell
        "Der Fluss entspringt in den nördlichen Hügeln und mündet nach vierzig Meilen ins Meer.",
        CHINESE,  # its translation
        "",
        "???",
    ],
)
def test_what_is_not_the_same_text(text):
    assert matched(text, RIVER) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{QUERY} and when", [0]),
        ("who built the old bridge over the river in the north of the country", [0]),
        ("who built the stone old bridge over the river in the north of the country", [0]),
        ("who built the new stone bridge over the river in the north of the country", []),
        ("who built the old stone bridge over the river in the south of the country", []),
    ],
)
def test_a_query_with_another_word_asks_something_else(text, found):
    assert matched(text, QUERY, query=True) == found
    assert matched(text, QUERY, query=False) == [0]  # in a document it is a changed word


def test_a_list_of_links_is_not_matched_with_its_translation():
    links = [f"https://example.org/a/very/long/address/of/page-{i}/index.html" for i in range(12)]
    names = [
        "river",
        "bridge",
        "mill",
        "bay",
        "heron",
        "net",
        "hill",
        "town",
        "stone",
        "summer",
        "shore",
        "spring",
    ]
    translated = [
        "fluss",
        "brücke",
        "mühle",
        "bucht",
        "reiher",
        "netz",
        "hügel",
        "stadt",
        "stein",
        "sommer",
        "ufer",
        "quelle",
    ]
    one, other = (
        " * ".join(f"[{name} und]({link})" for name, link in zip(side, links, strict=True))
        for side in (names, translated)
    )
    assert matched(other, one) == [] and matched(one.upper(), one) == [0]


def test_a_template_filled_in_twice_is_not_the_same():
    census = "As of the census of {0}, there were {1} people, {2} households, and {3} families "
    census += "residing in the town, and the population density was {4} people per square mile."
    one = census.format(2000, 1234, 567, 321, 88)
    assert matched(census.format(2010, 9876, 412, 199, 75), one) == []
    assert matched(census.format(2000, 1234, 567, 321, 88).replace("town", "city"), one) == [0]


BOILERPLATE = (
    "This condition is inherited in an autosomal recessive pattern, which means both copies of the "
    "gene in each cell have mutations. The parents of an affected individual each carry one copy."
)
NAMES = [a + b for a in ("Mar", "Tor", "Bel", "Kin", "Ost", "Pra") for b in ("den", "vik", "sor")]


def test_what_many_evaluation_texts_share_does_not_count():
    texts = [f"{name} affects the {name.lower()}oid muscles. {BOILERPLATE}" for name in NAMES]
    index = index_of(*texts)
    other = pl.Series([f"Zelkova affects the zelkovian nerves. {BOILERPLATE}"])
    assert len(near_matches(other, index)) == 0
    assert near_matches(pl.Series([texts[4].replace("muscles", "nerves")]), index)[
        "text"
    ].to_list() == [4]


def test_what_many_training_texts_share_does_not_count():
    one = f"Marden syndrome affects the long muscles of the hand. {BOILERPLATE}"
    others = [
        f"{name} disease makes {name.lower()}al spots appear on skin or nails. {BOILERPLATE}"
        for name in NAMES * 2
    ]
    others = [f"{text} Seen in {i} families of one valley." for i, text in enumerate(others)]
    copy = one.replace("hand", "foot")
    found = near_matches(pl.Series([*others, copy]), index_of(one, RIVER))
    assert found["row"].to_list() == [len(others)]


def test_many_variants_of_one_document_are_no_template():
    draw = random.Random(3)
    variants = pl.Series([changed(RIVER, draw) for _ in range(60)])
    found = near_matches(variants, index_of(RIVER, BIRDS))
    assert found["row"].n_unique() >= 57


def test_similarity_is_a_share_and_equal_texts_have_all():
    texts = pl.Series([RIVER, RIVER.replace("herons", "storks"), None, RIVER])
    found = near_matches(texts, index_of(RIVER))
    assert found["row"].to_list() == [0, 1, 3]
    assert found["similarity"][0] == found["similarity"][2] == 1.0
    assert 0.9 < found["similarity"][1] < 1.0


def test_an_empty_index_and_no_texts():
    assert len(near_matches(pl.Series([RIVER]), NearIndex.of_none())) == 0
    assert len(near_matches(pl.Series([RIVER]), index_of())) == 0
    assert len(near_matches(pl.Series([], dtype=pl.String), index_of(RIVER))) == 0


def test_tokens_of_mixed_text():
    assert token_form(pl.Series(["Don't!  GPU-加速 ﬁ", None, "!!"])).to_list() == [
        "don t gpu 加 速 fi ", "", "",
    ]  # fmt: skip
    tokens = tokenise(pl.Series(["one two three four", "加速加速", "one two"]))
    counts = [
        int((tokens.shingles[a:b] != NO_SHINGLE).sum())
        for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)
    ]
    assert counts == [2, 1, 0]
    assert tokens.lengths.tolist() == [4, 2, 2]
    assert len(np.unique(tokens.words)) == 6


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=30), max_size=8), st.integers(0, 7))
def test_tokens_do_not_depend_on_the_texts_around_them(texts, at):
    texts = [*texts, "one two three four"]
    at = min(at, len(texts) - 1)
    every, alone = tokenise(pl.Series(texts)), tokenise(pl.Series([texts[at]]))
    part = slice(every.offsets[at], every.offsets[at + 1])
    assert every.words[part].tolist() == alone.words.tolist()
    assert every.shingles[part].tolist() == alone.shingles.tolist()
    assert every.lengths[at] == alone.lengths[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_a_tenth_of_the_words_changed_is_found(seed):
    assert matched(changed(RIVER, random.Random(seed)), BIRDS, RIVER) == [1]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("abcdefg ", min_size=20, max_size=80), min_size=1, max_size=6))
def test_candidates_are_all_that_brute_force_finds(texts):
    """The index loses nothing: all texts against all, one at a time, gives the same matches."""
    index = index_of(*texts)
    kept = index.texts["text"].to_list()
    whole = near_matches(pl.Series(kept, dtype=pl.String), index)
    for row, text in enumerate(kept):
        alone = near_matches(pl.Series([text]), index)
        assert alone["text"].to_list() == whole.filter(pl.col("row") == row)["text"].to_list()
