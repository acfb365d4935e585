"""The whole public half in one command: on real rows, and the same bytes on any cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from datagen.steps import run_steps
from datagen.store import Folder, verify
from recipes.public_pairs import main, public_pairs, read_sources

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("ingest", "clean", "language", "dedup", "decontaminate")
# One source of every task and layout, small enough to be read twice.
CHOSEN = (
    "cmrc2018_trial", "squad_dev_half", "privacyguides", "mbxp_train", "tico19-bitext",
    "banking77", "stsb",
)  # fmt: skip
CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
for _ in range(int(sys.argv[1]) - 1):
    cluster.add_node(num_cpus=2)
os.environ["RAY_ADDRESS"] = cluster.address
from recipes.public_pairs import main
status = main(sys.argv[2:])
import ray
assert len([node for node in ray.nodes() if node["Alive"]]) == int(sys.argv[1])
ray.shutdown()
cluster.shutdown()
sys.exit(status)
"""


def write_sources(folder: Path, *sources: dict) -> str:
    (folder / "sources.yaml").write_text(yaml.safe_dump(list(sources)))
    return str(folder / "sources.yaml")


FAQ = {
    "kind": "files",
    "name": "faq",
    "task": "retrieval",
    "paths": ["faq.jsonl"],
    "columns": {"query": "question", "text": "answer"},
}


def test_paths_are_relative_to_the_file_and_lists_become_tuples(tmp_path):
    (tmp_path / "faq.jsonl").write_text('{"question": "Why?", "answer": "Because."}\n')
    (found,) = read_sources(write_sources(tmp_path, FAQ))
    assert found.paths == (str(tmp_path / "faq.jsonl"),)
    elsewhere = tmp_path / "elsewhere"
    (found,) = read_sources(write_sources(tmp_path, FAQ), data=str(elsewhere))
    assert found.paths == (str(elsewhere / "faq.jsonl"),)
    remote = {**FAQ, "paths": ["s3://bucket/faq.jsonl"]}
    assert read_sources(write_sources(tmp_path, remote))[0].paths == ("s3://bucket/faq.jsonl",)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("- {kind: files", "cannot be read"),
        ("kind: files", "no list of mappings"),
        ("- {name: faq}", "no list of mappings"),
        ("- {kind: fax, name: faq}", "source 'fax'"),
        ("- {kind: files, nome: faq}", "unexpected keyword argument 'nome'"),
        ("- {kind: catalog, name: no-such-set}", "no-such-set"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_runs(tmp_path, capsys, text, found):
    (tmp_path / "sources.yaml").write_text(text)
    status = main(["--sources", str(tmp_path / "sources.yaml"), "--output", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert status == 2 and found in message and "expected:" in message and "do:" in message
    assert not (tmp_path / "out").exists()


def run_on_three_nodes(sources: str, tasks: str, output: Path) -> None:
    arguments = ["--sources", sources, "--against", tasks, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    subprocess.run([sys.executable, "-c", CLUSTER, "3", *arguments], check=True, env=environment)


@pytest.mark.slow
def test_one_process_and_three_nodes_write_the_same_bytes(shared_data, tmp_path):
    listed = yaml.safe_load((ROOT / "tests" / "shared_sources.yaml").read_text())
    chosen = [source for source in listed if source["name"] in CHOSEN]
    assert len(chosen) == len(CHOSEN)
    for source in chosen:
        for name in ("paths", "folder"):
            if isinstance(source.get(name), list):
                source[name] = [str(shared_data / path) for path in source[name]]
            elif name in source:
                source[name] = str(shared_data / source[name])
    sources, tasks = write_sources(tmp_path, *chosen), str(shared_data / "tasks_dev")
    outputs = [tmp_path / "one", tmp_path / "three"]
    steps = public_pairs(read_sources(sources), against=[tasks])
    run_steps(steps, str(outputs[0]), executor="local")
    run_on_three_nodes(sources, tasks, outputs[1])
    rows = sum(_rows(shared_data, source) for source in chosen)
    before = rows
    for step in STEPS:
        one, three = (
            json.loads((output / "steps" / step / "manifest.json").read_text())
            for output in outputs
        )
        assert one["digest"] == three["digest"] and one["shards"] == three["shards"]
        assert verify(Folder(str(outputs[1] / "steps" / step))) == []
        assert sum(row["rows_in"] for row in one["ledger"]) == before
        for row in one["ledger"]:
            gone = sum(row["dropped"].values()) + sum(row["quarantined"].values())
            assert row["rows_in"] == row["kept"] + gone
        before = sum(row["kept"] for row in one["ledger"])
    assert 0.5 * rows < before < rows


def _rows(shared_data: Path, source: dict) -> int:
    paths = source.get("paths") or [
        f"{source['folder']}/{name}" for name in source["tables"]["rows"]
    ]
    return sum(pq.read_metadata(path).num_rows for path in paths)
