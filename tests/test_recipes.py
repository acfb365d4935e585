import os
import subprocess
import sys
from pathlib import Path

import pytest

from datagen.schema import UserError
from datagen.steps import run_steps
from datagen.store import Folder, read_manifest, read_table
from datagen.verify import verify_mix
from recipes.build_mix import check_disk, demo, in_order, main

ROOT = Path(__file__).resolve().parents[1]


def test_the_recipe_is_values_and_runs_nothing(model_cache):
    steps = demo(cache=model_cache, smoke=True)
    names = [step.name for step in steps]
    assert names[:4] == ["ingest", "clean", "language", "dedup"]
    assert names[-4:] == ["mine", "mix", "report", "card"]
    assert len(set(names)) == len(names)
    for i, step in enumerate(steps):
        assert all(upstream.name in names[:i] for upstream in step.inputs.values())
    assert [step.name for step in in_order(steps[-1])] == names


def test_an_unknown_recipe_is_a_usage_error(tmp_path, capsys):
    assert main(["--recipe", "nemo", "--output", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("found: recipe 'nemo'\nexpected: one of demo\ndo: ")
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_found_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="GiB free.*\nexpected: at least 1e\\+09 GiB"):
        check_disk(str(tmp_path / "not" / "there"), gib=1e9)
    check_disk("s3://bucket/mix", gib=1e9)  # nobody can ask a bucket


def build(output: Path, *, cache: str) -> subprocess.CompletedProcess:
    """The recipe as a user runs it, in a Ray of its own."""
    command = [sys.executable, "recipes/build_mix.py", "--recipe", "demo", "--smoke"]
    environment = {**os.environ, "EMBEDMIX_CACHE": cache, "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_smoke_recipe_builds_a_mix_that_verifies_and_is_not_built_twice(tmp_path, model_cache):
    """Every step for real: packaged pairs, two LLMs in vLLM, MiniLM, Ray."""
    first = build(tmp_path, cache=model_cache)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    assert verify_mix(str(tmp_path / "mix")) == []
    mix = read_manifest(Folder(str(tmp_path / "mix")))
    finetune = read_table(Folder(str(tmp_path / "mix")), "finetune")
    assert {"retrieval", "bitext"} <= set(finetune["task"].to_pylist())
    assert set(finetune["origin"].to_pylist()) == {"public", "synthetic"}
    assert mix.rows("pretrain") > 0
    llms = {row["llm"] for row in finetune["provenance"].to_pylist() if row["llm"] is not None}
    assert len(llms) == 2

    again = build(tmp_path, cache=model_cache)
    assert again.returncode == 0
    assert again.stdout.count(": up to date (") == len(demo(cache=model_cache, smoke=True))

    # The public half once more, from nothing and in this one process: the same bytes.
    public = ["ingest", "clean", "language", "dedup", "hold_out", "decontaminate"]
    steps = [step for step in demo(cache=model_cache, smoke=True) if step.name in public]
    local = run_steps(steps, str(tmp_path / "other"), executor="local")
    for name in public:
        assert local[name].digest == read_manifest(Folder(f"{tmp_path}/steps/{name}")).digest
