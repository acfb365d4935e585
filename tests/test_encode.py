"""The encoder against sentence-transformers itself, and what it refuses to load."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen import vectors as module
from datagen.encode import Encoder, token_batches
from datagen.encoder_model import inspect_encoder
from datagen.schema import UserError
from datagen.store import Folder, write_shard
from datagen.vectors import Embeddings, embedding_schema, embedding_table

TEXTS = [
    "What is the capital of Norway?",
    "Oslo",
    "Oslo is the capital and the most populous city of Norway. " * 12,
    "  leading and trailing blanks  ",
    "日本の首都はどこですか",
]


def test_same_vectors_as_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(minilm, device="cpu", local_files_only=True)
    expected = reference.encode(TEXTS, normalize_embeddings=True, prompt="query: ")
    found = Encoder(minilm, device="cpu").encode(TEXTS, prompt="query: ", stored="float32")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_neighbours_and_batch_size_change_nothing_that_float16_shows(minilm):
    encoder = Encoder(minilm, device="cpu", batch_tokens=64)
    together = encoder.encode(TEXTS, stored="float16")
    assert np.array_equal(together, encoder.encode(TEXTS, stored="float16"))
    alone = np.concatenate([encoder.encode([text], stored="float16") for text in TEXTS])
    np.testing.assert_allclose(together.astype(float), alone.astype(float), atol=2**-11)
    assert together.dtype == np.float16


def test_max_length_cuts_texts(minilm):
    short = Encoder(minilm, device="cpu", max_length=8)
    long_text = TEXTS[2]
    a, b = short.encode([long_text, long_text + " and more"], stored="float32")
    np.testing.assert_allclose(a, b, atol=1e-6)


@given(
    lengths=st.lists(st.integers(1, 50), max_size=60),
    budget=st.integers(1, 120),
)
def test_batches_hold_every_row_once_and_keep_to_the_budget(lengths, budget):
    batches = token_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths)


def model_folder(path: Path, module: str = "sentence_transformers.models.Transformer") -> Path:
    path.mkdir(parents=True)
    (path / "modules.json").write_text(json.dumps([{"idx": 0, "path": "", "type": module}]))
    (path / "model.safetensors").write_bytes(b"weights")
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return path


def test_the_digest_follows_the_content_not_the_place(tmp_path):
    here = model_folder(tmp_path / "here")
    (here / "README.md").write_text("notes")
    shutil.copytree(here, tmp_path / "there")
    (tmp_path / "there" / "README.md").write_text("other notes")
    info = inspect_encoder(str(here))
    assert info == inspect_encoder(str(tmp_path / "there"))
    assert info.prompts["query"] == "query: "
    (tmp_path / "there" / "model.safetensors").write_bytes(b"fine-tuned")
    assert info.digest != inspect_encoder(str(tmp_path / "there")).digest


def test_a_folder_that_would_run_its_own_code_is_refused(tmp_path):
    folder = model_folder(tmp_path / "m", module="modeling_mine.Transformer")
    with pytest.raises(UserError, match="code of its own: modeling_mine.Transformer"):
        inspect_encoder(str(folder))


def test_pickled_weights_are_refused(tmp_path):
    folder = model_folder(tmp_path / "m")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="2_Dense has pickled weights only"):
        inspect_encoder(str(folder))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no model folder .*absent") as caught:
        inspect_encoder(str(tmp_path / "absent"))
    assert caught.value.exit_status == 2


def test_a_folder_without_weights_is_the_users_to_mend(minilm, tmp_path):
    shutil.copytree(minilm, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not load"):
        Encoder(str(tmp_path / "m"), device="cpu")


def resident_bytes(path: Path) -> int:
    """Of a file that this process has mapped, as the kernel counts them."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory is read from /proc")
def test_pages_that_were_read_are_given_back(tmp_path, monkeypatch):
    """A row here and there takes 16 pages each, so counting the rows' own bytes is not enough."""
    monkeypatch.setattr(module, "_MAPPED_BYTES", 4 << 20)
    schema, width = embedding_schema("doc_id", "float32"), 384
    vectors = np.zeros((1 << 14, width), np.float32)
    rows = pa.chunked_array([[str(i) for i in range(len(vectors))]])
    table = embedding_table(rows, vectors, schema)
    write_shard(Folder(str(tmp_path)), "vectors", 0, table, schema)
    (shard,) = tmp_path.glob("*.arrow")
    assert shard.stat().st_size > 24 << 20
    stack = Embeddings(Folder(str(tmp_path)), [shard.name])
    for start in range(0, 64, 4):
        assert stack[np.arange(start, len(vectors), 64)].shape == (256, width)
    assert resident_bytes(shard) <= 8 << 20
    for start in range(0, len(vectors), 1024):
        assert stack[start : start + 1024].shape == (1024, width)
    assert resident_bytes(shard) <= 8 << 20


@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_rows_of_embedding_shards(tmp_path, stored):
    vectors = np.random.default_rng(0).standard_normal((9000, 4)).astype(stored)
    folder, schema = Folder(str(tmp_path)), embedding_schema("doc_id", stored)
    for index, rows in enumerate((slice(0, 5000), slice(5000, 9000))):
        ids = pa.chunked_array([[f"{i:04d}" for i in range(9000)[rows]]])
        write_shard(folder, "vectors", index, embedding_table(ids, vectors[rows], schema), schema)
    names = ["vectors-00000.arrow", "vectors-00001.arrow"]
    stack = Embeddings(folder, names)
    assert stack.shape == (9000, 4)
    assert np.array_equal(stack[4000:6000], vectors[4000:6000])
    wanted = np.array([8999, 0, 5000, 4095, 4096, 0])
    assert np.array_equal(stack[wanted], vectors[wanted])
    assert stack[np.array([], dtype=np.int64)].shape == (0, 4)
    remote = Folder(f"memory://{tmp_path.name}")  # an object store: batches are read one by one
    for name in names:
        remote.write_bytes(name, folder.read_bytes(name))
    away = Embeddings(remote, names)
    assert np.array_equal(away[wanted], vectors[wanted])
    assert np.array_equal(away[:], vectors)


def test_shards_of_two_widths_are_refused(tmp_path):
    folder, schema = Folder(str(tmp_path)), embedding_schema("doc_id", "float16")
    for index, width in enumerate((4, 8)):
        table = embedding_table(pa.chunked_array([["a"]]), np.ones((1, width), np.float16), schema)
        write_shard(folder, "vectors", index, table, schema)
    with pytest.raises(UserError, match=r"vectors of widths \[4, 8\]"):
        Embeddings(folder, ["vectors-00000.arrow", "vectors-00001.arrow"])
