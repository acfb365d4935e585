"""Files in the layouts of other trainers: each as it is written there, detected, and read whole."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from datagen.ingest import ingest, source
from datagen.schema import UserError
from datagen.sources import layouts, ranges, tmx
from datagen.sources.formats import DataFile
from datagen.sources.layout_table import LAYOUTS, detect_layout
from datagen.sources.layouts import LayoutSource
from datagen.steps import run_steps

Row = dict[str, Any]


def _read(origin: LayoutSource) -> tuple[list[Row], list[Row], dict[str, int]]:
    """(pairs, rejected, dropped) of all units, which travel as JSON."""
    parts = [layouts.read(json.loads(json.dumps(unit))) for unit in origin.plan()]
    for part in parts:
        assert part.rows_in >= len(part.quarantined) + part.dropped.total()
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return (
        [pair for part in parts for pair in part.records()],
        [row for part in parts for row in part.quarantined],
        dropped,
    )


def _jsonl(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def _sides(pairs: list[Row]) -> list[tuple[str, str, list[str]]]:
    """(query, text, negatives) of every pair."""
    return [(p["query"], p["text"], [n["text"] for n in p.get("negatives") or []]) for p in pairs]


def _origin(*paths: Any, **options: Any) -> LayoutSource:
    return LayoutSource(name="mine", paths=tuple(map(str, paths)), **options)


FLAG = [
    {
        "query": "what is a cat?", "pos": ["a small animal", "Felis catus"], "neg": ["a dog"],
        "pos_scores": [0.9, 0.5], "neg_scores": [0.1], "prompt": "Answer.", "type": "normal",
    },
    {"query": "a cat sleeps", "pos": ["the cat is asleep"], "neg": [], "type": "symmetric_sts"},
    {"query": "no answer", "pos": [], "neg": ["x"]},
    {"query": "odd", "pos": ["x"], "neg": [], "type": "guessing"},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_flagembedding(tmp_path: Path, kind: str) -> None:
    """One pair for every positive, each with all negatives; `type` names the task of a row."""
    path = tmp_path / f"toy.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(FLAG), path)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in FLAG).encode()
        path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    origin = _origin(path)
    pairs, rejected, dropped = _read(origin)
    assert origin.config()["layout"] == "flagembedding"
    assert _sides(pairs) == [
        ("what is a cat?", "a small animal", ["a dog"]),
        ("what is a cat?", "Felis catus", ["a dog"]),
        ("a cat sleeps", "the cat is asleep", []),
    ]
    assert [p["score"] for p in pairs] == [pytest.approx(0.9), pytest.approx(0.5), None]
    assert [p["instruction"] for p in pairs] == ["Answer.", "Answer.", None]
    assert [p["task"] for p in pairs] == ["retrieval", "retrieval", "sts"]
    first = "#0" if kind == "parquet" else ":1"
    assert pairs[1]["provenance"]["row"] == f"toy.{kind}{first}.1"
    assert [row["reason"] for row in rejected] == ["unknown_type"]
    assert dropped == {"no_positive": 1}


def test_f2llm_negatives_may_be_null(tmp_path: Path) -> None:
    names = [f"negative_{i}" for i in range(1, 25)]
    rows = [
        {"query": "Instruct: Find it.\nQuery: q1", "passage": "p1", "lang": "en"}
        | {name: f"n{name[9:]}" for name in names},
        {"query": "q2", "passage": "p2", "lang": "de"} | dict.fromkeys(names) | {names[9]: "ten"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    origin = _origin(tmp_path)
    pairs, _, _ = _read(origin)
    assert origin.config()["layout"] == "f2llm"
    assert _sides(pairs) == [("q1", "p1", [f"n{i}" for i in range(1, 25)]), ("q2", "p2", ["ten"])]
    assert [p["instruction"] for p in pairs] == ["Find it.", None]
    assert [p["query_language"] for p in pairs] == ["eng", "deu"]


@pytest.mark.parametrize(
    ("row", "negatives"),
    [
        ({"anchor": "a", "positive": "p"}, []),
        ({"anchor": "a", "positive": "p", "negative": "n"}, ["n"]),
        ({"anchor": "a", "positive": "p", "negative_2": "n2", "negative_1": "n1"}, ["n1", "n2"]),
        ({"anchor": "a", "positive": "p", **{f"negative_{i}": str(i) for i in range(1, 12)}},
         [str(i) for i in range(1, 12)]),
        ({"question": "a", "answer": "p", "negative": "n"}, ["n"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "jsonl", "arrow"])
def test_sentence_transformers_triplets(
    tmp_path: Path, row: Row, negatives: list[str], kind: str
) -> None:
    path = tmp_path / f"t.{kind}"
    table = pa.Table.from_pylist([row])
    if kind == "csv":
        pyarrow.csv.write_csv(table, path)
    elif kind == "jsonl":
        _jsonl(path, [row])
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    origin = _origin(path)
    pairs, rejected, _ = _read(origin)
    assert origin.config()["layout"] == "triplets"
    assert _sides(pairs) == [("a", "p", negatives)]
    assert rejected == []


def test_scored_pairs_need_a_threshold(tmp_path: Path) -> None:
    rows = [
        {"sentence1": "a", "sentence2": "b", "score": 0.9},
        {"sentence1": "c", "sentence2": "d", "score": 0.3},
        {"sentence1": "e", "sentence2": "f", "score": "high"},
    ]
    path = _jsonl(tmp_path / "s.jsonl", rows)
    with pytest.raises(UserError, match="min_score"):
        _origin(path).plan()
    pairs, rejected, dropped = _read(_origin(path, options={"min_score": 0.8}))
    assert [(p["query"], p["text"], p["score"], p["task"]) for p in pairs] == [
        ("a", "b", 0.9, "sts")
    ]
    assert dropped == {"score_below_minimum": 1}
    assert [row["reason"] for row in rejected] == ["score_not_a_number"]


def test_labelled_pairs_and_entailments(tmp_path: Path) -> None:
    path = _jsonl(
        tmp_path / "l.jsonl",
        [
            {"sentence1": "a", "sentence2": "b", "label": 1},
            {"sentence1": "c", "sentence2": "d", "label": 0},
        ],
    )
    origin = _origin(path)
    pairs, _, dropped = _read(origin)
    assert origin.config()["layout"] == "labelled_pairs"
    assert _sides(pairs) == [("a", "b", [])]
    assert dropped == {"score_below_minimum": 1}
    nli = _jsonl(
        tmp_path / "n.jsonl",
        [
            {"premise": "a man eats", "hypothesis": "someone eats", "label": 0},
            {"premise": "a man eats", "hypothesis": "nobody eats", "label": 2},
        ],
    )
    pairs, _, dropped = _read(_origin(nli))
    assert _sides(pairs) == [("a man eats", "someone eats", ["nobody eats"])]
    assert dropped == {"given_as_negative": 1}


DOCUMENTS = [
    {"id": "d1", "text": "first"},
    {"id": "d2", "text": "second"},
    {"id": "7", "text": "s"},
]
QUESTIONS = [
    {"question_id": "q1", "question": "one?", "corpus_id": "c", "pos_doc": [{"id": "d1"}],
     "neg_doc": [{"id": "d2"}, {"id": "7"}]},
    {"question_id": "q2", "question": "two?", "corpus_id": "c", "pos_doc": [{"id": "d2"}, "d1"],
     "neg_doc": []},
    {"question_id": "q3", "question": "lost?", "corpus_id": "c", "pos_doc": [{"id": "gone"}],
     "neg_doc": []},
]  # fmt: skip


def _automodel(folder: Path, kind: str) -> Path:
    (folder / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(DOCUMENTS), folder / "corpus" / "train.parquet")
    metadata = {"class": "TextQADataset", "corpus_id": "c", "query_instruction": "Find."}
    (folder / "corpus" / "merlin_metadata.json").write_text(json.dumps(metadata))
    if kind == "json":
        (folder / "train.json").write_text(
            json.dumps({"corpus": [{"path": "./corpus"}], "data": QUESTIONS})
        )
        return folder / "train.json"
    if kind == "jsonl":
        _jsonl(folder / "queries.jsonl", QUESTIONS)
    else:
        rows = [
            {**q, "pos_doc": [d if isinstance(d, dict) else {"id": d} for d in q["pos_doc"]]}
            for q in QUESTIONS
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "queries.parquet")
    return folder


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_automodel_ids_become_texts(tmp_path: Path, kind: str) -> None:
    origin = _origin(_automodel(tmp_path, kind))
    pairs, rejected, _ = _read(origin)
    assert origin.config()["layout"] == "automodel"
    assert _sides(pairs) == [
        ("one?", "first", ["second", "s"]),
        ("two?", "second", []),
        ("two?", "first", []),
    ]
    assert {p["instruction"] for p in pairs} == {"Find."}
    assert [(row["reason"], "q3" in row["record"]) for row in rejected] == [
        ("unknown_id_in_documents", kind != "parquet")
    ]


def test_automodel_documents_elsewhere_and_texts_inline(tmp_path: Path) -> None:
    rows = _jsonl(tmp_path / "train.jsonl", QUESTIONS[:1])
    texts = _jsonl(tmp_path / "texts.jsonl", DOCUMENTS)
    pairs, _, _ = _read(_origin(rows, documents=(texts,)))
    assert _sides(pairs) == [("one?", "first", ["second", "s"])]
    with pytest.raises(UserError, match="documents"):
        _origin(rows, layout="automodel").plan()
    inline = [
        {"query": "a?", "pos_doc": "p", "neg_doc": ["n1", {"text": "n2"}]},
        {"query": "b?", "pos_doc": [{"text": "q"}], "neg_doc": "n"},
    ]
    pairs, _, _ = _read(_origin(_jsonl(tmp_path / "inline.jsonl", inline)))
    assert _sides(pairs) == [("a?", "p", ["n1", "n2"]), ("b?", "q", ["n"])]


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    """Folders of `datasets`, in one and in several shards, with splits; rows in its order."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"anchor": [f"a{i}" for i in range(2500)], "positive": [f"p{i}" for i in range(2500)]}
    whole = datasets.Dataset.from_dict(rows)
    whole.save_to_disk(str(tmp_path / "one"))
    whole.save_to_disk(str(tmp_path / "three"), num_shards=3)
    splits = datasets.DatasetDict({"train": whole, "test": whole.select(range(3))})
    splits.save_to_disk(str(tmp_path / "splits"))
    for place in ("one", "three", "splits"):
        pairs, rejected, _ = _read(_origin(tmp_path / place))
        assert [(p["query"], p["text"]) for p in pairs] == list(
            zip(rows["anchor"], rows["positive"], strict=True)
        )
        assert rejected == []
    assert len({p["provenance"]["row"] for p in pairs}) == 2500
    pairs, _, _ = _read(_origin(tmp_path / "splits", split="test"))
    assert [p["query"] for p in pairs] == ["a0", "a1", "a2"]
    with pytest.raises(UserError, match="train, test") as raised:
        _origin(tmp_path / "splits", split="dev").plan()
    assert raised.value.exit_status == 2
    (tmp_path / "one" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="data-00000-of-00001"):
        _origin(tmp_path / "one").plan()


TMX = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en" segtype="sentence" datatype="html"/><body>
<tu tuid="1"><tuv xml:lang="en"><seg>Save the <bpt i="1">&lt;b&gt;</bpt>file<ept i="1">&lt;/b&gt;\
</ept> &amp; <hi>close</hi>.</seg></tuv><tuv xml:lang="de-DE"><seg>Datei speichern</seg></tuv></tu>
<tu><tuv lang="EN-US"><seg>Grüße</seg></tuv><tuv lang="de"><seg>Größe 漢</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>only English</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>broken <b></seg></tuv></tu>
<tu><tuv xml:lang="de"><seg>Ende</seg></tuv><tuv xml:lang="en"><seg>End</seg></tuv></tu>
</body></tmx>
"""


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16"])
@pytest.mark.parametrize("name", ["m.tmx", "m.tmx.gz"])
def test_translation_memories(tmp_path: Path, monkeypatch: Any, encoding: str, name: str) -> None:
    """Text stays, native codes go; a broken unit costs itself, whatever the cuts are."""
    data = TMX.format(encoding=encoding).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    monkeypatch.setattr(tmx, "ROWS_PER_UNIT", 2)
    origin = _origin(tmp_path)
    assert len(origin.plan()) == 3
    pairs, rejected, dropped = _read(origin)
    assert _sides(pairs) == [
        ("Save the file & close.", "Datei speichern", []),
        ("Grüße", "Größe 漢", []),
        ("End", "Ende", []),
    ]
    assert origin.config()["options"]["languages"] == ["eng", "deu"]
    assert [(p["query_language"], p["document_language"]) for p in pairs] == [("eng", "deu")] * 3
    assert [p["provenance"]["row"] for p in pairs] == [f"{name}:1", f"{name}:2", f"{name}:5"]
    assert [(row["row"], row["reason"]) for row in rejected] == [(f"{name}:4", "broken_xml")]
    assert dropped == {"untranslated": 1}
    both = {"languages": ["de", "en"], "both": True}
    assert len(_read(_origin(tmp_path, options=both))[0]) == 6


def test_units_of_a_memory_do_not_depend_on_blocks(tmp_path: Path, monkeypatch: Any) -> None:
    unit = (
        '<tu><tuv xml:lang="en"><seg>e{0}</seg></tuv><tuv xml:lang="fr"><seg>f{0}</seg></tuv></tu>'
    )
    body = "\n".join(unit.format(i) for i in range(50))
    path = tmp_path / "m.tmx"
    path.write_text(f"<tmx><header/><body>{body}</body></tmx>")
    expected = [(f"e{i}", f"f{i}", []) for i in range(50)]
    for block in (7, 64, 1 << 20):
        monkeypatch.setattr(tmx, "BLOCK_BYTES", block)
        monkeypatch.setattr(tmx, "ROWS_PER_UNIT", 20)
        assert _sides(_read(_origin(path))[0]) == expected


LAUGHS = """<?xml version="1.0"?><!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>
<tmx><body><tu><tuv xml:lang="en"><seg>&b;</seg></tuv></tu></body></tmx>"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, "entities"),
        ("<html><body><tu></tu></body></html>", "<tmx>"),
        ("<tmx><body></body></tmx>", "translation unit"),
        ("<tmx><body><tu><tuv xml:lang='en'><seg>a</seg></tuv></tu></body></tmx>", "two of them"),
        ("<?xml version='1.0' encoding='klingon'?><tmx><body></body></tmx>", "klingon"),
    ],
)
def test_a_translation_memory_that_is_none(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "m.tmx").write_text(text)
    with pytest.raises(UserError) as raised:
        _origin(tmp_path / "m.tmx").plan()
    assert expected in raised.value.found + raised.value.expected


PO = """msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
{header}
msgid "Open"
msgstr "Öffnen"

#, fuzzy
msgid "Close"
msgstr "Zu"

msgid "Later"
msgstr ""

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"
"""


def test_a_folder_of_catalogs(tmp_path: Path) -> None:
    """The language is that of the header, else that of the path."""
    (tmp_path / "de.po").write_text(PO.format(header=""))
    (tmp_path / "locale" / "pt_BR" / "LC_MESSAGES").mkdir(parents=True)
    (tmp_path / "locale" / "pt_BR" / "LC_MESSAGES" / "app.po").write_text(PO.format(header=""))
    (tmp_path / "x.po").write_text(PO.format(header='"Language: nl\\n"'))
    origin = _origin(tmp_path, licence="MIT")
    pairs, rejected, dropped = _read(origin)
    assert origin.config()["layout"] == "gettext"
    assert rejected == []
    assert dropped == {"fuzzy": 3, "untranslated": 3}
    assert {frozenset((p["query"], p["text"])) for p in pairs} == {
        frozenset(("Open", "Öffnen")), frozenset(("%d file", "%d Datei")),
    }  # fmt: skip
    languages = [{p["query_language"], p["document_language"]} for p in pairs]
    assert [sorted(found - {"eng"}) for found in languages] == [
        ["deu"], ["deu"], ["por"], ["por"], ["nld"], ["nld"],
    ]  # fmt: skip
    (tmp_path / "messages.po").write_text(PO.format(header=""))
    with pytest.raises(UserError, match="what language"):
        _read(_origin(tmp_path / "messages.po"))


@pytest.mark.parametrize("name", [n for n, layout in LAYOUTS.items() if not layout.format])
def test_every_layout_is_detected_by_its_own_columns(name: str) -> None:
    layout = LAYOUTS[name]
    columns = [layout.columns[role][0].replace("*", "1") for role in layout.required]
    assert detect_layout(columns, where="x", documents=layout.adapter == "by_ids") == name


def test_an_unknown_layout_lists_what_is_known(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "x.jsonl", [{"left": "a", "right": "b"}])
    with pytest.raises(UserError) as raised:
        _origin(path).config()
    assert "left, right" in raised.value.found
    assert all(name in raised.value.expected for name in LAYOUTS)
    assert raised.value.exit_status == 2
    with pytest.raises(UserError, match="flagembedding: query, pos"):
        _origin(path, layout="flagembedding").plan()
    with pytest.raises(UserError, match="one of"):
        _origin(path, layout="bge")
    with pytest.raises(UserError, match="is of layout gettext"):
        (tmp_path / "de.po").write_text(PO.format(header=""))
        _origin(tmp_path / "de.po", layout="tmx").plan()


def test_files_of_one_source_share_a_layout(tmp_path: Path) -> None:
    _jsonl(tmp_path / "a.jsonl", [{"query": "q", "pos": ["p"], "neg": []}])
    _jsonl(tmp_path / "b.jsonl", [{"anchor": "q", "positive": "p"}])
    with pytest.raises(UserError, match="b.jsonl"):
        _read(_origin(tmp_path))


@pytest.fixture
def memory_uri() -> Iterator[str]:
    """A folder that is reached by URI alone."""
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    yield "memory://layouts"
    filesystem.rm("/layouts", recursive=True)


def _upload(folder: Path, uri: str) -> str:
    import fsspec

    fsspec.filesystem("memory").put(str(folder) + "/", uri.removeprefix("memory:/"), recursive=True)
    return uri


def test_by_uri_as_by_path(tmp_path: Path, memory_uri: str) -> None:
    folder = tmp_path / "automodel"
    folder.mkdir()
    path = _automodel(folder, "json")
    uri = _upload(folder, memory_uri)
    assert _sides(_read(_origin(f"{uri}/train.json"))[0]) == _sides(_read(_origin(path))[0])
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "m.tmx").write_bytes(TMX.format(encoding="UTF-8").encode())
    uri = _upload(tmp_path / "more", f"{memory_uri}/more")
    assert _sides(_read(_origin(uri))[0]) == _sides(_read(_origin(tmp_path / "more"))[0])
    (tmp_path / "flag").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in FLAG).encode()
    (tmp_path / "flag" / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    uri = _upload(tmp_path / "flag", f"{memory_uri}/flag")
    assert _sides(_read(_origin(uri))[0]) == _sides(_read(_origin(tmp_path / "flag"))[0])


def test_through_ingest_every_row_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    _jsonl(path, FLAG)
    with path.open("ab") as stream:
        stream.write(b'{"query": "x", "pos": [\n{"query": "\\ud800", "pos": ["p"], "neg": []}\n')
    step = ingest(source("layout", name="mine", paths=(str(path),)))
    manifest = run_steps([step], str(tmp_path / "out"), executor="local")["ingest"]
    (ledger,) = manifest.ledger
    assert ledger["kept"] == 3
    assert ledger["quarantined"] == {"broken_json": 1, "invalid_utf8": 1, "unknown_type": 1}
    assert ledger["rows_in"] == 3 + 3 + ledger["dropped"]["no_positive"]


def test_ranges_of_compressed_lines_cover_every_line_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ranges, "BYTES_PER_UNIT", 500)
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 300)
    rows = [{"anchor": f"a{i}", "positive": "p" * (i % 90)} for i in range(300)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    found = ranges.line_ranges(DataFile(uri=str(tmp_path / "x.jsonl.gz"), name="x.jsonl.gz"))
    assert len(found) > 10
    assert max(part["stop"] - part["start"] for part in found) < 1200
    pairs, _, _ = _read(_origin(tmp_path))
    assert [p["query"] for p in pairs] == [f"a{i}" for i in range(300)]
    assert [p["provenance"]["row"] for p in pairs][-1] == "x.jsonl.gz:300"
