"""Mix: which rows a stage takes, that they say what the queries said, and that nothing is lost."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_mix import SOURCES, build, document, mined, query, rows_of, steps_of

from datagen.mix import DocumentLookup, Stage, choose, seeded_order, take_rows, write_mix
from datagen.schema import MINED, QUERY, UserError
from datagen.steps import LedgerRow, check_ledger, run_steps
from datagen.store import Folder, read_manifest, read_table

PUBLIC = tuple(source for source, (_, origin, *_) in SOURCES.items() if origin == "public")


def stage_rows(output: Path, stage: str) -> list[dict[str, Any]]:
    return read_table(Folder(f"{output}/mix"), stage).to_pylist()


def digests(output: Path, table: str) -> list[str]:
    return [shard.sha256 for shard in read_manifest(Folder(f"{output}/mix")).table(table)]


def test_each_stage_takes_its_tasks_and_the_rows_with_enough_negatives(tmp_path: Path) -> None:
    build(str(tmp_path), *rows_of(per_source=6))
    pretrain, finetune = stage_rows(tmp_path, "pretrain"), stage_rows(tmp_path, "finetune")
    assert Counter(row["source"] for row in pretrain) == {"trivia": 6, "python": 6, "questions": 6}
    # The first query of each source has 2 negatives: enough for pretrain only.
    assert Counter(row["source"] for row in finetune) == dict.fromkeys(SOURCES, 5)
    assert {row["task"] for row in finetune} == {"retrieval", "bitext", "sts", "classification"}
    assert all(len(row["negatives"]) >= 4 for row in finetune)


def test_row_numbers_lead_to_the_texts_that_the_ids_named(tmp_path: Path) -> None:
    queries, documents, found = rows_of(per_source=8, hostile=True)
    build(str(tmp_path), queries, documents, found)
    texts = {row["doc_id"]: row["text"] for row in documents}
    by_query = {row["query_id"]: (row, mine) for row, mine in zip(queries, found, strict=True)}
    mixed = read_table(Folder(f"{tmp_path}/mix"), "documents")["text"].to_pylist()
    for stage in ("pretrain", "finetune"):
        for row in stage_rows(tmp_path, stage):
            before, mine = by_query[row["query_id"]]
            assert row["query"] == before["query"]
            assert [mixed[n] for n in row["positives"]] == [texts[i] for i in before["positives"]]
            assert [mixed[n] for n in row["negatives"]] == [texts[i] for i in mine["negatives"]]
            assert row["positive_scores"] == pytest.approx(mine["positive_scores"])
            assert row["negative_scores"] == pytest.approx(mine["negative_scores"])
            assert row["in_batch"] == (row["task"] == "retrieval")
            assert row["symmetric"] == (row["task"] in ("sts", "bitext"))


def test_only_documents_that_a_row_refers_to_are_in_the_mix_once(tmp_path: Path) -> None:
    queries, documents, found = rows_of(["trivia"], per_source=5)
    build(str(tmp_path), queries, documents + [document("trivia", "nobody asks for this")], found)
    mixed = read_table(Folder(f"{tmp_path}/mix"), "documents")["doc_id"].to_pylist()
    used = {i for row in found for i in row["positives"] + row["negatives"]}
    assert sorted(mixed) == sorted(used)


def test_a_larger_cap_keeps_every_row_of_a_smaller_one(tmp_path: Path) -> None:
    rows = rows_of(["trivia", "similar"], per_source=14)
    taken = {}
    for cap in (3, 7):
        stages = (Stage(name="finetune", negatives=4, rows_per_source=cap),)
        build(str(tmp_path / str(cap)), *rows, stages=stages, seed=5)
        taken[cap] = {
            (r["source"], r["query_id"]) for r in stage_rows(tmp_path / str(cap), "finetune")
        }
        assert Counter(source for source, _ in taken[cap]) == {"trivia": cap, "similar": cap}
    assert taken[3] < taken[7]
    usable = [
        q["query_id"] for q, m in zip(rows[0], rows[2], strict=True) if len(m["negatives"]) >= 4
    ]
    trivia = [q["query_id"] for q in rows[0] if q["source"] == "trivia" and q["query_id"] in usable]
    smallest = [trivia[i] for i in seeded_order(trivia, 5)[:3]]
    assert {i for source, i in taken[3] if source == "trivia"} == set(smallest)


def test_the_seeded_order_depends_on_the_ids_and_the_seed_alone() -> None:
    ids = [f"{i:032x}" for i in range(50)]
    order = [ids[i] for i in seeded_order(ids, 1)]
    backwards = ids[::-1]
    assert order == [backwards[i] for i in seeded_order(backwards, 1)]
    assert order != [ids[i] for i in seeded_order(ids, 2)]
    assert len(seeded_order([], 1)) == 0


def test_public_shards_are_the_same_bytes_with_and_without_synthetic_rows(tmp_path: Path) -> None:
    build(str(tmp_path / "public"), *rows_of(PUBLIC))
    build(str(tmp_path / "both"), *rows_of())
    for table in ("documents", "pretrain", "finetune"):
        alone, both = digests(tmp_path / "public", table), digests(tmp_path / "both", table)
        assert both[: len(alone)] == alone
        assert len(both) > len(alone)
    public = sum(s.rows for s in read_manifest(Folder(f"{tmp_path}/public/mix")).table("documents"))
    for row in stage_rows(tmp_path / "both", "finetune"):
        if row["origin"] == "public":
            assert max(row["positives"] + row["negatives"]) < public


def test_a_cap_on_a_source_of_both_origins_leaves_its_public_rows_alone(tmp_path: Path) -> None:
    """An LLM that writes for a source must not push that source's public rows out of the budget."""
    queries, documents, found = rows_of(["trivia", "questions"], per_source=10)
    for row in queries + documents:
        row["source"] = "trivia"
    keep = [i for i, row in enumerate(queries) if row["origin"] == "public"]
    public = ([queries[i] for i in keep], documents[:16], [found[i] for i in keep])
    stages = (Stage(name="pretrain", negatives=1, rows_per_source=4),)
    build(str(tmp_path / "public"), *public, stages=stages)
    build(str(tmp_path / "both"), queries, documents, found, stages=stages)
    alone, both = digests(tmp_path / "public", "pretrain"), digests(tmp_path / "both", "pretrain")
    assert both[: len(alone)] == alone


def test_the_ledger_says_why_each_query_is_absent(tmp_path: Path) -> None:
    stages = (
        Stage(name="pretrain", negatives=1, tasks=("retrieval",), rows_per_source=4),
        Stage(name="finetune", negatives=4, sources=("trivia", "similar"), rows_per_source=3),
    )
    queries, documents, found = rows_of(["trivia", "similar", "catalogs"], per_source=8)
    build(str(tmp_path), queries, documents, found, stages=stages)
    ledger = [LedgerRow(**row) for row in read_manifest(Folder(f"{tmp_path}/mix")).ledger]
    check_ledger("mix", ledger)
    rows = {row.source: row for row in ledger}
    assert rows["catalogs"].dropped == {"in_no_stage": 8}
    assert rows["similar"].dropped == {"over_budget": 4, "too_few_negatives": 1}
    assert rows["similar"].kept == 3
    kept = {r["query_id"] for s in ("pretrain", "finetune") for r in stage_rows(tmp_path, s)}
    assert sum(row.kept for row in ledger) == len(kept)
    assert all(row.unit == "queries" for row in ledger)


def test_shares_are_drawn_per_query_and_stay_with_it(tmp_path: Path) -> None:
    rows = rows_of(["trivia", "similar"], per_source=60)
    seen = []
    for name, per_shard in (("one", 1000), ("many", 7)):
        half = Stage(name="finetune", negatives=4, instruction_share=0.5, symmetric_share=0.5)
        build(str(tmp_path / name), *rows, stages=(half,), rows_per_shard=per_shard)
        table = stage_rows(tmp_path / name, "finetune")
        seen.append({r["query_id"]: (r["instruction"], r["symmetric"]) for r in table})
    assert seen[0] == seen[1]
    with_instruction = sum(instruction is not None for instruction, _ in seen[0].values())
    symmetric = sum(flag for _, flag in seen[0].values())
    assert 40 <= with_instruction <= 78  # of 118, half of them within three standard deviations
    assert 15 <= symmetric <= 44  # of 59
    assert all("Instruction of" in i for i, _ in seen[0].values() if i is not None)


def test_a_recipe_can_replace_the_instruction_of_a_source(tmp_path: Path) -> None:
    build(
        str(tmp_path), *rows_of(["trivia", "similar"]), instructions={"trivia": "Find the answer"}
    )
    by_source = {r["source"]: r["instruction"] for r in stage_rows(tmp_path, "finetune")}
    assert by_source == {"trivia": "Find the answer", "similar": "Instruction of similar"}


def test_at_most_max_negatives_are_stored_and_given_ones_come_first(tmp_path: Path) -> None:
    own = [document("trivia", f"document {i}") for i in range(12)]
    row = query("trivia", "which?", [own[0]["doc_id"]])
    row["given_negatives"] = [own[9]["doc_id"]]
    found = mined(row, [own[9]["doc_id"], *(d["doc_id"] for d in own[1:9])])
    stages = (Stage(name="finetune", negatives=4),)
    build(str(tmp_path), [row], own, [found], stages=stages, max_negatives=6)
    (mixed,) = stage_rows(tmp_path, "finetune")
    texts = read_table(Folder(f"{tmp_path}/mix"), "documents")["text"].to_pylist()
    assert [texts[n] for n in mixed["negatives"]] == [
        "document 9",
        *(f"document {i}" for i in range(1, 6)),
    ]
    assert len(mixed["negative_scores"]) == 6
    assert sorted(texts) == sorted(
        ["document 0", "document 9", *(f"document {i}" for i in range(1, 6))]
    )


def test_rows_lie_in_blocks_of_one_task(tmp_path: Path) -> None:
    build(str(tmp_path), *rows_of())
    blocks = [(r["origin"], r["task"], r["source"]) for r in stage_rows(tmp_path, "finetune")]
    changes = sum(a != b for a, b in zip(blocks, blocks[1:], strict=False))
    assert changes == len(set(blocks)) - 1


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "warmup", "negatives": 1},
        {"name": "pretrain", "negatives": 0},
        {"name": "pretrain", "negatives": 1, "tasks": ("retrieval", "reranking")},
    ],
)
def test_an_unusable_stage_is_refused_when_the_recipe_is_read(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="mend the recipe") as error:
        Stage(**fields)
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    "change", [{"negatives": 9}, {"sources": ("absent",)}, {"tasks": ("clustering",)}]
)
def test_a_stage_without_rows_is_an_error_that_names_it(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    stage = Stage(**{"name": "finetune", "negatives": 1, "rows_per_source": 5, **change})
    with pytest.raises(UserError, match="stage 'finetune' has no rows"):
        build(str(tmp_path), *rows_of(), stages=(stage,))


def test_mined_rows_of_other_queries_are_refused(tmp_path: Path) -> None:
    queries, documents, found = rows_of(["trivia"])
    dedup, mine = steps_of(queries, documents, found)
    _, shorter = steps_of(queries[1:], documents, found[1:])
    mix = write_mix(dedup, shorter, stages=(Stage(name="pretrain", negatives=1),))
    with pytest.raises(RuntimeError, match="not the rows of the queries"):
        run_steps([dedup, shorter, mix], str(tmp_path), executor="local")


def test_choosing_reads_chunked_tables_like_whole_ones() -> None:
    queries, _, found = rows_of(["trivia", "questions"], per_source=9)
    whole = pa.Table.from_pylist(queries, schema=QUERY), pa.Table.from_pylist(found, schema=MINED)
    parts = [
        pa.concat_tables([table.slice(i, 4) for i in range(0, len(queries), 4)]) for table in whole
    ]
    stage = Stage(name="pretrain", negatives=1, rows_per_source=4)
    np.testing.assert_array_equal(choose(*whole, stage, seed=3), choose(*parts, stage, seed=3))


def test_rows_are_taken_from_more_than_two_gibibytes_of_text() -> None:
    chunk = pa.table({"number": range(4096), "text": [f"{i}-{'x' * 1000}" for i in range(4096)]})
    table = pa.concat_tables([chunk] * 540)  # one chunk, listed many times: little memory
    assert table["text"].nbytes > 2**31
    rows = np.array([540 * 4096 - 1, 5, 4096 * 300 + 7, 5])
    taken = take_rows(table, rows)
    assert taken["number"].to_pylist() == [4095, 5, 7, 5]
    assert [text.split("-")[0] for text in taken["text"].to_pylist()] == ["4095", "5", "7", "5"]
    assert take_rows(table, np.array([], dtype=np.int64)).num_rows == 0


def test_documents_are_found_by_id_even_where_half_of_an_id_is_shared() -> None:
    half = "0123456789abcdef"
    ids = [half + "0" * 15 + last for last in "c4a7"] + ["f" * 32, "0" * 32]
    lookup = DocumentLookup(pa.chunked_array([ids[:2], ids[2:]]))
    assert lookup.rows(pa.array(ids[::-1])).tolist() == [5, 4, 3, 2, 1, 0]
    assert lookup.rows(pa.array(["", *ids], pa.string())[2:4]).tolist() == [1, 2]
    assert lookup.rows(pa.array([], pa.string())).tolist() == []
    for absent in (half + "0" * 15 + "5", half + "f" * 16, "e" * 32):
        with pytest.raises(RuntimeError, match=f"document {absent} is referred to"):
            lookup.rows(pa.array([ids[0], absent]))
    with pytest.raises(RuntimeError, match="32 digits"):
        lookup.rows(pa.array(["abc"]))
