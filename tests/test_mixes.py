"""The papers' mixes: their tables, the sources at hand, and a small build of each."""

import dataclasses
import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from endpoint_server import EndpointServer
from small_mix import build, mined, rows_of
from test_synthesize_step import served
from writing_server import WORDS, reply

from datagen.clean import clean
from datagen.compare_mixes import diff_mixes
from datagen.dedup import dedup
from datagen.ingest import ingest
from datagen.mix import write_mix
from datagen.mixes import MIXES, f2llm, nemotron
from datagen.schema import MINED, UserError
from datagen.sources import Source
from datagen.stages import Stage
from datagen.steps import Context, Step, run_steps
from datagen.store import Folder, read_table
from datagen.verify import verify_mix
from recipes.build_mix import main
from recipes.papers import published
from recipes.public_pairs import read_sources


def test_nemotron_has_the_rows_of_its_tables() -> None:
    mix = nemotron()
    pretrain, finetune = mix.sources["pretrain"], mix.sources["finetune"]
    assert sum(rows or 0 for rows in pretrain.values()) == 11_800_000
    paper = {name: rows for name, rows in finetune.items() if name.startswith("nemotron/")}
    assert len(paper) == 31 and sum(rows or 0 for rows in paper.values()) == 4_309_502
    assert finetune["synthetic_sts"] == paper["nemotron/synthetic-sts"] == 239_997
    first, second = mix.stages
    assert (first.negatives, second.negatives) == (1, 4)
    assert (first.instruction_share, second.temperature) == (1.0, 1.0)


def test_f2llm_starts_with_seven_sources_without_instruction() -> None:
    mix = f2llm()
    assert len(mix.sources["pretrain"]) == 7 and len(mix.sources["finetune"]) == 157
    first, second = mix.stages
    assert first.instruction_share == 0.0
    assert (second.rows_per_source, second.symmetric_share) == (80_000, 0.3)
    assert second.task_negatives["classification"] == 1
    files = [name for name in mix.ready() if name.startswith("f2llm-v2/webfaq/")]
    assert len(files) == 49, "the cap is for a file, and a file is a source"


def test_stages_are_of_the_sources_at_hand(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="embedmix"):
        (only,) = nemotron().stages_for(["nemotron/squad", "nemotron/fever"])
    assert only.name == "finetune" and set(only.sources or ()) == {
        "nemotron/squad",
        "nemotron/fever",
    }
    assert only.source_rows == {"nemotron/squad": 87_599, "nemotron/fever": 140_085}
    assert "33 of 35 sources of the paper are absent" in caplog.text
    first, second = f2llm().stages_for(["f2llm-v2/webfaq/deu", "f2llm-v2/webfaq/fra"])
    assert first.sources == second.sources and first.source_rows == {}
    (written,) = [s for s in nemotron().stages_for(["synthetic_retrieval"]) if s.name == "pretrain"]
    assert written.source_rows == {"synthetic_retrieval": 6_800_000}


@pytest.mark.parametrize("name", MIXES)
def test_unknown_sources_are_named(name: str) -> None:
    mix = MIXES[name]()
    with pytest.raises(UserError) as error:
        mix.stages_for([*list(mix.sources["finetune"])[:2], "squat", "mine/faq"])
    assert error.value.found.endswith(": squat, mine/faq") and error.value.exit_status == 2
    with pytest.raises(UserError, match="no source of the mix"):
        mix.stages_for([])


def test_subsets_share_the_rows_of_their_source() -> None:
    (stage,) = nemotron().stages_for(["nemotron/scifact/a", "nemotron/scifact/b"])
    assert stage.source_rows == {"nemotron/scifact/a": 460, "nemotron/scifact/b": 459}


def test_a_mix_of_the_f2llm_recipe_carries_instructions_as_the_paper_says(tmp_path: Path) -> None:
    queries, documents, found = rows_of(["trivia", "similar", "topics"], per_source=60)
    names = {
        "trivia": "f2llm-v2/webfaq/eng", "similar": "f2llm-v2/stsb", "topics": "f2llm-v2/imdb",
    }  # fmt: skip
    for row in queries + documents:
        row["source"] = names[row["source"]]
    mix = f2llm()
    stages = [
        dataclasses.replace(stage, negatives=5)  # as many as these rows have, for 24
        for stage in mix.stages_for([*names.values()])
    ]
    build(str(tmp_path), queries, documents, found, stages=stages)
    first = read_table(Folder(f"{tmp_path}/mix"), "pretrain").to_pylist()
    second = read_table(Folder(f"{tmp_path}/mix"), "finetune").to_pylist()
    assert {row["source"] for row in first} == {names["trivia"]}
    assert {row["instruction"] for row in first} == {None}
    assert None not in {row["instruction"] for row in second}
    symmetric = Counter((row["task"], row["symmetric"]) for row in second)
    assert 8 <= symmetric["sts", True] <= 28  # 30 % of 59, within three standard deviations
    assert symmetric["retrieval", True] == symmetric["classification", True] == 0
    by_task = Counter(row["task"] for row in second)
    assert by_task == {"retrieval": 59, "sts": 59, "classification": 60}, (
        "2 negatives suffice there"
    )


def faq(folder: Path, name: str, rows: int) -> dict[str, Any]:
    """A source of questions and answers in a file."""
    path = folder / f"{name.replace('/', '-')}.jsonl"
    made = [
        {"q": f"what is number {i} of {name}?", "a": f"it is the {i}th answer that {name} has, sir"}
        for i in range(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    columns = {"query": "q", "text": "a"}
    return {
        "kind": "files", "name": name, "task": "retrieval", "paths": [path.name],
        "columns": columns, "language": "eng_Latn",
    }  # fmt: skip


def faq_source(folder: Path, name: str, rows: int) -> Source:
    """That source as a recipe reads it."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump([faq(folder, name, rows)]))
    (found,) = read_sources(str(path))
    return found


def test_mistakes_in_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump([faq(tmp_path, "faq", 3)]))
    command = ["--recipe", "nemotron", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "a model to mine with" in capsys.readouterr().err
    named = [*command, "--sources", str(tmp_path / "s.yaml"), "--encoder", "all-minilm-l6-v2"]
    assert main(named) == 2
    assert "sources that the mix 'nemotron' does not have: faq" in capsys.readouterr().err
    assert main([*named, "--variants", "0"]) == 2
    assert not (tmp_path / "out").exists()


def near_in_order(deduped: Step, *, name: str) -> Step:
    """Stands in for mining: the four documents of the query's source that follow its positive."""

    def work(context: Context) -> None:
        folder = context.inputs["deduped"]
        documents = read_table(folder, "documents").select(["doc_id", "source"]).to_pylist()
        rows = []
        for query in read_table(folder, "queries").to_pylist():
            own = sorted(d["doc_id"] for d in documents if d["source"] == query["source"])
            at = own.index(query["positives"][0])
            rows.append(mined(query, [own[(at + k) % len(own)] for k in range(1, 5)]))
        table = pa.Table.from_pylist(rows, schema=MINED)
        context.write("mined", table, MINED, rows_per_shard=1000)

    return Step(name=name, version=1, config={}, inputs={"deduped": deduped}, work=work)


def test_a_source_is_added_to_a_finished_mix_and_the_old_ones_are_not_touched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = (faq_source(tmp_path, name, rows) for name, rows in (("history", 30), ("music", 20)))
    stages = (Stage(name="finetune", negatives=4),)
    pairs = clean(ingest(old))
    first = dedup(pairs)
    mine = near_in_order(first, name="mine")
    steps = [*pairs.inputs.values(), pairs, first, mine, write_mix(first, mine, stages=stages)]
    run_steps(steps, str(tmp_path / "out"), executor="local")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}

    read = ingest(new, name="ingest_music")
    more = clean(read, name="clean_music")
    both = dedup(more, against=first, name="dedup_music")
    again = near_in_order(both, name="mine_music")
    mix = write_mix(both, again, stages=stages, name="mix_music")
    with caplog.at_level(logging.INFO, logger="embedmix"):
        done = run_steps(
            [*steps, read, more, both, again, mix], str(tmp_path / "out"), executor="local"
        )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert caplog.text.count("up to date") == len(steps)
    assert {row["source"] for row in done["clean_music"].ledger} == {"music"}
    kept = ("queries", "documents")
    shards = [(s.table, s.sha256) for s in done["dedup"].shards if s.table in kept]
    assert set(shards) <= {(s.table, s.sha256) for s in done["dedup_music"].shards}
    told = diff_mixes(str(tmp_path / "out" / "mix"), str(tmp_path / "out" / "mix_music"))
    by_source = {
        row["source"]: (row["added"], row["removed"], row["changed"]) for row in told["rows"]
    }
    assert by_source == {"history": (0, 0, 0), "music": (20, 0, 0)}
    assert told["documents"]["removed"] == 0 and told["negatives_kept"] == {"finetune": 1.0}


@pytest.mark.slow
def test_two_variants_of_a_paper_s_mix(tmp_path: Path, model_cache: str) -> None:
    names = ["nemotron/squad", "nemotron/fever"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump([faq(tmp_path, n, 30) for n in names]))
    steps = published(
        "nemotron",
        sources=read_sources(str(tmp_path / "s.yaml")),
        against=(),
        encoder="all-minilm-l6-v2",
        cache=model_cache,
        variants=2,
    )
    done = run_steps(steps, str(tmp_path / "out"), executor="local")
    one, two = done["mix-1"], done["mix-2"]
    assert one.table("documents") == two.table("documents")
    assert one.stats["stages"]["finetune"]["source"].keys() <= set(names)
    assert (tmp_path / "out" / "mix-2" / "README.md").exists()
    assert verify_mix(str(tmp_path / "out" / "mix-2")) == []


@pytest.mark.slow
def test_llms_write_their_part_of_a_paper_s_mix(tmp_path: Path, model_cache: str) -> None:
    told = faq(tmp_path, "nemotron/squad", 30)
    draw = random.Random(0)
    rows = [{"q": f"question {i}?", "a": " ".join(draw.sample(WORDS, 25))} for i in range(30)]
    file = tmp_path / told["paths"][0]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump([told]))
    with EndpointServer(reply=reply) as server:
        llms = [served(server, name, languages=("eng", "deu")) for name in ("One", "Two")]
        steps = published(
            "nemotron",
            sources=read_sources(str(tmp_path / "s.yaml")),
            against=(),
            encoder="all-minilm-l6-v2",
            cache=model_cache,
            llms=llms,
            written=2e-6,
        )
        done = run_steps(steps, str(tmp_path / "out"), executor="local")
    assert done["synthesize"].config["rows"] == {
        "bitext": 1, "classification": 3, "retrieval": 14, "sts": 1,
    }  # fmt: skip
    written = done["mix"].stats["stages"]
    assert written["pretrain"]["source"].keys() == {"synthetic_retrieval"}
    assert {"nemotron/squad", "synthetic_classification"} <= written["finetune"]["source"].keys()
    assert verify_mix(str(tmp_path / "out" / "mix")) == []
