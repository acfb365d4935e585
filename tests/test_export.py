"""Exports: each layout as its trainer reads it, by the real package where it is installed."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from small_mix import HOSTILE, build, document, mined, query, rows_of
from tiny_encoder import tiny_export

from datagen.beir import BeirFolder
from datagen.cli import main
from datagen.export import Mix, export_mix, groups
from datagen.export_layouts import WRITERS, writer_of
from datagen.schema import UserError, format_document, format_query
from datagen.sources import layouts
from datagen.sources.layouts import LayoutSource
from datagen.store import Folder, read_table

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mix with titles, two positives here and there, and one source with few negatives."""
    folder = tmp_path_factory.mktemp("built")
    queries, documents, found = rows_of(hostile=True)
    titled = document("trivia", "a text", title="A title")
    row = query("trivia", "titled?", [titled["doc_id"]])
    found.append(mined(row, [d["doc_id"] for d in documents[:5]]))
    build(str(folder), queries + [row], documents + [titled], found)
    return folder


@pytest.fixture(scope="module")
def mix(output: Path) -> str:
    return str(output / "mix")


def expected(mix: str, stage: str, *, task: str, source: str) -> Rows:
    """What the encoder sees of the rows: query, positives and negatives as texts."""
    documents = read_table(Folder(mix), "documents").to_pylist()
    texts = [format_document(d["title"], d["text"]) for d in documents]
    found = []
    for row in read_table(Folder(mix), stage).to_pylist():
        if (row["task"], row["source"]) != (task, source):
            continue
        own = row["instruction"] if row["symmetric"] else None
        sides = {
            side: [format_query(own, texts[n]) for n in row[side]]
            for side in ("positives", "negatives")
        }
        found.append({**row, "seen": format_query(row["instruction"], row["query"]), **sides})
    return found


def export(mix: str, folder: Path, layout: str, **options: Any) -> dict[str, Any]:
    return export_mix(mix, str(folder), writer=writer_of(layout), layout=layout, **options)


def read_back(path: Path, **options: Any) -> Rows:
    """The pairs that our own reader of that layout finds."""
    source = LayoutSource(name="mine", paths=(str(path),), **options)
    return [pair for unit in source.plan() for pair in layouts.read(unit).records()]


@pytest.mark.parametrize("task, source", [("retrieval", "trivia"), ("sts", "similar")])
def test_sentence_transformers_columns(mix: str, tmp_path: Path, task: str, source: str) -> None:
    about = export(mix, tmp_path / "st", "sentence-transformers", negatives=3)
    file = tmp_path / "st" / f"{task}-{source}.parquet"
    read = datasets.load_dataset("parquet", data_files=str(file), split="train")
    assert read.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    wanted = [
        [row["seen"], positive, *row["negatives"][:3]]
        for row in expected(mix, "finetune", task=task, source=source)
        for positive in row["positives"]
    ]
    assert [list(row.values()) for row in read] == wanted
    (told,) = [f for f in about["files"] if f["source"] == source]
    assert told["rows"] == len(wanted)


def test_rows_with_too_few_negatives_are_left_out_and_counted(mix: str, tmp_path: Path) -> None:
    about = export(mix, tmp_path / "st", "sentence-transformers", stage="pretrain", negatives=5)
    by_source = {file["source"]: file["left_out"] for file in about["files"]}
    assert by_source["trivia"] == by_source["python"] == 1, "the first query of each has two"
    assert about["left_out"] == sum(by_source.values())
    assert export(mix, tmp_path / "all", "f2llm", stage="pretrain")["left_out"] == 0


def test_f2llm_columns_are_read_back(mix: str, tmp_path: Path) -> None:
    export(mix, tmp_path / "f2llm", "f2llm", negatives=4)
    pairs = read_back(tmp_path / "f2llm" / "bitext-catalogs.parquet")
    rows = expected(mix, "finetune", task="bitext", source="catalogs")
    wanted = [(row, positive) for row in rows for positive in row["positives"]]
    for pair, (row, positive) in zip(pairs, wanted, strict=True):
        # Our reader takes the instruction off again; it is on both sides of these rows.
        assert format_query(pair["instruction"], pair["query"]) == row["seen"]
        own = [format_query(pair["instruction"], t) for t in (pair["text"], *texts_of(pair))]
        assert own == [positive, *row["negatives"][:4]]


def texts_of(pair: dict[str, Any]) -> list[str]:
    """The texts of a pair's negatives."""
    return [negative["text"] for negative in pair["negatives"]]


def test_flagembedding_lines_are_read_back(mix: str, tmp_path: Path) -> None:
    export(mix, tmp_path / "flag", "flagembedding")
    (path,) = (tmp_path / "flag").glob("*/retrieval-trivia.jsonl")
    assert path.parent.name == "in_batch"
    rows = expected(mix, "finetune", task="retrieval", source="trivia")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, row in zip(lines, rows, strict=True):
        assert (line["query"], line["prompt"]) == (row["query"], row["instruction"])
        assert (line["pos"], line["neg"]) == (row["positives"], row["negatives"])
        assert len(line["neg_scores"]) == len(line["neg"]) and line["type"] == "normal"
    pairs = read_back(path)
    assert {p["query"] for p in pairs} == {row["query"] for row in rows}
    assert {p["instruction"] for p in pairs} == {"Instruction of trivia"}
    symmetric = read_back(tmp_path / "flag" / "no_in_batch_neg" / "sts-similar.jsonl")
    assert {p["task"] for p in symmetric} == {"sts"}


def test_flagembedding_reads_it_itself(mix: str, tmp_path: Path) -> None:
    peer = pytest.importorskip(
        "FlagEmbedding.abc.finetune.embedder.AbsDataset", reason="FlagEmbedding is not installed"
    )
    arguments = pytest.importorskip("FlagEmbedding.abc.finetune.embedder.AbsArguments")
    export(mix, tmp_path / "flag", "flagembedding")
    data = arguments.AbsEmbedderDataArguments(
        train_data=[str(tmp_path / "flag" / "in_batch")],
        cache_path=str(tmp_path / "cache"),
        train_group_size=5,
        query_instruction_for_retrieval="",
        query_instruction_format="Instruct: {}\nQuery: {}",
    )
    read = peer.AbsEmbedderTrainDataset(data, tokenizer=None)
    rows = [
        row
        for source in ("trivia", "python", "questions", HOSTILE["source"])
        for row in expected(mix, "finetune", task="retrieval", source=source)
    ]
    seen = {row["seen"]: row for row in rows}
    for i in range(len(read)):
        asked, passages, _ = read[i]
        assert passages[0] in seen[asked]["positives"]
        assert set(passages[1:]) <= set(seen[asked]["negatives"])
    assert len(read) == len(rows)


def test_automodel_folders_are_read_back(mix: str, tmp_path: Path) -> None:
    export(mix, tmp_path / "auto", "automodel")
    folder = tmp_path / "auto" / "retrieval-trivia"
    pairs = read_back(folder / "retrieval-trivia.json")
    rows = expected(mix, "finetune", task="retrieval", source="trivia")
    assert [(p["query"], p["text"]) for p in pairs] == [
        (row["query"], positive) for row in rows for positive in row["positives"]
    ]
    assert [n["text"] for n in pairs[0]["negatives"]] == rows[0]["negatives"]
    metadata = json.loads((folder / "corpus" / "merlin_metadata.json").read_text())
    assert metadata["query_instruction"] == "Instruct: Instruction of trivia\nQuery:"
    assert metadata["passage_instruction"] == ""
    symmetric = tmp_path / "auto" / "sts-similar" / "corpus" / "merlin_metadata.json"
    assert json.loads(symmetric.read_text())["passage_instruction"].startswith("Instruct: ")


def test_automodel_reads_it_itself(
    mix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = pytest.importorskip(
        "nemo_automodel.components.datasets.llm.retrieval_dataset",
        reason="nemo-automodel is not installed",
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export(mix, tmp_path / "auto", "automodel")
    file = tmp_path / "auto" / "retrieval-trivia" / "retrieval-trivia.json"
    rows = expected(mix, "finetune", task="retrieval", source="trivia")
    read, documents = peer.load_datasets(str(file))
    assert read["question"] == [row["query"] for row in rows]
    (own,) = documents.values()
    assert own.query_instruction == "Instruct: Instruction of trivia\nQuery:"
    for found, row in zip(read, rows, strict=True):
        for side, told in (("positives", "pos_doc"), ("negatives", "neg_doc")):
            texts = [own.get_document_by_id(doc["id"])["text"] for doc in found[told]]
            assert texts == row[side]


def test_beir_folders_are_read_back(mix: str, tmp_path: Path) -> None:
    export(mix, tmp_path / "beir", "beir")
    folder = tmp_path / "beir" / "retrieval-trivia"
    shutil.move(folder / "qrels" / "train.tsv", folder / "qrels" / "test.tsv")
    read = BeirFolder(Folder(str(folder))).read()
    rows = expected(mix, "finetune", task="retrieval", source="trivia")
    assert sorted(read.texts.filter(kind="query")["text"]) == sorted(row["query"] for row in rows)
    named = {text for row in rows for side in ("positives", "negatives") for text in row[side]}
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert {format_document(d["title"], d["text"]) for d in corpus} == named
    assert len((folder / "qrels" / "test.tsv").read_text().splitlines()) == 1 + sum(
        len(row["positives"]) for row in rows
    )


def test_files_have_names_that_a_disk_takes_and_that_differ(mix: str) -> None:
    found = Mix.open(mix)
    names = [group.name for group in groups(found, "finetune")]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isascii() and "/" not in name and "<" not in name for name in names)
    rows = sum(last - first for g in groups(found, "finetune") for first, last in g.rows)
    assert rows == len(found.stages["finetune"])


@pytest.mark.parametrize("layout", WRITERS)
def test_what_stopped_half_way_leaves_nothing(mix: str, tmp_path: Path, layout: str) -> None:
    calls = 0

    def failing(*arguments: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        return WRITERS[layout](*arguments)

    with pytest.raises(OSError, match="No space"):
        export_mix(mix, str(tmp_path / "out"), writer=failing, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_the_command_and_its_mistakes(
    mix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", mix, "--layout", "beir", "--output", str(tmp_path / "beir")]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["layout"], told["stage"], told["rows"] > 50) == ("beir", "finetune", True)
    assert json.loads((tmp_path / "beir" / "export.json").read_text())["rows"] == told["rows"]
    for change, message in (
        ({}, "not there yet, or an empty one"),  # --output is there now
        ({4: "beir", 3: "webdataset", 5: str(tmp_path / "x")}, "layout 'webdataset'"),
        ({1: str(tmp_path), 5: str(tmp_path / "x")}, "has no manifest.json"),
    ):
        words = list(command)
        for at, word in change.items():
            words[at] = word if at != 4 else words[4]
        assert main(words) == 2
        assert message in capsys.readouterr().err
    for option in (["--stage", "warmup"], ["--negatives", "0"]):
        assert main([*command[:4], "--output", str(tmp_path / "y"), *option]) == 2
    with pytest.raises(UserError, match="one of sentence-transformers"):
        writer_of("mds")


@pytest.mark.slow
def test_sentence_transformers_trains_on_it(mix: str, tmp_path: Path) -> None:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    export(mix, tmp_path / "st", "sentence-transformers")
    names = ("retrieval-trivia", "bitext-catalogs")
    files = {name: str(tmp_path / "st" / f"{name}.parquet") for name in names}
    read = {
        name: datasets.load_dataset("parquet", data_files=file, split="train")
        for name, file in files.items()
    }
    model = SentenceTransformer(tiny_export(tmp_path / "model"), device="cpu")
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=5,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        ),  # fmt: skip
        train_dataset=datasets.DatasetDict(read),
        loss=MultipleNegativesRankingLoss(model),
    )
    assert trainer.train().global_step == 5
