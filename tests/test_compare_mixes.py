"""What two mixes have in common, and one query with its documents."""

import json
from pathlib import Path

import pytest
from small_mix import build, rows_of

from datagen.cli import main
from datagen.compare_mixes import diff_mixes
from datagen.mining_rules import Rules
from datagen.schema import UserError
from datagen.show import find_query, show
from datagen.stages import Stage
from datagen.store import Folder, read_table

SOURCES = ("trivia", "similar", "python")
STAGES = (Stage(name="finetune", negatives=1),)


def group(found: dict, source: str) -> dict[str, int]:
    """The counts of one source."""
    (row,) = [row for row in found["rows"] if row["source"] == source]
    return {name: row[name] for name in ("first", "second", "added", "removed", "changed")}


def test_rows_that_came_went_and_changed(tmp_path: Path) -> None:
    queries, documents, found = rows_of(SOURCES, per_source=6)
    build(str(tmp_path / "a"), queries, documents, found, stages=STAGES)
    keep = [i for i, q in enumerate(queries) if q["source"] != "python"][1:]  # trivia 0 goes
    more, texts, mined = rows_of(("topics",), per_source=4)
    changed = [{**found[i]} for i in keep]
    changed[0] = {
        **changed[0],
        "negatives": changed[0]["negatives"][:3],
        "negative_scores": changed[0]["negative_scores"][:3],
    }
    rows = [queries[i] for i in keep] + more, documents + texts, changed + mined
    build(str(tmp_path / "b"), *rows, stages=STAGES)
    told = diff_mixes(str(tmp_path / "a/mix"), str(tmp_path / "b/mix"))
    assert not told["identical"]
    nothing = {"added": 0, "removed": 0, "changed": 0}
    assert group(told, "similar") == {**nothing, "first": 6, "second": 6}
    assert group(told, "trivia") == {**nothing, "first": 6, "second": 5, "removed": 1, "changed": 1}
    assert group(told, "python") == {**nothing, "first": 6, "second": 0, "removed": 6}
    assert group(told, "topics") == {**nothing, "first": 0, "second": 4, "added": 4}
    assert {r["language"] for r in told["rows"]} == {"eng", "deu", "zho"}
    kept = 1 - 2 / sum(len(found[i]["negatives"]) for i in keep)
    assert told["negatives_kept"] == {"finetune": pytest.approx(kept, abs=1e-6)}
    ids = [
        set(read_table(Folder(str(tmp_path / n / "mix")), "documents")["doc_id"].to_pylist())
        for n in "ab"
    ]
    assert told["documents"]["added"] == len(ids[1] - ids[0])
    assert told["documents"]["removed"] == len(ids[0] - ids[1])


def test_a_stage_that_one_mix_lacks_and_a_mix_with_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(SOURCES, per_source=5)
    build(str(tmp_path / "both"), *rows)
    build(str(tmp_path / "one"), *rows, stages=STAGES)
    both, one = str(tmp_path / "both/mix"), str(tmp_path / "one/mix")
    assert main(["diff", both, one, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    pretrain = [row for row in told["rows"] if row["stage"] == "pretrain"]
    assert sum(row["removed"] for row in pretrain) == 10
    assert told["negatives_kept"]["pretrain"] is None
    assert main(["diff", one, one]) == 0
    text = capsys.readouterr().out
    assert "the two mixes are the same bytes" in text
    assert "finetune: 100.0% of the negatives" in text
    assert "trivia" not in text, "only what differs is listed"
    assert main(["diff", one, str(tmp_path)]) == 2


def test_one_query_with_its_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries, documents, found = rows_of(("trivia",), per_source=5, hostile=True)
    build(str(tmp_path), queries, documents, found)
    mix = str(tmp_path / "mix")
    texts = {d["doc_id"]: d["text"] for d in documents}
    (row,) = [r for r in find_query(mix, queries[1]["query_id"]) if r["stage"] == "finetune"]
    assert [d["text"] for d in row["negatives"]] == [texts[i] for i in found[1]["negatives"]]
    assert row["negatives"][0]["score"] == pytest.approx(0.7)
    assert row["negatives"][0]["ratio"] == pytest.approx(0.7 / 0.9)
    assert row["ceiling"] is None, "the step that mined says no margin"
    assert main(["show", mix, "--query-id", queries[-1]["query_id"]]) == 0
    text = capsys.readouterr().out
    assert "<U+202E>gnorw<U+202C> <U+0000><U+0007>" in text and "\x07" not in text
    assert "4 negatives" in text and "score 0.7000, 78% of the lowest positive" in text
    assert main(["show", mix, "--query-id", "no\x1bsuch"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_why_a_negative_is_there_by_the_ceiling_of_the_step_beside(tmp_path: Path) -> None:
    queries, documents, found = rows_of(("trivia",), per_source=3)
    found[1]["negative_scores"][0] = 0.9  # above 0.95 x 0.9: no ceiling holds for what is given
    found[1]["given_negatives"] = 1
    build(str(tmp_path), queries, documents, found)
    path = tmp_path / "steps" / "mine" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["rules"] = Rules(margin=0.95).record()
    path.write_text(json.dumps(manifest))
    (row, *_) = find_query(str(tmp_path / "mix"), queries[1]["query_id"])
    assert row["ceiling"] == pytest.approx(0.855)
    assert row["negatives"][0]["why"] == "given by its source"
    assert {d["why"] for d in row["negatives"][1:]} == {"mined: the ceiling is 0.8550"}
    assert "mined: the ceiling is 0.8550" in show(row)
    with pytest.raises(UserError, match="no row of"):
        find_query(str(tmp_path / "mix"), "0" * 32)
