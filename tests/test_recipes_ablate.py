"""Ablations: variants are sound mixes, intervals are those of the textbook, runs are kept."""

import json
from pathlib import Path

import pytest
import small_mix
from tiny_encoder import tiny_export, write_task

from datagen.schema import UserError
from datagen.store import Folder, read_manifest, read_table
from datagen.verify import verify_mix
from recipes.ablate import main
from recipes.ablation_runs import Job, score_all
from recipes.ablation_scores import Interval, Line, Table, interval, means, paired, render
from recipes.ablations import TABLES, equal_shares, table_of, variants
from recipes.mix_variants import MixRules, derive, llm_rows


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("built")
    small_mix.build(str(output), *small_mix.rows_of())
    return str(output / "mix")


def make(mix: str, output: Path, **options) -> str:
    return derive(mix, str(output), **{"negatives": {"finetune": 4}, **options})


def rows(folder: str) -> list[dict]:
    return read_table(Folder(folder), "finetune").to_pylist()


def test_three_seeds_need_4_3_standard_errors():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.30265 / 3**0.5), abs=1e-4)
    assert interval([5.0]) == Interval(5.0, None)


def test_differences_are_taken_seed_by_seed():
    noisy, higher = {1: 10.0, 2: 50.0, 3: 30.0}, {1: 11.0, 2: 51.1, 3: 30.9, 4: 99.0}
    gap = paired(higher, noisy)
    assert gap == pytest.approx((1.0, 4.30265 * 0.1 / 3**0.5), abs=1e-4)
    assert gap.excludes_zero and not interval([1.0, -0.5, 0.7]).excludes_zero
    assert not interval([3.0]).excludes_zero, "one seed says nothing"


def test_means_are_of_tasks_and_of_types():
    scored = [("a", "sts", 0.5), ("b", "sts", 0.7), ("c", "retrieval", 0.3)]
    tasks = [{"task": task, "type": kind, "main_score": x} for task, kind, x in scored]
    found = {"tasks": 50.0, "types": 45.0, "retrieval": 30.0, "sts": 60.0}
    assert means(tasks) == pytest.approx(found)


def test_a_table_says_what_its_intervals_allow():
    lines = [Line("A", "a", 60.0), Line("B", "b", 62.5), Line("C", "c"), Line("D", "d")]
    table = Table(title="Letters", lines=lines, paper="Paper: none.")
    scores = {"a": (10.0, 12.0, 14.0), "b": (13.0, 15.1, 16.9), "c": (9.0, 14.0, 14.0)}
    runs = {
        name: {seed: {"tasks": x, "types": x, "sts": x} for seed, x in enumerate(values)}
        for name, values in scores.items()
    }
    assert render(table, runs).splitlines() == [
        "## Letters",
        "",
        "|   | runs | mean of tasks | difference | mean of types | sts | paper | "
        "difference there |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| A | 3 | 12.0 ± 5.0 |  | 12.0 ± 5.0 | 12.0 ± 5.0 | 60.00 |  |",
        "| B | 3 | 15.0 ± 4.8 | +3.0 ± 0.2 * | 15.0 ± 4.8 | 15.0 ± 4.8 | 62.50 | +2.50 |",
        "| C | 3 | 12.3 ± 7.2 | +0.3 ± 3.8 | 12.3 ± 7.2 | 12.3 ± 7.2 |  |  |",
        "",
        "Beyond the interval, against 'A': B (+3.0 ± 0.2). No difference can be claimed for: C.",
        "",
        "Paper: none.",
    ]


def test_llms_get_equal_rows_of_every_task_and_the_mix_as_many():
    llms = {"x": {"retrieval": 9, "classification": 3}, "y": {"retrieval": 5, "sts": 8}}
    assert equal_shares(llms) == {
        "llm-mix": (("x", "retrieval", 3), ("y", "retrieval", 2)),
        "llm-x": (("x", "retrieval", 5),),
        "llm-y": (("y", "retrieval", 5),),
    }
    with pytest.raises(UserError, match="synthetic rows of 1 LLMs"):
        equal_shares({"x": {"sts": 1}})


def test_every_line_of_every_table_is_a_variant_or_a_merge():
    llms = {"x": {"sts": 4}, "y": {"sts": 4}}
    known = variants(TABLES, rows=8, llms=llms)
    made = {*known, "best", "merged-pairs", "merged-all"}
    lines = {line.variant for name in TABLES for line in table_of(name, known).lines}
    assert lines == made
    with pytest.raises(UserError, match="no synthetic rows in the mix"):
        variants(["synthetic"], rows=8, llms={})


RULES = {
    "all": MixRules(),
    "public": MixRules(synthetic=()),
    "some": MixRules(public_rows=20, synthetic=(("tiny-llm", "retrieval", 6),)),
    "fewer": MixRules(public_rows=10, synthetic=(("tiny-llm", "retrieval", 3),)),
    "strict": MixRules(margin=0.75),
    "others": MixRules(languages=("deu", "zho")),
}


def test_variants_are_mixes_that_verify(mix, tmp_path):
    found = {n: make(mix, tmp_path, name=n, rules=rules) for n, rules in RULES.items()}
    for name, folder in found.items():
        assert verify_mix(folder) == [], name
    assert rows(found["all"]) == rows(mix)
    assert {row["origin"] for row in rows(found["public"])} == {"public"}
    some, fewer = ({r["query_id"] for r in rows(found[n])} for n in ("some", "fewer"))
    assert (len(some), len(fewer)) == (26, 13)
    assert fewer < some, "more rows contain fewer"
    ledger = {row["source"]: row for row in read_manifest(Folder(found["some"])).ledger}
    assert ledger["questions"]["dropped"] == {"synthetic_not_taken": 7}
    assert sum(row["kept"] for row in ledger.values()) == 26
    assert llm_rows(mix) == {"tiny-llm": {"retrieval": 13}}
    assert {row["language"] for row in rows(found["others"])} == {"deu", "zho"}
    dropped = [row["dropped"] for row in read_manifest(Folder(found["others"])).ledger]
    assert sum(row.get("other_language", 0) for row in dropped) == 39 + 13


def test_a_variant_of_both_stages_counts_a_query_once(mix, tmp_path):
    rules = MixRules(public_rows=20, synthetic=())
    both = make(mix, tmp_path, name="both", rules=rules, negatives={"pretrain": 1, "finetune": 4})
    assert verify_mix(both) == []
    manifest = read_manifest(Folder(both))
    assert (manifest.rows("pretrain"), manifest.rows("finetune")) == (20, 20)
    assert sum(row["rows_in"] for row in manifest.ledger) == 81, "as many as the mix holds"
    alone = make(mix, tmp_path, name="alone", rules=rules)
    assert rows(alone) == rows(both), "the second stage is the same"


def test_a_margin_keeps_the_negatives_that_score_low_enough(mix, tmp_path):
    folder = make(mix, tmp_path, name="strict", rules=RULES["strict"])
    before = {row["query_id"]: row for row in rows(mix)}
    for row in rows(folder):  # at most 0.75 x 0.9, but labels are wrong at any score
        skipped = 0 if row["task"] == "classification" else 1
        assert row["negatives"] == before[row["query_id"]]["negatives"][skipped:]
    # Other margins on the same rows: those that would not have enough are in none.
    rules = MixRules(enough_at=0.7)
    loose = rows(make(mix, tmp_path, name="loose", rules=rules))
    assert {row["task"] for row in loose} == {"classification"}
    with pytest.raises(UserError, match="was made with another configuration: config.rules"):
        make(mix, tmp_path, name="strict", rules=rules)
    with pytest.raises(UserError, match="has the stages finetune\n"):
        make(folder, tmp_path, name="x", rules=rules, negatives={"pretrain": 1})


def sts_task(folder: Path) -> str:
    texts = [f"trivia query {i}" for i in range(12)]
    columns = {"text_a": texts, "text_b": texts[::-1], "score": [float(i) for i in range(12)]}
    return write_task(folder, "sts", {"pairs": columns})


@pytest.mark.slow
def test_in_a_ray_job_each_run_is_a_task(ray_session, tmp_path, monkeypatch):
    """Here of a model whose scores are known, and of one whose record is of other tasks."""
    monkeypatch.setenv("RAY_ADDRESS", "local")  # the session's
    model = tiny_export(tmp_path / "model")
    jobs, record = {}, tmp_path / "result.json"
    for name, seed in (("sts", 1), ("other", 2)):
        jobs[seed] = (Job(output=model, tasks=(sts_task(tmp_path / name),)), str(tmp_path))
    known = {"task": "sts", "type": "sts", "main_score": 0.25}
    record.write_text(json.dumps({"identity": jobs[1][0].identity(), "tasks": [known]}))
    found = score_all({1: jobs[1]}, cpus=1, gpus=0)
    assert found == {1: {"tasks": 25.0, "types": 25.0, "sts": 25.0}}
    with pytest.raises(UserError, match="trained with another configuration: tasks was"):
        score_all(jobs, cpus=1, gpus=0)


def test_numbers_below_one_are_a_usage_error(tmp_path, capsys):
    places = ["--mix", "m", "--base", "b", "--tasks", "t", "--output", str(tmp_path / "out")]
    assert main([*places, "--seeds", "0"]) == 2
    assert "expected: numbers of at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_runs_are_made_once_and_merged(mix, tmp_path, capsys):
    base, output = tiny_export(tmp_path / "base"), tmp_path / "out"
    command = ["--mix", mix, "--base", base, "--tasks", sts_task(tmp_path / "sts")]
    command += ["--output", str(output), "--encoder", base, "--seeds", "2", "--threads", "1"]
    command += ["--batch-size", "8", "--tables", "merging", "stages", "negatives"]
    assert main([*command, "--steps", "2"]) == 0
    page = capsys.readouterr().out
    for line in (
        "## Merging",
        "| all runs, merged | 1 |",
        "| both stages | 2 |",
        "| random, of",
        "2 layers of 32",
    ):
        assert line in page
    assert (output / "ablations.md").read_text() in page
    drawn = str(output / "mixes" / "random-negatives")
    assert verify_mix(drawn) == []
    for row in rows(drawn):
        assert len(row["negatives"]) == 4
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True)
    kept = sorted(p.parent.relative_to(output).as_posix() for p in output.rglob("*.safetensors"))
    assert kept == ["merged/1-2", "runs/baseline/seed-1", "runs/baseline/seed-2"]

    times = {p: p.stat().st_mtime_ns for p in output.rglob("result.json")}
    assert len(times) == 8
    assert main([*command, "--steps", "2"]) == 0, "nothing is run again"
    assert times == {p: p.stat().st_mtime_ns for p in output.rglob("result.json")}
    assert main([*command, "--steps", "2", "--learning-rate", "0.5"]) == 1
    assert "stages was" in capsys.readouterr().err
