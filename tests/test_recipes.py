import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from datagen.schema import UserError
from datagen.steps import run_steps
from datagen.store import Folder, read_manifest, read_table, verify
from datagen.verify import verify_mix
from recipes.build_mix import check_disk, demo, in_order, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("report", "card")  # they say when, and how long it took


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
    assert text.startswith("found: recipe 'nemo'\nexpected: one of demo, nemotron, f2llm\ndo: ")
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_found_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="GiB free.*\nexpected: at least 1e\\+09 GiB"):
        check_disk(str(tmp_path / "not" / "there"), gib=1e9)
    check_disk("s3://bucket/mix", gib=1e9)  # nobody can ask a bucket


COMMAND = [sys.executable, "recipes/build_mix.py", "--recipe", "demo", "--smoke", "--output"]
PATIENCE_S = 300


def environment(cache: str) -> dict[str, str]:
    """What the recipe reads from its environment; it starts a Ray of its own."""
    outer = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**outer, "EMBEDMIX_CACHE": cache, "HF_HUB_OFFLINE": "1"}


def build(output: Path, *, cache: str) -> str:
    """What the recipe prints, run as a user runs it."""
    done = subprocess.run(
        [*COMMAND, str(output)], cwd=ROOT, env=environment(cache), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def kill_build_at_first_commit(output: Path, step: str, *, cache: str) -> dict[str, str]:
    """Start the recipe, kill -9 its driver once `step` has committed shards; their digests."""
    folder = output / "steps" / step
    command = [*COMMAND, str(output)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(cache), stdout=quiet, stderr=quiet
    ) as driver:
        end = time.monotonic() + PATIENCE_S
        while not list(folder.glob("commits/*.json")):
            assert driver.poll() is None, f"the build ended before {step} committed anything"
            assert time.monotonic() < end, f"no commit of {step} within {PATIENCE_S} s"
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    records = [json.loads(path.read_text()) for path in folder.glob("commits/*.json")]
    return {shard["name"]: shard["sha256"] for record in records for shard in record["shards"]}


@pytest.mark.slow
def test_a_build_killed_twice_finishes_and_builds_the_same_bytes_as_one_process(
    tmp_path, model_cache
):
    """Every step for real: packaged pairs, two LLMs in vLLM, MiniLM, Ray."""
    output, other = tmp_path / "out", tmp_path / "other"
    paid = kill_build_at_first_commit(output, "synthesize", cache=model_cache)
    encoded = kill_build_at_first_commit(output, "mine", cache=model_cache)
    printed = build(output, cache=model_cache)
    assert re.search("mine[^:]*: resuming, ", printed)
    # What was committed before the kill is what the finished steps name.
    for step, committed in (("synthesize", paid), ("mine", encoded)):
        folder = Folder(f"{output}/steps/{step}")
        assert verify(folder) == []
        finished = {shard.name: shard.sha256 for shard in read_manifest(folder).shards}
        assert committed and committed.items() <= finished.items()
    stats = read_manifest(Folder(f"{output}/steps/synthesize")).stats
    kept = Counter()
    for record in stats["llms"]:
        kept[record["llm"], record["kind"]] += record["kept"]
    assert list(kept.values()) == [4] * 4 and not any(stats["missing"].values())

    assert verify_mix(str(output / "mix")) == []
    finetune = read_table(Folder(str(output / "mix")), "finetune")
    assert {"retrieval", "bitext"} <= set(finetune["task"].to_pylist())
    assert set(finetune["origin"].to_pylist()) == {"public", "synthetic"}
    assert read_manifest(Folder(str(output / "mix"))).rows("pretrain") > 0
    writers = {row["llm"] for row in finetune["provenance"].to_pylist() if row["llm"] is not None}
    assert len(writers) == 2

    steps = demo(cache=model_cache, smoke=True)
    assert build(output, cache=model_cache).count(": up to date (") == len(steps)

    # Once more from nothing in this one process, but for what the LLMs wrote: the same bytes.
    for frozen in ("write_tasks", "synthesize"):
        shutil.copytree(output / "steps" / frozen, other / "steps" / frozen)
    local = run_steps([s for s in steps if s.name not in PAGES], str(other), executor="local")
    for step in steps:
        if step.name not in PAGES:
            built = read_manifest(Folder(str(output)).folder(step.place))
            assert local[step.name].digest == built.digest, step.name
