"""Mix: which rows a stage takes, that they say what the queries said, and that nothing is lost."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_mix import SOURCES, build, document, mined, query, rows_of, steps_of

import datagen.document_table
import datagen.mix
from datagen.document_table import link
from datagen.mix import mix_documents, write_mix
from datagen.mix_ids import DocumentLookup, coin, id_numbers, seeded_keys
from datagen.mix_shards import take_rows
from datagen.schema import UserError
from datagen.stages import Stage, share
from datagen.steps import LedgerRow, check_ledger, run_steps
from datagen.store import Folder, read_manifest, read_table
from datagen.verify import verify_mix

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
    drawn = seeded_keys(id_numbers(pa.array(trivia)), seed=5, purpose="rows")
    smallest = [trivia[i] for i in np.argsort(drawn)[:3]]
    assert {i for source, i in taken[3] if source == "trivia"} == set(smallest)


def test_seeded_keys_depend_on_the_id_the_seed_and_the_purpose_alone() -> None:
    ids = id_numbers(pa.array([f"{i:032x}" for i in range(50)]))
    keys = seeded_keys(ids, seed=1, purpose="rows")
    assert len(set(keys.tolist())) == 50
    np.testing.assert_array_equal(keys[::-1], seeded_keys(ids[::-1], seed=1, purpose="rows"))
    assert not set(keys) & set(seeded_keys(ids, seed=2, purpose="rows"))
    assert not set(keys) & set(seeded_keys(ids, seed=1, purpose="instruction"))
    assert len(seeded_keys(ids[:0], seed=1, purpose="rows")) == 0


def test_a_coin_falls_as_often_as_its_share_says() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**64, (20_000, 2), dtype=np.uint64)
    assert coin(numbers, seed=3, share=1.0, purpose="x").all()
    assert not coin(numbers, seed=3, share=0.0, purpose="x").any()
    third, half = (coin(numbers, seed=3, share=s, purpose="x") for s in (0.3, 0.5))
    assert abs(third.mean() - 0.3) < 0.01
    assert (half | ~third).all(), "a larger share keeps what a smaller one has"


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


def test_the_bytes_do_not_depend_on_how_many_rows_are_gathered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(str(tmp_path / "whole"), *rows_of())
    for module in (datagen.mix, datagen.document_table):
        monkeypatch.setattr(module, "BLOCK_ROWS", 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one thread
    build(str(tmp_path / "parts"), *rows_of())
    for table in ("documents", "pretrain", "finetune"):
        assert digests(tmp_path / "whole", table) == digests(tmp_path / "parts", table)


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
        {"name": "finetune", "negatives": 1, "temperature": 0.5},
        {"name": "finetune", "negatives": 1, "rows": 10, "temperature": -1.0},
        {"name": "finetune", "negatives": 1, "task_rows": {"reranking": 3}},
        {"name": "finetune", "negatives": 1, "source_rows": {"trivia": 0}},
        {"name": "warmup", "negatives": 1},
        {"name": "pretrain", "negatives": 0},
        {"name": "pretrain", "negatives": 1, "tasks": ("retrieval", "reranking")},
    ],
)
def test_an_unusable_stage_is_refused_when_the_recipe_is_read(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="mend the recipe") as error:
        Stage(**fields)
    assert error.value.exit_status == 2


@pytest.mark.parametrize("change", [{"negatives": 9}, {"tasks": ("clustering",)}])
def test_a_stage_without_rows_is_an_error_that_names_it(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    stage = Stage(**{"name": "finetune", "negatives": 1, "rows_per_source": 5, **change})
    with pytest.raises(UserError, match="stage 'finetune' has no rows"):
        build(str(tmp_path), *rows_of(), stages=(stage,))


@pytest.mark.parametrize(
    "change",
    [
        {"sources": ("trivia", "trivial")},
        {"source_rows": {"trivial": 5}},
        {"rows": 9, "weights": {"trivial": 2.0}},
    ],
)
def test_sources_that_are_not_there_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    stage = Stage(name="finetune", negatives=1, **change)
    with pytest.raises(UserError, match="have no queries: trivial\n.*trivia\n"):
        build(str(tmp_path), *rows_of(), stages=(stage,))


def test_a_source_of_which_nothing_was_left_is_named_where_the_recipe_allows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(name="finetune", negatives=1, sources=("trivia", "written"))
    *_, mix = build(str(tmp_path), *rows_of(), stages=(stage,), may_be_empty=("written", "trivia"))
    manifest = read_manifest(Folder(str(tmp_path)).folder(mix.place))
    assert manifest.stats["empty_sources"] == ["written"]
    assert "left no queries of written" in caplog.text
    other = Stage(name="finetune", negatives=1, sources=("trivia", "trivial"))
    with pytest.raises(UserError, match="have no queries: trivial"):
        build(str(tmp_path / "2"), *rows_of(), stages=(other,), may_be_empty=("written",))


def test_quotas_by_source_task_and_language(tmp_path: Path) -> None:
    stage = Stage(
        name="finetune",
        negatives=1,
        source_rows={"python": 3},
        task_rows={"bitext": 4},
        language_rows={"eng": 12, "zho": 2},
    )
    build(str(tmp_path), *rows_of(per_source=10), stages=(stage,))
    rows = stage_rows(tmp_path, "finetune")
    assert Counter(r["language"] for r in rows) == {"eng": 12, "zho": 2, "deu": 10}
    assert Counter(r["source"] for r in rows)["python"] <= 3
    assert Counter(r["task"] for r in rows)["bitext"] <= 4


def test_a_total_is_shared_by_temperature_and_weights(tmp_path: Path) -> None:
    queries, documents, found = rows_of(["trivia", "python"], per_source=20)
    gone = {q["query_id"] for q in queries if q["source"] == "python"}
    gone = set(sorted(gone)[5:])  # 20 of trivia, 5 of python
    keep = [i for i, q in enumerate(queries) if q["query_id"] not in gone]
    rows = [queries[i] for i in keep], documents, [found[i] for i in keep]
    for options, expected in (
        ({"temperature": 1.0}, {"trivia": 8, "python": 2}),
        ({"temperature": 0.0}, {"trivia": 5, "python": 5}),
        ({"temperature": 0.5}, {"trivia": 7, "python": 3}),  # shares 2 : 1
        ({"weights": {"python": 4.0}}, {"trivia": 5, "python": 5}),
        ({"weights": {"python": 0.0}}, {"trivia": 10}),
    ):
        stage = Stage(name="finetune", negatives=1, rows=10, **options)
        output = tmp_path / "-".join(map(str, expected.values())) / next(iter(options))
        build(str(output), *rows, stages=(stage,))
        assert Counter(r["source"] for r in stage_rows(output, "finetune")) == expected


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 5)), min_size=1, max_size=8),
    st.integers(1, 300),
)
def test_shares_sum_to_the_total_and_no_group_gives_more_than_it_has(
    groups: list[tuple[int, float]], total: int
) -> None:
    sizes, weights = np.array([g[0] for g in groups]), np.array([g[1] for g in groups])
    wanted = np.where(sizes > 0, weights, 0.0)
    given_rows = share(sizes, wanted, total)
    assert (given_rows <= sizes).all()
    assert (given_rows[wanted == 0] == 0).all()
    assert given_rows.sum() == min(total, sizes[wanted > 0].sum())


def test_variants_of_a_mix_share_one_documents_table(tmp_path: Path) -> None:
    queries, documents, found = rows_of(per_source=14)
    dedup, mine = steps_of(queries, documents, found)
    stages = (Stage(name="finetune", negatives=1, rows_per_source=5),)
    shared = mix_documents(dedup, mine, mixes=[(stages, seed) for seed in range(3)])
    mixes = [
        write_mix(dedup, mine, stages=stages, seed=seed, documents=shared, name=f"mix-{seed}")
        for seed in range(3)
    ]
    done = run_steps([dedup, mine, shared, *mixes], str(tmp_path), executor="local")
    texts = {d["doc_id"]: d["text"] for d in documents}
    positives = {q["query_id"]: [texts[i] for i in q["positives"]] for q in queries}
    drawn = []
    for seed in range(3):
        place = tmp_path / f"mix-{seed}"
        assert verify_mix(str(place)) == ["ledger.json: missing"], "the report writes it"
        mixed = read_table(Folder(str(place)), "documents")["text"].to_pylist()
        rows = read_table(Folder(str(place)), "finetune").to_pylist()
        for row in rows:
            assert [mixed[n] for n in row["positives"]] == positives[row["query_id"]]
        drawn.append({row["query_id"] for row in rows})
        for shard in done[f"mix-{seed}"].table("documents"):
            one = tmp_path / "steps" / "mix_documents" / shard.name
            assert (place / shard.name).samefile(one), "text is on disk once"
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert done["mix-0"].table("documents") == done["mix-2"].table("documents")


def test_shards_are_copied_where_they_cannot_be_linked(tmp_path: Path) -> None:
    build(str(tmp_path), *rows_of(["trivia"]))
    source = Folder(f"{tmp_path}/mix")
    shard = read_manifest(source).table("documents")[0]
    for target in (Folder(f"file://{tmp_path}/other"), Folder(f"{tmp_path}/linked")):
        link(source, target, shard)
        link(source, target, shard)  # again, as after a crash
        assert target.read_bytes(shard.name) == source.read_bytes(shard.name)
        assert target.names() == [shard.name]


def test_the_manifest_says_where_the_blocks_lie(tmp_path: Path) -> None:
    build(str(tmp_path), *rows_of())
    (told,) = [read_manifest(Folder(f"{tmp_path}/mix")).stats["blocks"]["finetune"]]
    rows = stage_rows(tmp_path, "finetune")
    start = 0
    for block in told:
        for row in rows[start : start + block["rows"]]:
            assert {k: row[k] for k in ("origin", "task", "source")} == {
                k: block[k] for k in ("origin", "task", "source")
            }
        start += block["rows"]
    assert start == len(rows)


def test_mined_rows_of_other_queries_are_refused(tmp_path: Path) -> None:
    queries, documents, found = rows_of(["trivia"])
    dedup, mine = steps_of(queries, documents, found)
    _, shorter = steps_of(queries[1:], documents, found[1:])
    mix = write_mix(dedup, shorter, stages=(Stage(name="pretrain", negatives=1),))
    with pytest.raises(RuntimeError, match="13 mined rows are not the rows of the 14"):
        run_steps([dedup, shorter, mix], str(tmp_path), executor="local")


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
    lookup = DocumentLookup([id_numbers(pa.array(part)) for part in (ids[:2], ids[2:])])
    assert lookup.rows(pa.array(ids[::-1])).tolist() == [5, 4, 3, 2, 1, 0]
    assert lookup.rows(pa.array(["", *ids], pa.string())[2:4]).tolist() == [1, 2]
    assert lookup.rows(pa.array([], pa.string())).tolist() == []
    for absent in (half + "0" * 15 + "5", half + "f" * 16, "e" * 32):
        with pytest.raises(RuntimeError, match=f"document {absent} is referred to"):
            lookup.rows(pa.array([ids[0], absent]))
    with pytest.raises(RuntimeError, match="32 digits"):
        lookup.rows(pa.array(["abc"]))
