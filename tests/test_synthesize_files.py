"""`datagen synthesize`: queries for the documents of plain files."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datagen.schema import UserError, document_id
from datagen.synthesize import synthesize_files
from datagen.synthesize.llm import from_model

DOCUMENTS = (
    "The lighthouse keeper writes the weather into a book every evening at six, by the lamp.",
    "Yeast turns the sugar of the dough into gas, the gluten catches it, and the bread rises.",
    "Owls fly without a sound because the edges of their feathers are soft and break up the air.",
    "The tram to the harbour leaves every twelve minutes, on Sundays every twenty, from track two.",
)


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("rows", "model", "found"),
    [
        ([{"text": DOCUMENTS[0]}], "gemma3-270", "gemma3-270"),
        ([{"text": DOCUMENTS[0]}], "all-minilm-l6-v2", "encoder"),
        ([{"body": DOCUMENTS[0]}], "gemma3-270m", "body"),
    ],
)
def test_a_mistake_is_told_before_anything_loads(
    tmp_path: Path, rows: list[dict], model: str, found: str
) -> None:
    given = write_jsonl(tmp_path / "given.jsonl", rows)
    with pytest.raises(UserError) as error:
        synthesize_files([given], str(tmp_path / "out"), models=[model], cache=str(tmp_path / "c"))
    assert found in error.value.found
    assert not (tmp_path / "c").exists() and not (tmp_path / "out").exists()


def test_documents_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        synthesize_files(
            [str(tmp_path / "gone.jsonl")],
            str(tmp_path / "out"),
            models=["gemma3-270m"],
            cache=str(tmp_path),
        )
    assert "gone.jsonl" in error.value.found


def test_a_packaged_llm_knows_its_licence_and_how_it_is_prompted() -> None:
    smollm2, gemma3 = from_model("smollm2-135m-instruct"), from_model("gemma3-270m")
    assert (smollm2.name, smollm2.licence, smollm2.chat) == (
        "smollm2-135m-instruct",
        "Apache-2.0",
        True,
    )
    assert (gemma3.licence, gemma3.chat) == ("Gemma", False)
    assert from_model("Qwen/Qwen3-0.6B").name == "Qwen3-0.6B"


@pytest.mark.slow
def test_the_command_writes_rows_rejected_and_models(tmp_path: Path, model_cache: str) -> None:
    rows: list[dict] = [{"text": text, "title": "Note"} for text in DOCUMENTS] + [{"text": ""}]
    given = write_jsonl(tmp_path / "given.jsonl", rows)
    command = [sys.executable, "-m", "datagen.cli", "synthesize", "--documents", given]
    command += ["--models", "smollm2-135m-instruct", "--cache", model_cache]
    command += ["--output", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True)
    made = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    models = json.loads((tmp_path / "out" / "models.json").read_text())
    assert [row["reason"] for row in rejected].count("text_empty") == 1
    assert len(made) + len(rejected) == len(DOCUMENTS) + 1
    assert (models[0]["llm"], models[0]["requests"]) == ("smollm2-135m-instruct", len(DOCUMENTS))
    assert models[0]["valid"] == len(made)
    for row in made:
        assert row["text"] in DOCUMENTS and row["query"]
        assert row["seed_document"] == document_id("Note", row["text"])
        assert (row["llm"], row["llm_licence"]) == ("smollm2-135m-instruct", "Apache-2.0")
    before = (tmp_path / "out" / "rows.parquet").read_bytes()
    subprocess.run(command, check=True, capture_output=True)  # loads nothing: all is done
    assert (tmp_path / "out" / "rows.parquet").read_bytes() == before
