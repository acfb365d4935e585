import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.explain import display_width, escape, explain, marked, match_table, side_by_side
from datagen.schema import UserError

ONE = "The old stone bridge was built by monks."
OTHER = "The new stone bridge was built by four monks!"


def test_words_that_differ_are_in_brackets():
    left, right = marked(ONE, OTHER)
    assert left.strip() == "The [old] stone bridge was built by monks."
    assert right.strip() == "The [new] stone bridge was built by [four] monks!"


def test_letters_that_differ_where_words_have_no_blanks():
    left, right = marked("这座古老的石桥", "这座木桥")
    assert left == "这座[古老的石]桥" and right == "这座[木]桥"


def test_the_excerpt_starts_where_the_texts_meet():
    before = " ".join(f"word{i}" for i in range(200))
    left, right = marked(f"{before} {ONE}", ONE)
    assert left.startswith("... [word194 word195 word196 word197 word198 word199] The old")
    assert right.strip() == ONE


def test_control_characters_are_spelled_out():
    assert escape("a\x1b[31mb\u202ec\nd\u200cé") == "a\\u001b[31mb\\u202ec\nd\u200cé"


def test_lines_side_by_side():
    lines = side_by_side(ONE, OTHER, width=47)
    plain = [line.replace("\u2068", "").replace("\u2069", "") for line in lines]
    assert plain == [
        "training text          | evaluation text",
        "---------------------- | ----------------------",
        "The [old] stone bridge | The [new] stone bridge",
        "was built by monks.    | was built by [four]",
        "                       | monks!",
    ]


@settings(deadline=None, max_examples=80)
@given(st.text(max_size=80), st.text(max_size=80), st.integers(40, 120))
def test_no_line_is_wider_than_the_terminal(one, other, width):
    for line in side_by_side(one, other, width=width):
        assert display_width(line) <= width
        assert not [c for c in line if unicodedata.category(c) == "Cc"]


def test_what_a_folder_holds(tmp_path):
    rows = {
        "query": ["q", "x"],
        "input_task": ["a", "b"],
        "positive": [ONE, "y"],
        "task": ["bridges", None],
        "kind": ["near_document", None],
        "matched_column": ["positive", None],
        "matched_text": [OTHER, None],
        "similarity": [0.5, None],
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    shown = explain(str(tmp_path), count=3, width=80)
    assert "1. near_document of bridges: similarity 0.50, column positive" in shown
    assert "[old]" in shown and shown.endswith("1 matches, 1 shown")
    with pytest.raises(UserError, match="holds no matches"):
        explain(str(tmp_path / "absent"))


def test_the_table_of_matches():
    table = match_table({"squad": {"wiki": 3, "faq": 10}, "stsb": {"faq": 200}})
    assert table.splitlines() == [
        "evaluation set  faq  wiki  all",
        "stsb            200     0  200",
        "squad            10     3   13",
    ]
    assert match_table({}) == "no text matches an evaluation set"
