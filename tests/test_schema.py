import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.schema import (
    DOCUMENT,
    PAIR,
    UserError,
    check_schema,
    document_id,
    format_query,
    join_language,
    normalise,
    pair_problem,
    query_id,
    query_scope,
    rejected_row,
    split_language,
)

GOOD = {"query": "capital of France?", "text": "Paris is the capital.", "task": "retrieval"}


def test_ids_see_through_white_space_and_unicode_form():
    assert document_id("Café", "one  two\n") == document_id("Cafe\u0301", "one two")
    assert document_id("a", "b") != document_id("", "a b")
    assert document_id(None, "text") == document_id("", "text")
    assert len(document_id(None, "text")) == 32


def test_a_query_is_the_same_one_only_inside_its_task_and_scope():
    assert query_id("retrieval", "yes") != query_id("bitext", "yes")
    german, french = (query_scope("bitext", "django", tag) for tag in ("deu_Latn", "fra_Latn"))
    assert query_id("bitext", "yes", german) != query_id("bitext", "yes", french)
    assert query_scope("retrieval", "any", "deu_Latn") == ""
    assert query_scope("classification", "banking", None) == "banking"


@given(st.text())
def test_normalising_twice_changes_nothing(text: str):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text(), st.text(), st.text())
def test_no_text_can_forge_another_title(title: str, text: str, tail: str):
    if normalise(title) != normalise(title + "\x1f" + tail):
        assert document_id(title, text) != document_id(title + "\x1f" + tail, text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": ""}, "query_empty"),
        ({"text": " \n"}, "text_empty"),
        ({"text": None}, "text_not_text"),
        ({"text": b"\xff"}, "text_not_text"),
        ({"text": "x" * 5_000_000}, "text_too_long"),
        ({"query": "lone \ud800 surrogate"}, "invalid_unicode"),
        ({"task": "guessing"}, "unknown_task"),
    ],
)
def test_an_unusable_pair_is_named_with_what_was_expected(change, reason):
    found = pair_problem({**GOOD, **change})
    assert found is not None and found[0] == reason
    assert [line.split(":")[0] for line in found[1].splitlines()] == ["found", "expected", "do"]


def test_a_good_pair_has_no_problem():
    assert pair_problem(GOOD) is None


def test_a_rejected_row_keeps_its_bytes_readable_and_bounded():
    row = rejected_row({"source": "s", "text": b"\xff" * 9000}, reason="invalid_utf8")
    assert row["reason"] == "invalid_utf8"
    assert "\\xff" in row["record"] and len(row["record"]) == 4000


def test_a_wrong_schema_names_the_column():
    table = pa.table({"doc_id": [1]})
    with pytest.raises(UserError) as error:
        check_schema(table, DOCUMENT, where="x")
    assert "doc_id: int64" in error.value.found and "doc_id: string" in error.value.expected


def test_a_user_error_reads_in_three_parts_and_crosses_processes_as_fields():
    error = UserError(found="a", expected="b", do="c", exit_status=2)
    assert str(error) == "found: a\nexpected: b\ndo: c"
    assert str(UserError(**error.fields())) == str(error)


def test_query_template_and_language_tags():
    assert format_query("Find it.", "where?") == "Instruct: Find it.\nQuery: where?"
    assert format_query(None, "where?") == "where?"
    assert join_language("deu", "Latn") == "deu_Latn"
    assert split_language("deu_Latn") == ("deu", "Latn")
    assert split_language(None) == (None, None)
    assert "query" in PAIR.names
