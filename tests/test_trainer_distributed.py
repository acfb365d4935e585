"""Two processes give the gradient of one; chunks that of the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_gradients import CASES, KINDS, NEGATIVES, ROWS, gradients, rows
from safetensors.torch import load_file
from tiny_encoder import tiny_model

from trainer.distributed import own_rows, part_sizes
from trainer.objective import Gradients, Objective, cut
from trainer.packed import PackedEncoder


def relative_error(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys()
    error = sum((found[name] - expected[name]).square().sum() for name in expected)
    return float((error / sum(value.square().sum() for value in expected.values())).sqrt())


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("gradients") / "gradients.safetensors"
    script = Path(__file__).with_name("parallel_gradients.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(script), str(output)], check=True, capture_output=True)
    return load_file(output)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_gradient_of_one(of_two, kind, case):
    expected = gradients(kind, case)
    found = {name: value for name, value in of_two.items() if name in expected}
    assert relative_error(found, expected) <= 1e-6


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
