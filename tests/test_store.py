import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.schema import SCHEMA_VERSION, UserError
from datagen.store import (
    Folder,
    Manifest,
    encode_shard,
    open_shard,
    read_manifest,
    read_table,
    verify,
    write_manifest,
    write_shard,
    write_table,
)

WORDS = pa.schema([pa.field("word", pa.string(), nullable=False), pa.field("n", pa.int64())])


def words(count: int) -> pa.Table:
    return pa.table({"word": [f"w{i}" for i in range(count)], "n": range(count)}, schema=WORDS)


def finished(folder: Folder, count: int, rows_per_shard: int) -> Manifest:
    shards = write_table(folder, "words", words(count), WORDS, rows_per_shard=rows_per_shard)
    manifest = Manifest(
        name="words", fingerprint="f", config={}, inputs={}, shards=tuple(shards),
        ledger=[], stats={}, run={"seconds": 1.0},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return manifest


def test_a_table_comes_back_in_order_from_shards_of_fixed_size(tmp_path):
    folder = Folder(str(tmp_path))
    manifest = finished(folder, 25, 10)
    assert [shard.rows for shard in manifest.shards] == [10, 10, 5]
    assert folder.names() == [
        "manifest.json", "words-00000.arrow", "words-00001.arrow", "words-00002.arrow",
    ]  # fmt: skip
    assert read_table(folder, "words")["n"].to_pylist() == list(range(25))
    assert read_table(folder, "words", ["word"]).column_names == ["word"]
    assert verify(folder) == []


def test_reading_a_shard_is_memory_mapping(tmp_path):
    folder = Folder(str(tmp_path))
    shard = write_shard(folder, "words", 0, words(100_000), WORDS)
    before = pa.total_allocated_bytes()
    table = open_shard(folder, shard.name)
    assert table.num_rows == 100_000
    assert pa.total_allocated_bytes() - before < shard.bytes / 10


@settings(deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=5))
def test_the_same_rows_give_the_same_bytes_however_they_were_chunked(sizes):
    rows = words(sum(sizes))
    parts, start = [], 0
    for size in sizes:
        parts.append(rows.slice(start, size))
        start += size
    assert encode_shard(pa.concat_tables(parts)) == encode_shard(rows)


def test_the_digest_is_of_the_content_not_of_the_run(tmp_path):
    one = finished(Folder(str(tmp_path / "a")), 25, 10)
    two = finished(Folder(str(tmp_path / "b")), 25, 10)
    other = finished(Folder(str(tmp_path / "c")), 24, 10)
    assert one.digest == two.digest != other.digest


def test_verify_names_what_is_damaged(tmp_path):
    folder = Folder(str(tmp_path))
    finished(folder, 25, 10)
    path = tmp_path / "words-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (tmp_path / "words-00002.arrow").unlink()
    (tmp_path / "words-00007.arrow").write_bytes(b"stray")
    assert verify(folder) == [
        "words-00001.arrow: sha256 differs from the manifest",
        "words-00002.arrow: missing",
        "words-00007.arrow: not in the manifest",
    ]


def test_a_folder_of_another_schema_version_says_what_to_do(tmp_path):
    folder = Folder(str(tmp_path))
    finished(folder, 5, 10)
    fields = folder.read_json("manifest.json")
    folder.write_json("manifest.json", {**fields, "schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION + 1}"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}'])
def test_a_broken_manifest_is_a_user_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="not readable"):
        read_manifest(Folder(str(tmp_path)))


def test_an_unfinished_folder_and_an_unknown_scheme_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no manifest.json"):
        read_manifest(Folder(str(tmp_path)))
    with pytest.raises(UserError, match="nowhere://x"):
        Folder("nowhere://x").exists("y")


def test_rows_of_another_schema_are_refused_before_anything_is_written(tmp_path):
    folder = Folder(str(tmp_path))
    with pytest.raises(UserError, match="n: string"):
        write_shard(folder, "words", 0, pa.table({"word": ["a"], "n": ["b"]}), WORDS)
    assert folder.names() == []


def test_a_uri_works_like_a_path(tmp_path):
    finished(Folder(f"file://{tmp_path}/mix"), 25, 10)
    assert read_table(Folder(str(tmp_path / "mix")), "words").num_rows == 25


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is needed")
    with pytest.raises(UserError, match="cannot write"):
        Folder(str(tmp_path / "taken")).write_bytes("x", b"data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]
