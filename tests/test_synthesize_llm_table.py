"""What each LLM was asked, what of it stays, and that none is lost."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_rows import row, table

from datagen.synthesize.llm_table import REQUESTS, Spent, llm_table, summed

SELECTION = ("other_language", "near_duplicate")


def request(llm="a", kind="retrieval", language="eng", reason=None, tokens=(100, 10)):
    names = ("llm", "kind", "language", "reason", "prompt_tokens", "output_tokens")
    return dict(zip(names, (llm, kind, language, reason, *tokens), strict=True))


def requests(*rows) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=REQUESTS)


def test_one_record_per_llm_kind_and_language():
    asked = requests(
        request(),
        request(reason="truncated", tokens=(100, 56)),
        request(reason="near_duplicate", tokens=(90, 14)),
        request(reason="near_duplicate"),
        request(kind="sts", language="deu", tokens=(40, 10)),
        request(llm="b", reason="invalid_json", tokens=(10, 0)),
    )
    kept = table([row("a/retrieval/0", "x"), row("a/sts/0", "y", query_language="deu")])
    found = llm_table(
        asked,
        kept,
        selection=SELECTION,
        spent={"a": Spent(seconds=50, gpu_seconds=200), "b": Spent(seconds=3)},
        diversity={("a", "retrieval", "eng"): {"distinct_2": 0.9}},
    )
    assert found == [
        {
            "llm": "a", "kind": "retrieval", "language": "eng",
            "requested": 4, "valid": 3, "kept": 1, "prompt_tokens": 390, "output_tokens": 90,
            "reasons": {"near_duplicate": 2, "truncated": 1},
            "seconds": 45.0, "gpu_seconds": 180.0, "distinct_2": 0.9,
        },
        {
            "llm": "a", "kind": "sts", "language": "deu",
            "requested": 1, "valid": 1, "kept": 1, "prompt_tokens": 40, "output_tokens": 10,
            "reasons": {}, "seconds": 5.0, "gpu_seconds": 20.0,
        },
        {
            "llm": "b", "kind": "retrieval", "language": "eng",
            "requested": 1, "valid": 0, "kept": 0, "prompt_tokens": 10, "output_tokens": 0,
            "reasons": {"invalid_json": 1}, "seconds": 0.0, "gpu_seconds": 0.0,
        },
    ]  # fmt: skip


def test_records_add_up_over_languages():
    asked = requests(
        request(), request(language="deu", reason="truncated"), request(reason="near_duplicate"),
        request(kind="sts", language="fra", reason="truncated"),
    )  # fmt: skip
    kept = table([row("a/retrieval/0", "x")])
    found = llm_table(asked, kept, selection=SELECTION, spent={"a": Spent(seconds=4)})
    one, other = summed(found, by=("llm", "kind"))
    assert one == {
        "llm": "a", "kind": "retrieval", "requested": 3, "valid": 2, "kept": 1,
        "prompt_tokens": 300, "output_tokens": 30, "seconds": 3.0, "gpu_seconds": 0.0,
        "reasons": {"near_duplicate": 1, "truncated": 1},
    }  # fmt: skip
    assert (other["kind"], other["requested"], other["reasons"]) == ("sts", 1, {"truncated": 1})
    assert summed(found, by=("llm",))[0]["requested"] == 4


@pytest.mark.parametrize("kept", [[], ["a/retrieval/0", "a/retrieval/1"], ["b/retrieval/0"]])
def test_a_request_that_is_neither_kept_nor_counted_is_an_error(kept):
    rows = table([row(name, "x") for name in kept])
    with pytest.raises(RuntimeError, match="some are lost"):
        llm_table(requests(request(), request(reason="truncated")), rows, selection=SELECTION)


REASONS = st.sampled_from([None, "truncated", "invalid_json", "near_duplicate"])
ASKED = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["sts", "code"]), REASONS))


@given(ASKED)
@settings(max_examples=50, deadline=None)
def test_sums_reconcile(asked):
    rows = [request(llm=llm, kind=kind, reason=reason) for llm, kind, reason in asked]
    stay = [(llm, kind) for llm, kind, reason in asked if reason is None]
    kept = table([row(f"{llm}/{kind}/{i}", "x") for i, (llm, kind) in enumerate(stay)])
    found = llm_table(requests(*rows), kept, selection=SELECTION, spent={"a": Spent(seconds=9)})
    for record in found:
        assert record["requested"] == record["kept"] + sum(record["reasons"].values())
        selected = record["reasons"].get("near_duplicate", 0)
        assert record["valid"] == record["kept"] + selected
    assert sum(record["requested"] for record in found) == len(asked)
    seconds = sum(record["seconds"] for record in found if record["llm"] == "a")
    assert not seconds or seconds == pytest.approx(9, abs=0.1)
