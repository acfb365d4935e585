"""Verify: a sound mix passes, and every kind of damage is found and named."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_mix import build, rows_of

from datagen.cli import main
from datagen.report import write_report
from datagen.schema import MIX_DOCUMENT, MIX_ROW, UserError
from datagen.steps import run_steps
from datagen.store import Folder, open_shard, read_manifest, write_manifest, write_shard
from datagen.verify import verify_mix


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    dedup, mine, mixed = build(str(tmp_path), *rows_of(hostile=True))
    report = write_report(mixed, steps=[dedup, mine], samples_per_task=2)
    run_steps([dedup, mine, mixed, report], str(tmp_path), executor="local")
    return tmp_path / "mix"


def rewrite(mix: Path, name: str, change: Callable[[list[dict]], Any], schema: pa.Schema) -> None:
    """Change the rows of a shard and have the manifest vouch for the new bytes."""
    folder = Folder(str(mix))
    rows = open_shard(folder, name).to_pylist()
    change(rows)
    table, _, index = name.removesuffix(".arrow").rpartition("-")
    made = pa.Table.from_pylist(rows, schema=schema)
    shard = write_shard(folder, table, int(index), made, schema)
    manifest = read_manifest(folder)
    shards = tuple(shard if s.name == name else s for s in manifest.shards)
    write_manifest(folder, dataclasses.replace(manifest, shards=shards))


def test_a_sound_mix_has_no_problems(mix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_mix(str(mix)) == []
    assert main(["verify", str(mix)]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []


def test_one_flipped_byte_is_found(mix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = mix / "finetune-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert verify_mix(str(mix)) == ["finetune-00001.arrow: sha256 differs from the manifest"]
    assert main(["verify", str(mix)]) == 1
    assert "finetune-00001.arrow" in capsys.readouterr().out


def test_missing_cut_and_stray_files_are_found(mix: Path) -> None:
    (mix / "documents-00000.arrow").unlink()
    cut = mix / "pretrain-00000.arrow"
    cut.write_bytes(cut.read_bytes()[:1000])
    (mix / "finetune-00099.arrow").write_bytes(b"left over")
    assert verify_mix(str(mix)) == [
        "documents-00000.arrow: missing",
        "pretrain-00000.arrow: sha256 differs from the manifest",
        "finetune-00099.arrow: not in the manifest",
    ]


def damage_dangling(rows: list[dict]) -> None:
    rows[3]["positives"][0] = 10_000
    rows[5]["negatives"][1] = -1


def damage_own_positive(rows: list[dict]) -> None:
    rows[2]["negatives"][3] = rows[2]["positives"][0]


def damage_scores(rows: list[dict]) -> None:
    rows[0]["negative_scores"][0] = float("nan")
    rows[1]["negative_scores"].pop()
    rows[2]["positive_scores"][0] = None


def damage_counts(rows: list[dict]) -> None:
    rows[0]["positives"], rows[0]["positive_scores"] = [], []
    rows[4]["negatives"], rows[4]["negative_scores"] = [7], [0.5]
    rows[6]["negatives"][1] = rows[6]["negatives"][0]


def damage_ids(rows: list[dict]) -> None:
    rows[1]["query_id"] = rows[0]["query_id"]


def damage_names(rows: list[dict]) -> None:
    rows[0]["task"] = "reranking"
    rows[1]["origin"] = "unknown"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            damage_dangling,
            [
                "with a positive outside the 118 documents",
                "with a negative outside the 118 documents",
            ],
        ),
        (damage_own_positive, ["with a positive among the negatives, the first is row 2"]),
        (
            damage_scores,
            [
                "a negative score that is not finite, the first is row 0",
                "more or fewer negative scores than negatives, the first is row 1",
                "a positive score is null",
            ],
        ),
        (
            damage_counts,
            [
                "without a positive, the first is row 0",
                "with fewer than 4 negatives, the first is row 4",
                "with a negative twice, the first is row 6",
            ],
        ),
        (damage_ids, ["finetune: 1 rows repeat a query_id", "different queries, the ledger kept"]),
        (
            damage_names,
            ["whose task is not one of retrieval", "whose origin is not one of public, synthetic"],
        ),
    ],
)
def test_damaged_rows_are_found(
    mix: Path, damage: Callable[[list[dict]], Any], expected: list[str]
) -> None:
    rewrite(mix, "finetune-00000.arrow", damage, MIX_ROW)
    problems = verify_mix(str(mix))
    for sentence in expected:
        assert any(sentence in problem for problem in problems), (sentence, problems)
    assert len(problems) == len(expected), problems


def test_a_shard_of_another_schema_is_found(mix: Path) -> None:
    schema = MIX_DOCUMENT.set(6, pa.field("cluster", pa.int64()))

    def number(rows: list[dict]) -> None:
        for i, row in enumerate(rows):
            row["cluster"] = i

    rewrite(mix, "documents-00000.arrow", number, schema)
    (problem,) = verify_mix(str(mix))
    assert "documents-00000.arrow: schema differs: found" in problem
    assert "cluster: int64" in problem


def test_a_stage_that_lost_all_its_shards_is_found(mix: Path) -> None:
    folder = Folder(str(mix))
    manifest = read_manifest(folder)
    shards = tuple(shard for shard in manifest.shards if shard.table != "pretrain")
    write_manifest(folder, dataclasses.replace(manifest, shards=shards))
    problems = verify_mix(str(mix))
    assert "stage 'pretrain' has no rows" in problems
    assert "pretrain-00000.arrow: not in the manifest" in problems


def test_a_manifest_edited_by_hand_is_found(mix: Path) -> None:
    manifest = json.loads((mix / "manifest.json").read_text())
    manifest["shards"] = [s for s in manifest["shards"] if s["name"] != "pretrain-00002.arrow"]
    (mix / "manifest.json").write_text(json.dumps(manifest))
    problems = verify_mix(str(mix))
    assert "manifest.json: its digest is not that of the shards it lists" in problems
    assert "pretrain-00002.arrow: not in the manifest" in problems


def test_the_ledger_must_reconcile_and_agree_with_the_steps(mix: Path) -> None:
    path = mix / "ledger.json"
    ledger = json.loads(path.read_text())
    ledger[0]["kept"] -= 1
    path.write_text(json.dumps(ledger))
    first, second = verify_mix(str(mix))
    assert "does not reconcile" in first and "1 unaccounted for" in first
    assert second == "ledger.json: differs from the manifest of step 'dedup'"
    path.write_text(json.dumps([row for row in ledger if row["step"] != "dedup"]))
    assert verify_mix(str(mix)) == ["ledger.json: has no rows of step 'dedup'"]
    path.write_text("[{]")
    assert "not a readable ledger" in verify_mix(str(mix))[0]
    path.unlink()
    assert verify_mix(str(mix)) == ["ledger.json: missing"]


def test_other_step_folders_are_checked_for_files_and_ledger(mix: Path) -> None:
    folder = mix.parent / "steps" / "dedup"
    assert verify_mix(str(folder)) == []
    (folder / "queries-00000.arrow").unlink()
    assert verify_mix(str(folder)) == ["queries-00000.arrow: missing"]


def test_a_folder_without_manifest_is_a_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="no manifest.json"):
        verify_mix(str(tmp_path))
    assert main(["verify", str(tmp_path)]) == 2
    assert "expected: a finished folder of shards" in capsys.readouterr().err
