"""The step `write_tasks`, whose LLMs are real HTTP servers, and the step that takes its tasks."""

from pathlib import Path

from endpoint_server import EndpointServer
from test_synthesize_step import documents_step, served
from writing_server import reply

from datagen.steps import run_steps
from datagen.store import Folder, read_table
from datagen.synthesize import Knobs, synthesize, write_tasks

KNOBS = Knobs(task_kinds=("classification", "clustering"))


def test_every_llm_writes_its_lists_and_the_others_write_for_them(tmp_path: Path) -> None:
    with EndpointServer(reply=reply) as one, EndpointServer(reply=reply) as two:
        llms = [served(one, "One"), served(two, "Two")]
        tasks = write_tasks(*llms, cache="", lists_per_llm=6, knobs=KNOBS, block_requests=4)
        documents = documents_step(3)
        texts = synthesize(
            documents, tasks=tasks, llms=llms, cache="", rows={"classification": 6}, knobs=KNOBS
        )
        done = run_steps([tasks, documents, texts], str(tmp_path), executor="local")
    found = read_table(Folder(f"{tmp_path}/steps/write_tasks"), "tasks").to_pylist()
    assert done["write_tasks"].stats["missing"] == {"One": {}, "Two": {}}
    assert {task["llm"] for task in found} == {"One", "Two"}
    assert len(found) == len({task["task_id"] for task in found}) >= 12
    for task in found:
        assert task["kind"] in KNOBS.task_kinds and task["prompt"].startswith("task")
        assert bool(task["labels"]) == (task["kind"] == "classification")
        assert '"max_tokens": [' in task["sampling"]
    writer = {task["instruction"]: task["llm"] for task in found}
    rows = read_table(Folder(f"{tmp_path}/steps/synthesize"), "pairs").to_pylist()
    assert len(rows) == 6
    assert all(writer[row["instruction"]] != row["provenance"]["llm"] for row in rows)
