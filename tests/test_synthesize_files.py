"""`datagen synthesize`: queries for the documents of plain files."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from endpoint_server import TEST, EndpointServer
from test_synthesize_step import served
from writing_server import reply

from datagen.schema import UserError, document_id
from datagen.synthesize import synthesize_files
from datagen.synthesize.fits import check_fits
from datagen.synthesize.llm import LLM, from_model
from datagen.synthesize.pools import load_pool
from datagen.synthesize.wanted import Wanted

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
        synthesize_files(
            [given], str(tmp_path / "out"), llms=[from_model(model)], cache=str(tmp_path / "c")
        )
    assert found in error.value.found
    assert not (tmp_path / "c").exists() and not (tmp_path / "out").exists()


def test_documents_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        synthesize_files(
            [str(tmp_path / "gone.jsonl")],
            str(tmp_path / "out"),
            llms=[from_model("gemma3-270m")],
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
    planned = subprocess.run([*command, "--plan"], check=True, capture_output=True, text=True)
    plan = json.loads(planned.stdout)["plan"]
    assert [record["kind"] for record in plan] == ["retrieval", "all"]
    assert plan[0]["rows"] == len(DOCUMENTS) and plan[0]["output_tokens"] > 0
    assert not (tmp_path / "out" / "rows.parquet").exists()

    subprocess.run(command, check=True, capture_output=True)
    made = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    (model,) = json.loads((tmp_path / "out" / "models.json").read_text())
    assert len(made) == len(DOCUMENTS)
    assert [row["reason"] for row in rejected].count("text_empty") == 1
    assert (model["llm"], model["kept"]) == ("smollm2-135m-instruct", len(made))
    assert model["requested"] == len(made) + len(rejected) - 1
    for row in made:
        assert row["text"] in DOCUMENTS and row["query"]
        assert row["seed_document"] == document_id("Note", row["text"])
        assert (row["llm"], row["llm_licence"]) == ("smollm2-135m-instruct", "Apache-2.0")
    before = (tmp_path / "out" / "rows.parquet").read_bytes()
    subprocess.run(command, check=True, capture_output=True)  # loads nothing: all is done
    assert (tmp_path / "out" / "rows.parquet").read_bytes() == before


def test_endpoints_and_pools_on_the_command_line(tmp_path: Path) -> None:
    served = from_model("http://gpu:8000/v1#Qwen/Qwen3-8B", key_variable="POOL_KEY")
    assert (served.name, served.model) == ("Qwen3-8B", "Qwen/Qwen3-8B")
    assert (served.endpoint, served.key_variable) == ("http://gpu:8000/v1", "POOL_KEY")
    with pytest.raises(UserError, match="URL#NAME"):
        from_model("http://gpu:8000/v1")

    file = tmp_path / "pool.yaml"
    file.write_text(
        "- name: One\n  model: a/one\n  licence: MIT\n  languages: [eng, deu]\n  share: 2\n"
        "- name: Two\n  model: b/two\n  licence: MIT\n  engine: {quantization: fp8}\n"
    )
    one, two = load_pool(str(file))
    assert (one.languages, one.share) == (("eng", "deu"), 2)
    assert two.engine == (("quantization", "fp8"),)
    assert [llm.num_gpus for llm in load_pool("nemotron")] == [1, 1, 8, 4, 4, 8]
    for text, found in (
        ("- name: One\n  gpus: 8\n", "not given: model, licence; not known: gpus"),
        ("name: One", "dict"),
        ("- [", "while parsing"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=found) as raised:
            load_pool(str(file))
        assert raised.value.exit_status == 2


def test_an_llm_that_fits_nowhere_is_refused_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "big").mkdir()
    with (tmp_path / "big" / "model.safetensors").open("wb") as file:
        file.truncate(1 << 41)  # 2 TiB that take no room
    big = LLM(name="Big", model=str(tmp_path / "big"), licence="MIT")
    with pytest.raises(UserError, match="weights of 2048.0 GiB"):
        check_fits([big], cache="", executor="local")

    node = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 1.0}}
    dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    wide = LLM(name="Wide", model="a/wide", licence="MIT", num_gpus=4)
    with pytest.raises(UserError, match="a replica of 4 GPUs") as raised:
        check_fits([wide], cache="", executor="ray", nodes=[node, dead])
    assert "at most 1 GPUs and 16 CPUs" in str(raised.value)
    check_fits([wide], cache="", executor="ray", nodes=[{**dead, "Alive": True}])
    check_fits([LLM(name="S", model="s", licence="MIT", endpoint="http://s/v1")], cache="",
               executor="ray")  # fmt: skip


def test_kinds_that_start_from_nothing_need_no_documents(tmp_path: Path) -> None:
    kinds = {"classification": 6, "sts": 4, "bitext": 3}
    with EndpointServer(reply=reply) as server:
        llm = served(server, "One", languages=("eng", "deu"))
        done = synthesize_files(
            [],
            str(tmp_path),
            llms=[llm],
            cache="",
            wanted=Wanted(kinds=kinds, languages=("eng", "deu")),
        )
    made = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    counted = {record["kind"]: record for record in done["models"]}
    assert set(counted) == set(kinds)
    for kind, record in counted.items():
        rows = [row for row in made if row["source"] == f"synthetic_{kind}"]
        assert len(rows) == record["kept"] == kinds[kind] - done["missing"]["One"].get(kind, 0)
    assert made and {row["document_row"] for row in made} == {None}


def test_asked_for_more_it_asks_for_what_is_new_only(tmp_path: Path) -> None:
    with EndpointServer(reply=reply) as server:
        llm = served(server, "One", languages=("eng",))
        made = []
        for count in (4, 7):
            wanted = Wanted(kinds={"sts": count}, languages=("eng",))
            synthesize_files([], str(tmp_path), llms=[llm], cache="", wanted=wanted)
            made.append(pq.read_table(tmp_path / "rows.parquet").to_pylist())
    assert [len(rows) for rows in made] == [4, 7]
    assert {row["query"] for row in made[0]} <= {row["query"] for row in made[1]}
    asked = [json.dumps(body["messages"]) for body in server.bodies]
    asked = [one for one in asked if TEST not in one]
    assert len(asked) == len(set(asked)) >= 7


def test_documents_and_kinds_without_them_in_one_run(tmp_path: Path) -> None:
    rows = [{"text": text, "mark": i} for i, text in enumerate(DOCUMENTS)]
    given = write_jsonl(tmp_path / "given.jsonl", rows)
    with EndpointServer(reply=reply) as server:
        synthesize_files(
            [given],
            str(tmp_path / "out"),
            llms=[served(server, "One")],
            cache="",
            wanted=Wanted(kinds={"retrieval": 6, "sts": 3}),
        )
    made = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
    about = [row for row in made if row["source"] == "synthetic_retrieval"]
    assert len(about) == 6  # of four documents: they are taken again, with other knobs
    assert all(row["text"] == DOCUMENTS[row["document_row"]] for row in about)
    assert all(row["mark"] == row["document_row"] for row in made)
    assert {row["mark"] for row in made if row not in about} == {None}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"kinds": {"poetry": 3}}, "poetry=3"),
        ({"kinds": {"sts": 0}}, "sts=0"),
        ({"kinds": {"translation": 5}}, "translation=5"),
        ({"kinds": {"bitext": 5}}, "bitext in eng"),
        ({"kinds": {"retrieval": 5}}, "no --documents"),
        ({}, "no --documents"),
    ],
)
def test_kinds_that_cannot_be_written(tmp_path: Path, wanted: dict, found: str) -> None:
    with pytest.raises(UserError) as error:
        synthesize_files(
            [],
            str(tmp_path / "out"),
            llms=[from_model("gemma3-270m")],
            cache=str(tmp_path / "c"),
            wanted=Wanted(**wanted),
        )
    assert found in error.value.found and error.value.exit_status == 2
    assert not (tmp_path / "c").exists() and not (tmp_path / "out").exists()
