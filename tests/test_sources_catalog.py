"""The catalogue: what both papers name is there, and what is ready can be read."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources_hub import COMMIT as HUB_COMMIT
from test_sources_hub import ROWS as HUB_ROWS
from test_sources_hub import Hub, local_hub  # noqa: F401 - a fixture

from datagen.cli import main
from datagen.schema import PAIR, UserError
from datagen.sources import SourceRows, adapted, catalog
from datagen.sources.adapted import AdaptedSource
from datagen.sources.catalog import catalog_table, find, select, source_named, to_source
from datagen.sources.shapes import ADAPTERS

ROWS = catalog.rows()


def _rows_of(prefix: str) -> list[catalog.CatalogRow]:
    return [row for row in ROWS if row.name.startswith(prefix)]


def test_the_counts_of_the_papers() -> None:
    f2llm, released = _rows_of("f2llm-v2/"), _rows_of("embed-nemotron-v1/")
    assert len(f2llm) == 157
    assert sum(row.papers["f2llm-v2"]["samples"] for row in f2llm) == 60_147_938
    table = [row for row in _rows_of("nemotron/") if "part" not in row.papers["nemotron"]]
    assert len(table) == 31
    assert sum(row.papers["nemotron"]["samples"] for row in table) == 4_309_502
    assert len(released) == 14
    assert sum(row.papers["nemotron"]["samples"] for row in released) == 3_662_695
    assert find("nemotron/nemotron-cc-v2-diverse-qa").papers["nemotron"]["part"] == "pretraining"
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_first_stage_of_f2llm_is_complete() -> None:
    names = ("codesearchnet", "codesearchnet-ccr", "opencodegeneticinstruct", "webfaq", "mmarco",
             "clirmatrix", "paracrawl")  # fmt: skip
    stage = [find(f"f2llm-v2/{name}") for name in names]
    assert sum(row.papers["f2llm-v2"]["samples"] for row in stage) == 26_693_280
    assert all(row.ready for row in stage)


COMMIT = re.compile("[0-9a-f]{40}|refs/.+")


def test_every_row_says_where_it_comes_from_and_what_is_unknown() -> None:
    for row in ROWS:
        assert row.papers and row.evidence, row.name
        assert all(find(other).name == other for other in row.see), row.name
        for field in ("repo", "revision", "instruction", "licence", "languages"):
            if getattr(row, field) is None:
                assert field in row.unknown or row.subsets, (row.name, field)
            else:
                assert field not in row.unknown, (row.name, field)
        assert row.revision is None or COMMIT.fullmatch(row.revision), row.name


def test_every_ready_row_has_an_adapter_and_the_columns_that_it_needs() -> None:
    ready = select(ready=True)
    assert len(ready) == 210
    for row in ready:
        assert row.adapter in ADAPTERS and row.repo, row.name
        names = [] if row.by_subset else [row.name]
        for name in [*names, *(f"{row.name}/{subset}" for subset in row.subsets)]:
            source = source_named(name)  # checks adapter, columns, options, tables and task
            assert source.name == name
            assert not [c for c in source.columns.values() if "{" in c]
            assert not [p for patterns in source.tables.values() for p in patterns if "{" in p]


def test_a_subset_has_its_files_and_languages() -> None:
    korean = source_named("f2llm-v2/paracrawl/paracrawl_ko-en")
    assert korean.tables["rows"] == ["paracrawl_ko-en.parquet"]
    assert (korean.query_language, korean.document_language) == ("kor", "eng")
    assert source_named("f2llm-v2/webfaq/webfaq_deu").query_language == "deu"
    bitext = source_named("europarl/de-fr")
    assert bitext.columns == {"first": "translation.de", "second": "translation.fr"}
    assert bitext.options["languages"] == ["de", "fr"]
    assert source_named("massive-intent/zh-TW").query_language == "zho_Hant"
    assert len(source_named("f2llm-v2/mkqa").tables["rows"]) == 26


def test_commercial_use_is_only_said_of_clear_licences() -> None:
    assert find("anli").commercial is False
    assert find("f2llm-v2/scifact").commercial is False
    assert find("snli").commercial is True
    assert find("multi-nli").commercial is None
    assert find("f2llm-v2/webfaq").licence == "cc-by-4.0"
    assert find("f2llm-v2/aya").commercial is None
    names = {record["name"] for record in catalog_table(licence="commercial")}
    assert "snli" in names and not names & {"anli", "msmarco", "multi-nli", "f2llm-v2/aya"}
    assert len(catalog_table()) == len(ROWS)
    with pytest.raises(UserError, match="commercial"):
        catalog_table(licence="free")


def test_rows_are_found_by_what_is_asked() -> None:
    assert [row.name for row in select(task="bitext", ready=True, paper="f2llm-v2")][:2] == [
        "f2llm-v2/unpc",
        "f2llm-v2/paracrawl",
    ]


@pytest.mark.parametrize(
    ("name", "found", "expected", "do"),
    [
        ("nfcorpsu", "no source named 'nfcorpsu'", "nfcorpus, ", "datagen sources"),
        ("MIRACL", "no source named", "embed-nemotron-v1/MIRACL", "name one"),
        ("qqqqqqqqqq", "no source named", f"one of {len(ROWS)} names", "name one"),
        ("xnli", "without a subset", "ar, bg, de", "each subset"),
        ("xnli/tlh", "'tlh'", "ar, bg, de", "known subset"),
        ("nemotron/bioasq", "not known", "ready", "use f2llm-v2/bioasq"),
        ("nemotron/synthetic-sts", "not released", "ready", "leave it out"),
        ("nemotron/nemotron-cc-v2-diverse-qa", "gated", "ready", "leave it out"),
        ("f2llm-v2/scala", "no file", "ready", "leave it out"),
    ],
)
def test_a_name_that_cannot_be_read(name: str, found: str, expected: str, do: str) -> None:
    with pytest.raises(UserError) as error:
        source_named(name)
    assert error.value.exit_status == 2
    assert found in error.value.found
    assert expected in error.value.expected
    assert do in error.value.do


def _write(folder: Path, name: str, columns: dict[str, list[Any]], **options: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name, **options)


def _read(source: AdaptedSource) -> list[SourceRows]:
    units = source.plan()
    assert json.loads(json.dumps(units)) == units
    json.dumps(source.config())
    parts = [adapted.read(unit) for unit in units]
    for part in parts:
        assert part.rows_in == len(part.pairs) + len(part.quarantined) + part.dropped.total()
        pa.Table.from_pylist(part.pairs, schema=PAIR)
    return parts


def test_release_files_are_sliced_and_capped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapted, "SLICE_ROWS", 30)
    monkeypatch.setattr(adapted, "BATCH_ROWS", 7)
    columns = {"query": [f"q{i}" for i in range(101)], "passage": [f"p{i}" for i in range(101)]}
    negatives = {f"negative_{k}": [f"n{k}" for _ in range(101)] for k in (1, 2, 10)}
    _write(tmp_path, "snli.parquet", columns | negatives | {"lang": ["x"] * 101})
    parts = _read(source_named("f2llm-v2/snli", folder=str(tmp_path), max_rows_per_file=None))
    assert [len(part.pairs) for part in parts] == [30, 30, 30, 11]
    pairs = [pair for part in parts for pair in part.pairs]
    assert [pair["query"] for pair in pairs] == columns["query"]
    assert [n["text"] for n in pairs[0]["negatives"]] == ["n1", "n2", "n10"]
    assert pairs[100]["provenance"]["row"] == "snli.parquet#100"
    capped = _read(source_named("f2llm-v2/snli", folder=str(tmp_path), max_rows_per_file=40))
    assert sum(len(part.pairs) for part in capped) == 40
    assert sum(part.rows_in for part in capped) == 101
    assert sum(part.dropped["over_source_cap"] for part in capped) == 61
    assert {pair["query"] for part in capped for pair in part.pairs} < set(columns["query"])


def test_a_released_subset_with_texts(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "SciFact/queries.parquet",
        {
            "question_id": ["0"], "question": ["Is it?"], "corpus_id": ["SciFact"],
            "pos_doc": [[{"id": "a"}]], "neg_doc": [[{"id": "c"}, {"id": "b"}]],
        },
    )  # fmt: skip
    _write(tmp_path, "SciFact/corpus.parquet", {"id": ["a", "b", "c"], "text": ["A", "B", "C"]})
    metadata = {"ids_only": False, "query_instruction": "Given a claim, retrieve.", "class": "x"}
    (tmp_path / "SciFact/dataset_metadata.json").write_text(json.dumps(metadata))
    (part,) = _read(source_named("embed-nemotron-v1/SciFact", folder=str(tmp_path)))
    (pair,) = part.pairs
    assert (pair["query"], pair["text"]) == ("Is it?", "A")
    assert [n["text"] for n in pair["negatives"]] == ["C", "B"]
    assert pair["instruction"] == "Given a claim, retrieve."


def test_withheld_texts_are_taken_from_their_own_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subset, upstream = tmp_path / "release", tmp_path / "emotion"
    _write(
        subset,
        "EmotionClassification/queries.parquet",
        {
            "question_id": ["0", "1"], "question": ["q_2", "q_9"], "corpus_id": ["e", "e"],
            "pos_doc": [[{"id": "d_2"}]] * 2, "neg_doc": [[{"id": "d_0"}]] * 2,
        },
    )  # fmt: skip
    _write(subset, "EmotionClassification/corpus.parquet", {"id": ["d_0", "d_2"], "text": ["", ""]})
    folder = subset / "EmotionClassification"
    (folder / "dataset_metadata.json").write_text(json.dumps({"ids_only": True}))
    restore = {
        "source_repo": "mteb/emotion", "loader_config": "column", "split": "train",
        "query_column": "text", "document_column": "label_text",
    }  # fmt: skip
    (folder / "source_config.json").write_text(json.dumps(restore))
    lines = [{"text": t, "label_text": label} for t, label in
             (("i feel low", "sadness"), ("i shout", "anger"), ("i feel high", "joy"))]  # fmt: skip
    upstream.mkdir()
    (upstream / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    place = {"folder": str(upstream)}
    monkeypatch.setattr(adapted, "_upstream", lambda repo: place)
    (part,) = _read(source_named("embed-nemotron-v1/EmotionClassification", folder=str(subset)))
    (pair,) = part.pairs
    assert (pair["query"], pair["text"]) == ("i feel high", "joy")
    assert [n["text"] for n in pair["negatives"]] == ["sadness"]
    assert part.quarantined[0]["reason"] == "unknown_id_in_queries"


def test_a_beir_repository(tmp_path: Path) -> None:
    files: dict[str, list[dict[str, Any]]] = {
        "corpus.jsonl": [{"_id": "MED-1", "title": "Statins", "text": "A cohort."}],
        "queries.jsonl": [{"_id": "PLAIN-1", "text": "cholesterol?"}],
        "qrels/train.jsonl": [
            {"query-id": "PLAIN-1", "corpus-id": "MED-1", "score": 2.0},
            {"query-id": "PLAIN-1", "corpus-id": "MED-7", "score": 1.0},
        ],
        "qrels/test.jsonl": [{"query-id": "PLAIN-1", "corpus-id": "MED-1", "score": 1.0}],
    }
    (tmp_path / "qrels").mkdir()
    for name, records in files.items():
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    (part,) = _read(source_named("nfcorpus", folder=str(tmp_path)))
    (pair,) = part.pairs
    assert (pair["query"], pair["title"], pair["text"]) == ("cholesterol?", "Statins", "A cohort.")
    assert pair["provenance"]["row"] == "qrels/train.jsonl:1"
    assert [row["reason"] for row in part.quarantined] == ["unknown_id_in_documents"]


def test_an_nli_repository_is_read_whole(tmp_path: Path) -> None:
    for number, labels in enumerate(([0, 1], [2, 0])):
        hypotheses = [f"h{number}{i}" for i in range(2)]
        columns: dict[str, list[Any]] = {
            "premise": ["p", "p"],
            "hypothesis": hypotheses,
            "label": labels,
        }
        _write(tmp_path, f"de/train-0000{number}-of-00002.parquet", columns)
    (part,) = _read(source_named("xnli/de", folder=str(tmp_path)))
    assert [(p["text"], p["query_language"]) for p in part.pairs] == [
        ("h00", "deu"),
        ("h11", "deu"),
    ]
    assert all([n["text"] for n in p["negatives"]] == ["h10"] for p in part.pairs)


def test_a_row_is_read_from_the_hub_at_one_commit(local_hub: Hub) -> None:  # noqa: F811
    columns = {"query": "question", "text": "answer"}
    changes = {"repo": "org/qa", "revision": "main", "tables": {"rows": ["data/train-*"]}}
    source = source_named("natural-questions", columns=columns, **changes)
    assert source.config()["content"] == {"repo": "org/qa", "commit": HUB_COMMIT}
    (part,) = _read(source)
    assert len(part.pairs) == HUB_ROWS
    assert part.pairs[-1]["query"] == f"question {HUB_ROWS - 1}"
    with pytest.raises(UserError, match="gated"):
        source_named("natural-questions", **{**changes, "repo": "org/gated"}).plan()


def test_the_same_copy_elsewhere_is_the_same_source(tmp_path: Path) -> None:
    configs = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        _write(folder, "train-0.parquet", {"query": ["q"], "answer": ["a"]})
        source = source_named("natural-questions", folder=str(folder), tables={"rows": ["train-*"]})
        configs.append(source.config())
    assert configs[0] == configs[1]
    assert configs[0]["content"][0]["file"] == "train-0.parquet"


def test_what_is_not_in_the_copy_is_said_when_planning(tmp_path: Path) -> None:
    _write(tmp_path, "other.parquet", {"query": ["q"]})
    with pytest.raises(UserError, match="snli.parquet"):
        source_named("f2llm-v2/snli", folder=str(tmp_path)).plan()
    _write(tmp_path, "snli.parquet", {"query": ["q"], "text": ["t"]})
    with pytest.raises(UserError, match="passage"):
        source_named("f2llm-v2/snli", folder=str(tmp_path)).plan()
    with pytest.raises(UserError, match="documents") as error:
        to_source(find("nfcorpus"), tables={"rows": ["qrels/train.jsonl"]})
    assert error.value.exit_status == 2


def test_the_command_lists_what_a_licence_allows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", "--licence", "commercial", "--task", "retrieval"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "task", "samples", "licence", "commercial", "status"]
    assert any(line.startswith("snli ") for line in lines)
    assert lines[-1].startswith(f"{len(lines) - 2} data sets, ")
    assert main(["sources", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(catalog_table())
    assert {row["commercial"] for row in rows} == {"yes", "no", "unknown"}
    assert main(["sources", "--task", "guessing"]) == 2
    assert capsys.readouterr().err.startswith("found: task 'guessing'")
