"""Every layout, on rows as the data sets have them."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.schema import PAIR, UserError
from datagen.sources import SourceRows
from datagen.sources.adapters import adapt, check, collect
from datagen.sources.shapes import ADAPTERS


def _adapt(
    adapter: str,
    columns: dict[str, str],
    records: list[dict[str, Any]],
    *,
    texts: Any = None,
    task: str = "retrieval",
    **options: Any,
) -> SourceRows:
    check(adapter, columns, options)
    spec = {
        "source": "s", "task": task, "adapter": adapter, "columns": columns, "options": options,
        "instruction": "i", "licence": "mit", "language": None, "query_language": None,
        "document_language": None, "code": False,
    }  # fmt: skip
    rows = adapt([(f"f#{i}", r) for i, r in enumerate(records)], spec, texts=texts)
    assert rows.rows_in == len(rows.pairs) + len(rows.quarantined) + rows.dropped.total()
    pa.Table.from_pylist(rows.pairs, schema=PAIR)
    return rows


def _negatives(pair: dict[str, Any]) -> list[str]:
    return [negative["text"] for negative in pair["negatives"] or []]


def test_columns() -> None:
    rows = _adapt(
        "columns",
        {"query": "question", "text": "answer"},
        [{"question": "is it so?", "answer": "Yes."}, {"question": "why?", "answer": "So."}],
    )
    assert [(p["query"], p["text"], p["provenance"]["row"]) for p in rows.pairs] == [
        ("is it so?", "Yes.", "f#0"),
        ("why?", "So.", "f#1"),
    ]
    assert rows.pairs[0]["instruction"] == "i" and rows.pairs[0]["licence"] == "mit"


def test_a_triplet_has_its_third_text_as_negative() -> None:
    columns = {"query": "anchor", "text": "positive", "negatives": "negative"}
    record = {"anchor": "How old is he?", "positive": "What is his age?", "negative": "Who is he?"}
    (pair,) = _adapt("triplets", columns, [record], task="sts").pairs
    assert (pair["text"], _negatives(pair)) == ("What is his age?", ["Who is he?"])


F2LLM = {"query": "query", "text": "passage", "negatives": "negative_*"}


def test_numbered_negatives_keep_their_order_and_blanks_are_left_out() -> None:
    record: dict[str, Any] = {"query": "q", "passage": "p"}
    record |= {f"negative_{i}": f"n{i}" for i in range(1, 25)}
    record["negative_2"] = None
    (pair,) = _adapt("triplets", F2LLM, [record]).pairs
    assert _negatives(pair) == ["n1", *(f"n{i}" for i in range(3, 25))]


def test_an_instruction_inside_the_texts_is_taken_out() -> None:
    record = {
        "query": "Instruct: Find the same.\nQuery: Hallo\nWelt",
        "passage": "Instruct: Find the same.\nQuery: Hello\nworld",
        "negative_1": "Instruct: Find the same.\nQuery: Bye",
    }
    (pair,) = _adapt("triplets", F2LLM, [record]).pairs
    assert (pair["instruction"], pair["query"]) == ("Find the same.", "Hallo\nWelt")
    assert (pair["text"], _negatives(pair)) == ("Hello\nworld", ["Bye"])


def test_a_list_of_positives_gives_a_pair_for_each() -> None:
    columns = {"query": "query", "text": "pos", "negatives": "neg"}
    rows = _adapt(
        "triplets",
        columns,
        [{"query": "q", "pos": ["a", "b"], "neg": ["n"]}, {"query": "r", "pos": [], "neg": []}],
    )
    assert [(p["text"], p["provenance"]["row"]) for p in rows.pairs] == [
        ("a", "f#0.0"),
        ("b", "f#0.1"),
    ]
    assert rows.dropped == {"no_positive": 1}


BEIR = {"query_id": "query-id", "document_id": "corpus-id", "score": "score"}


def test_beir_joins_judgements_queries_and_documents() -> None:
    texts = {
        "queries": {"PLAIN-3": {"title": None, "text": "Breast cancer cells feed on cholesterol"}},
        "documents": {"MED-2436": {"title": "Statins", "text": "A cohort study."}},
    }
    records = [
        {"query-id": "PLAIN-3", "corpus-id": "MED-2436", "score": 1.0},
        {"query-id": "PLAIN-3", "corpus-id": "MED-2436", "score": 0.0},
        {"query-id": "PLAIN-3", "corpus-id": "MED-1", "score": 1.0},
        {"query-id": "PLAIN-4", "corpus-id": "MED-2436", "score": 1.0},
    ]
    rows = _adapt("beir", BEIR, records, texts=texts)
    (pair,) = rows.pairs
    assert (pair["query"][:6], pair["title"], pair["text"]) == (
        "Breast", "Statins", "A cohort study.",
    )  # fmt: skip
    assert rows.dropped == {"not_relevant": 1}
    reasons = [row["reason"] for row in rows.quarantined]
    assert reasons == ["unknown_id_in_documents", "unknown_id_in_queries"]


NEMOTRON = {"query": "question", "positives": "pos_doc", "negatives": "neg_doc"}
RELEASED = {
    "question_id": "0", "question": "q_1", "corpus_id": "c",
    "pos_doc": [{"id": "d_2"}], "neg_doc": [{"id": "d_0"}],
}  # fmt: skip


def test_ids_with_their_texts_beside_them() -> None:
    texts = {"documents": {"d_0": {"text": "zero"}, "d_2": {"text": "two"}}}
    (pair,) = _adapt("by_ids", NEMOTRON, [RELEASED | {"question": "Which?"}], texts=texts).pairs
    assert (pair["query"], pair["text"], _negatives(pair)) == ("Which?", "two", ["zero"])


def test_ids_alone_are_restored_by_row_number() -> None:
    table = pa.table({"text": ["zero", "one", "two"]})
    texts = {
        "queries": collect([table], {"text": "text"}, wanted={"q_1"}, prefix="q_"),
        "documents": collect(
            table.to_batches(max_chunksize=2), {"text": "text"}, wanted={"d_0", "d_2"}, prefix="d_"
        ),
    }
    rows = _adapt("by_ids", NEMOTRON, [RELEASED], texts=texts, ids_only=True)
    (pair,) = rows.pairs
    assert (pair["query"], pair["text"], _negatives(pair)) == ("one", "two", ["zero"])
    lost = _adapt("by_ids", NEMOTRON, [RELEASED], texts={"documents": {}}, ids_only=True)
    assert lost.quarantined[0]["reason"] == "unknown_id_in_queries"


def test_texts_are_collected_by_their_ids() -> None:
    corpus = pa.table({"_id": [7, 8, 9], "title": ["", "B", "C"], "text": ["a", "b", "c"]})
    columns = {"id": "_id", "title": "title", "text": "text"}
    found = collect(corpus.to_batches(max_chunksize=1), columns, wanted={"8", "10"})
    assert found == {"8": {"title": "B", "text": "b"}}


NLI = {"query": "premise", "text": "hypothesis", "label": "label"}


def test_entailment_is_positive_and_contradiction_negative() -> None:
    premise = "A person on a horse jumps over a broken down airplane."
    rows = _adapt(
        "nli",
        NLI,
        [
            {"premise": premise, "hypothesis": "A person trains his horse.", "label": 1},
            {"premise": premise, "hypothesis": "A person is at a diner.", "label": 2},
            {"premise": "Other.", "hypothesis": "Lonely.", "label": 2},
            {"premise": premise, "hypothesis": "A person is outdoors.", "label": 0},
            {"premise": premise, "hypothesis": "Nobody agreed.", "label": -1},
            {"premise": premise, "hypothesis": "Strange.", "label": 7},
        ],
    )
    (pair,) = rows.pairs
    assert pair["text"] == "A person is outdoors."
    assert _negatives(pair) == ["A person is at a diner."]
    assert rows.dropped == {
        "given_as_negative": 1, "only_neutral": 1, "only_contradiction": 1, "no_label": 1,
    }  # fmt: skip
    assert rows.quarantined[0]["reason"] == "unknown_label"


STS = {"query": "sentence1", "text": "sentence2", "score": "score"}


def test_sts_keeps_what_is_similar_enough_both_ways_round() -> None:
    records: list[dict[str, Any]] = [
        {"sentence1": "A plane is taking off.", "sentence2": "An air plane takes off.", "score": 5},
        {"sentence1": "A man is smoking.", "sentence2": "A man is skating.", "score": 0.5},
        {"sentence1": "A man", "sentence2": "A woman", "score": "high"},
    ]
    rows = _adapt("sts", STS, records, task="sts", min_score=4.0, swapped=True)
    assert [(p["query"][:2], p["text"][:2], p["score"]) for p in rows.pairs] == [
        ("A ", "An", 5.0),
        ("An", "A ", 5.0),
    ]
    assert rows.dropped == {"score_below_minimum": 1}
    assert rows.quarantined[0]["reason"] == "score_not_a_number"


def test_equal_questions_stand_for_each_other() -> None:
    records: list[dict[str, Any]] = [
        {"set": ["a?", "b?", "c?", "a?"]}, {"set": ["alone?"]}, {"set": "no list"},
    ]  # fmt: skip
    rows = _adapt("duplicates", {"set": "set"}, records, task="sts")
    assert [(p["query"], p["text"]) for p in rows.pairs] == [("a?", "b?"), ("b?", "c?")]
    assert rows.dropped == {"set_of_one": 1}
    assert rows.quarantined[0]["reason"] == "set_not_a_list"


def test_a_label_is_the_document_and_the_others_are_negatives() -> None:
    columns = {"query": "text", "label": "label_text"}
    records: list[dict[str, Any]] = [
        {"text": "i feel low", "label": 0, "label_text": "sadness"},
        {"text": "i feel high", "label": 1, "label_text": "joy"},
        {"text": "i feel nothing", "label": None, "label_text": ""},
    ]
    rows = _adapt("classification", columns, records, task="classification")
    assert [(p["text"], _negatives(p)) for p in rows.pairs] == [
        ("sadness", ["joy"]),
        ("joy", ["sadness"]),
    ]
    assert rows.dropped == {"no_label": 1}


@pytest.mark.parametrize("labels", [["sadness", "joy"], {"0": "sadness", "1": "joy"}])
def test_numbers_of_labels_become_their_texts(labels: Any) -> None:
    columns = {"query": "text", "label": "label"}
    records = [{"text": "i feel high", "label": 1}, {"text": "?", "label": 9}]
    rows = _adapt("classification", columns, records, task="classification", labels=labels)
    assert [(p["text"], _negatives(p)) for p in rows.pairs] == [("joy", ["sadness"])]
    assert rows.quarantined[0]["reason"] == "unknown_label"


def test_a_pair_of_texts_is_one_query_of_two_ways() -> None:
    columns = {"first": "premise", "second": "hypothesis", "label": "label"}
    records = [{"premise": "It {second} rains.", "hypothesis": "It is wet.", "label": 0}]
    labels = ["entailment", "not entailment"]
    rows = _adapt(
        "pair_classification", columns, records, task="pair_classification", labels=labels
    )
    (pair,) = rows.pairs
    assert (pair["text"], _negatives(pair)) == ("entailment", ["not entailment"])
    assert pair["query"].endswith("\nIt is wet.")


def test_a_bitext_goes_both_ways_in_its_languages() -> None:
    columns = {"first": "translation.de", "second": "translation.fr"}
    records: list[dict[str, Any]] = [
        {"translation": {"de": "Guten Tag", "fr": "Bonjour"}},
        {"translation": None},
    ]
    rows = _adapt("bitext", columns, records[:1], task="bitext", languages=["de", "fr"], both=True)
    assert [(p["query"], p["query_language"], p["document_language"]) for p in rows.pairs] == [
        ("Guten Tag", "deu", "fra"),
        ("Bonjour", "fra", "deu"),
    ]


def test_code_on_either_side_has_its_own_language() -> None:
    columns = {"query": "code", "text": "docstring"}
    rows = _adapt("code", columns, [{"code": "x = 1", "docstring": "Set x."}], query_is_code=True)
    (pair,) = rows.pairs
    assert (pair["query_language"], pair["query_script"]) == ("code", "Zyyy")


def test_what_an_adapter_does_not_have_is_an_error() -> None:
    for adapter, columns, options in (
        ("triples", {}, {}),
        ("sts", {"query": "a", "text": "b"}, {}),
        ("sts", {**STS, "colour": "c"}, {}),
        ("nli", NLI, {"min_score": 4}),
        ("sts", STS, {}),
        ("bitext", {"first": "a", "second": "b"}, {}),
    ):
        with pytest.raises(UserError) as error:
            check(adapter, columns, options)
        assert error.value.exit_status == 2


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b", "c"]),
            st.none()
            | st.text(max_size=4)
            | st.integers(-2, 9)
            | st.lists(st.text(max_size=2) | st.dictionaries(st.just("id"), st.text(max_size=2))),
        ),
        max_size=6,
    ),
    st.sampled_from(sorted(ADAPTERS)),
)
def test_any_row_is_accounted_for(records: list[dict[str, Any]], adapter: str) -> None:
    names = ADAPTERS[adapter].required + ADAPTERS[adapter].optional[:2]
    columns = dict(zip(names, "abcab", strict=False))
    options = {name: {"min_score": 1, "languages": ["de", "fr"]}.get(name)
               for name in ADAPTERS[adapter].needed_options}  # fmt: skip
    spec = {
        "source": "s", "task": "sts", "adapter": adapter, "columns": columns, "options": options,
        "instruction": None, "licence": None, "language": None, "query_language": None,
        "document_language": None, "code": False,
    }  # fmt: skip
    rows = adapt([(str(i), r) for i, r in enumerate(records)], spec)
    assert rows.rows_in == len(rows.pairs) + len(rows.quarantined) + rows.dropped.total()
    assert rows.rows_in >= len(records)
