"""Two processes give the gradient of one; chunks that of the whole batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_gradients import CASES, KINDS, MIXED, NEGATIVES, ROWS, gradients, rows, sharded
from safetensors.torch import load_file
from tiny_encoder import tiny_export, tiny_model
from tiny_mix import write_tiny_mix

from trainer.distributed import own_rows, part_sizes
from trainer.objective import Gradients, Objective, cut
from trainer.packed import PackedEncoder
from trainer.train import train


def relative_error(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys()
    error = sum((found[name] - expected[name]).square().sum() for name in expected)
    return float((error / sum(value.square().sum() for value in expected.values())).sqrt())


pytestmark = pytest.mark.xdist_group("two processes")  # which are started once


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes made: gradients, and a run."""
    place = tmp_path_factory.mktemp("two")
    write_tiny_mix(place / "mix")
    tiny_export(place / "base")
    script = str(Path(__file__).with_name("parallel_gradients.py"))
    files = [str(place / name) for name in ("gradients.safetensors", "mix", "base", "run")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, script, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_two_processes_train_resume_and_export_what_one_does(of_two):
    files = [str(of_two / name) for name in ("mix", "base", "one")]
    train(sharded(*files))
    found, expected = (load_file(of_two / name / "model.safetensors") for name in ("run", "one"))
    assert relative_error(found, expected) <= 1e-5
    lines = [(of_two / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "one")]
    for two, one in zip(*(map(json.loads, half) for half in lines), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert (two["step"], two["task"], two["rows"]) == (one["step"], one["task"], one["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_gradient_of_one(of_two, kind, case):
    expected = gradients(kind, case)
    everything = load_file(of_two / "gradients.safetensors")
    found = {name: value for name, value in everything.items() if name in expected}
    assert relative_error(found, expected) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_shards_that_are_gathered_in_bf16_give_the_gradient_to_its_precision(of_two, case):
    """One process keeps its norms in fp32, shards have them in bf16; sums are fp32 in both."""
    expected = gradients(MIXED, case)
    everything = load_file(of_two / "gradients.safetensors")
    found = {name: value for name, value in everything.items() if name in expected}
    assert all(value.dtype == torch.float32 for value in found.values())
    assert relative_error(found, expected) <= 1e-2


@pytest.mark.parametrize(
    "objective",
    [
        *(Objective(loss=name, temperature=0.1) for name in ("gecko", "gemini", "qwen3", "f2llm")),
        *(Objective(loss=name, temperature=0.1) for name in ("kalm", "all", "nv_retriever")),
        Objective(loss="all", temperature=0.1, matryoshka=True),
        *(Objective(loss="gemini", temperature=0.1, distill=name) for name in ("kl", "margin")),
        Objective(loss="gemini", temperature=0.1, distill="embedding"),
    ],
    ids=str,
)
def test_chunks_give_the_gradient_of_the_whole_batch(objective):
    teacher = (
        PackedEncoder(tiny_model(seed=5, width=64)) if objective.distill == "embedding" else None
    )
    found = []
    for micro_tokens in (10_000, 30):
        model = tiny_model().train()
        work = Gradients(
            encoder=PackedEncoder(model), device=torch.device("cpu"), objective=objective,
            micro_tokens=micro_tokens, pad_id=1, teacher=teacher,
        )  # fmt: skip
        figures = work.add(*rows(), count=ROWS, negatives=NEGATIVES)
        assert len(figures.losses) == ROWS
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert relative_error(found[1], found[0]) <= 1e-6


def test_dropout_draws_the_same_in_both_passes():
    """The second pass of a chunk repeats the first: else its gradient is of other embeddings."""
    seen: list[torch.Tensor] = []

    class Noisy(PackedEncoder):
        def forward(self, ids):
            embeddings = torch.nn.functional.dropout(super().forward(ids), 0.5)
            seen.append(embeddings.detach())
            return embeddings

    work = Gradients(
        encoder=Noisy(tiny_model()), device=torch.device("cpu"),
        objective=Objective(loss="gemini"), micro_tokens=60, pad_id=1,
    )  # fmt: skip
    work.add(*rows(), count=ROWS, negatives=NEGATIVES)
    half = len(seen) // 2
    assert half > 1
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def test_rows_are_cut_by_tokens():
    assert [(s.start, s.stop) for s in cut([5, 5, 20, 1, 1], 10)] == [(0, 2), (2, 3), (3, 5)]


def test_one_process_has_all_rows():
    assert part_sizes(7) == [7]
    assert own_rows(7) == slice(0, 7)
