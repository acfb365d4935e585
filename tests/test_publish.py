"""Publishing to a Hub on the loopback with the real client, and reading it back with `datasets`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub_server import TOKEN, HubState
from hub_server import upload_hub as upload_hub
from small_mix import build, rows_of

from datagen.cli import main
from datagen.export import file_names
from datagen.overview import count_mix
from datagen.publish import publish_mix, refuse_licences
from datagen.report import write_report
from datagen.schema import UserError, format_document
from datagen.steps import run_steps
from datagen.store import Folder, read_table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publish")
    dedup, mine, mixed = build(str(folder), *rows_of(["trivia", "python", "questions"]))
    report = write_report(mixed, steps=[dedup, mine])
    run_steps([dedup, mine, mixed, report], str(folder), executor="local")
    return folder / "mix"


@pytest.fixture
def mix(built: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(built, tmp_path / "mix"))


def test_a_mix_goes_to_the_hub_and_every_row_comes_back(
    upload_hub: HubState, mix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", mix, "--repo", "org/small"]) == 0
    said = json.loads(capsys.readouterr().out)
    repository = upload_hub.repositories["org/small"]
    assert repository.private and said["commit"] == repository.head
    assert repository.commits[-1] == ["README.md"]  # the card comes last
    assert said["files"] == len(repository.files)
    assert not (tmp_path / "mix.publish").exists()
    assert {"retrieval-trivia", "retrieval-trivia-corpus"} <= set(said["configs"])
    assert TOKEN.encode() not in b"".join(repository.files.values())
    program = (
        "import datasets, json\n"
        "load = lambda name, split: datasets.load_dataset('org/small', name, split=split)\n"
        "queries = load('retrieval-trivia', 'finetune').to_list()\n"
        "corpus = load('retrieval-trivia-corpus', 'train').to_list()\n"
        "print(json.dumps([queries, corpus]))\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    queries, corpus = json.loads(found.stdout)
    texts = {row["id"]: row["text"] for row in corpus}
    documents = read_table(Folder(mix), "documents").to_pylist()
    rows = [r for r in read_table(Folder(mix), "finetune").to_pylist() if r["source"] == "trivia"]
    assert [q["question_id"] for q in queries] == [row["query_id"] for row in rows]
    for query, row in zip(queries, rows, strict=True):
        assert query["question"] == row["query"] and query["licence"] == row["licence"]
        for side, link in (("positives", "pos_doc"), ("negatives", "neg_doc")):
            wanted = [documents[number] for number in row[side]]
            wanted_texts = [format_document(d["title"], d["text"]) for d in wanted]
            assert [texts[d["id"]] for d in query[link]] == wanted_texts
        assert [d["score"] for d in query["neg_doc"]] == row["negative_scores"]


def test_an_upload_that_was_cut_off_goes_on_and_sends_nothing_twice(
    upload_hub: HubState, mix: str, tmp_path: Path
) -> None:
    upload_hub.refuse = 1
    with pytest.raises(UserError) as cut:
        publish_mix(mix, "org/small")
    assert "goes on where it was cut off" in cut.value.do
    assert upload_hub.repositories["org/small"].commits == []  # no card, nothing half
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "mix.publish").rglob("*.parquet")}
    assert before
    arrived = set(upload_hub.objects)
    first = len(upload_hub.uploads)
    done = publish_mix(mix, "org/small")
    assert done["files"] == len(upload_hub.repositories["org/small"].files)
    assert not arrived & set(upload_hub.uploads[first:])
    uploads = len(upload_hub.uploads)
    publish_mix(mix, "org/small")
    assert len(upload_hub.uploads) == uploads  # the same mix again: nothing to send


def test_what_arrives_changed_is_found(upload_hub: HubState, mix: str) -> None:
    upload_hub.tamper = {"retrieval-trivia/corpus-00000.parquet"}
    with pytest.raises(UserError, match="retrieval-trivia/corpus-00000.parquet"):
        publish_mix(mix, "org/small")


@pytest.mark.parametrize(
    ("change", "repo", "found", "status"),
    [
        ("", "no-slash", "repository 'no-slash'", 2),
        ("token", "org/small", "no HF_TOKEN", 1),
        ("damage", "org/small", "does not verify", 1),
        ("files", "org/small", "holds other files", 2),
    ],
)
def test_what_cannot_be_published_is_refused_before_anything_is_sent(
    upload_hub: HubState,
    mix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    repo: str,
    found: str,
    status: int,
) -> None:
    if change == "token":
        monkeypatch.delenv("HF_TOKEN")
    elif change == "damage":
        shard = Path(mix) / "documents-00000.arrow"
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif change == "files":
        Path(f"{mix}.publish").mkdir()
        (Path(f"{mix}.publish") / "mine.txt").write_text("mine")
    assert main(["publish", mix, "--repo", repo]) == status
    said = capsys.readouterr().err
    assert found in said and "do: " in said and "Traceback" not in said
    assert upload_hub.uploads == []


def test_rows_that_may_not_be_given_on_are_named(tmp_path: Path) -> None:
    queries, documents, found = rows_of(["trivia", "python"])
    for row in queries:
        if row["source"] == "python":
            row["licence"] = None
    build(str(tmp_path), queries, documents, found)
    overview = count_mix(Folder(f"{tmp_path}/mix"))
    with pytest.raises(UserError, match="unknown: python") as refused:
        refuse_licences(overview, [])
    assert "--allow-licence" in refused.value.do
    refuse_licences(overview, ["unknown"])


def test_conversion_names_are_distinct_on_any_file_system() -> None:
    keys = [("sts", "a/b"), ("sts", "a:b"), ("sts", "A b")]
    assert sorted(file_names(keys).values()) == ["sts-A-b", "sts-a-b-2", "sts-a-b-3"]


def test_large_sources_are_cut_into_files(
    upload_hub: HubState, mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datagen import published
    from datagen.export import Mix

    monkeypatch.setattr(published, "ROWS_PER_FILE", 5)
    monkeypatch.setattr(published, "BLOCK_ROWS", 4)
    published.convert(Mix.open(mix), tmp_path / "out")
    files = sorted((tmp_path / "out" / "retrieval-trivia").glob("corpus-*.parquet"))
    assert len(files) > 1
    ids = [id for file in files for id in pq.read_table(file)["id"].to_pylist()]
    assert ids == sorted(set(ids), key=int)
