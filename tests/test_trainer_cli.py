"""The command `trainer`: help, exit statuses, and each subcommand on real folders."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_encoder import tiny_export, write_task
from tiny_mix import write_tiny_mix

from trainer.cli import _parser, _stages, main
from trainer.papers import RECIPES
from trainer.train import FINETUNE, PRETRAIN, TrainConfig

PAIRS = {"text_a": ["the dog", "der Mond", "la lune"], "text_b": ["dog", "Mond", "lune"]}
COMMANDS = ("train", "plan", "merge", "prune", "evaluate", "export", "publish", "compare")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("models")
    return [tiny_export(place / f"run-{seed}", seed=seed) for seed in (1, 2)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_is_read_and_written(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Reads " in text
    assert "Writes " in text or "Prints " in text
    assert f"example:\n  trainer {command} " in text


def test_the_list_of_commands_is_short_and_quick() -> None:
    """Neither torch nor mteb is imported for it; a second is the room that a busy machine needs."""
    code = "import sys, trainer.cli; trainer.cli._parser(); print(*sys.modules)"
    started = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5
    assert not {"torch", "mteb", "transformers", "ray"} & set(found.stdout.split())


def test_unusable_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["merge"])
    assert stop.value.code == 2
    assert main(["merge", "a", "--output", "b", "--weights", "1,2"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-3].startswith("found: 1 models with weights [1.0, 2.0]")
    assert error.splitlines()[-1].startswith("do: ")


def test_a_users_mistake_is_three_lines_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["evaluate", "--model", "m", "--tasks", str(tmp_path), "--output", "o"])
    lines = capsys.readouterr().err.splitlines()
    assert status == 1
    assert [line.split(":")[0] for line in lines] == ["found", "expected", "do"]


def test_an_output_that_cannot_be_written(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["merge", *models, "--output", str(tmp_path / "file" / "merged")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["found", "expected", "do"]
    assert "Not a directory" in lines[0]


def test_merge_evaluate_and_compare(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, tasks = str(tmp_path / "merged"), str(tmp_path / "tasks")
    assert main(["merge", *models, "--output", merged, "--weights", "2,1"]) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert [round(m["weight"], 3) for m in recipe["models"]] == [0.667, 0.333]

    write_task(Path(tasks) / "pairs", "bitext", {"pairs": PAIRS})
    write_task(Path(tasks) / "graded", "sts", {"pairs": {**PAIRS, "score": [1.0, 2.0, 3.0]}})
    for model in (merged, models[0]):
        scores = str(tmp_path / "scores" / Path(model).name)
        assert main(["evaluate", "--model", model, "--tasks", tasks, "--output", scores]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert set(summary["scores"]) == {"pairs", "graded"}
        assert set(summary["means"]) == {"sts", "bitext"}

    one, two = str(tmp_path / "scores" / "merged"), str(tmp_path / "scores" / "run-1")
    assert main(["compare", one, f"{two}/results.json"]) == 0
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert table[0] == ["type", "task", "merged", "run-1"]
    assert [row[:2] for row in table[2:]] == [
        ["bitext", "pairs"],
        ["sts", "graded"],
        ["bitext", "mean of 1 shared tasks"],
        ["sts", "mean of 1 shared tasks"],
        ["all", "mean of 2 shared tasks"],
        ["all", "mean of their types"],
        ["all", "Borda count of 2 shared tasks"],
    ]
    assert sum(float(cell) for cell in table[-1][2:]) == 2  # a point for each task
    assert table[2][2:] == table[4][2:]


def test_compare_counts_only_what_all_models_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def results(name: str, scores: dict[str, float | None]) -> str:
        path = tmp_path / name / "results.json"
        path.parent.mkdir()
        rows = [
            {"task": t, "type": "sts", "main_score": s, "model": {"path": f"models/{name}"}}
            for t, s in scores.items()
        ]
        path.write_text(json.dumps(rows))
        return str(path)

    one = results("one", {"a": 0.5, "b": 0.7, "c": 0.9})
    two = results("two", {"a": 0.25, "b": 0.75})
    three = results("three", {"a": None, "b": 0.1})
    assert main(["compare", one, two, three]) == 0
    body = [line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [[cell.strip() for cell in row] for row in body] == [
        ["a", "50.00", "25.00", "n/a"],
        ["b", "70.00", "75.00", "10.00"],
        ["c", "90.00", "-", "-"],
        ["mean of 2 shared tasks", "60.00", "50.00", "n/a"],
        ["mean of 1 shared tasks", "70.00", "75.00", "10.00"],
        ["mean of their types", "70.00", "75.00", "10.00"],
        ["Borda count of 1 shared tasks", "1", "2", "0"],
    ]
    (tmp_path / "broken.json").write_text("{}")
    assert main(["compare", str(tmp_path / "broken.json")]) == 2
    assert main(["compare", str(tmp_path / "absent.json")]) == 2


def test_export_checks_what_it_wrote(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "again")
    assert main(["export", models[0], "--output", output, "--max-length", "32"]) == 0
    assert json.loads(capsys.readouterr().out)["golden_difference"] < 1e-5
    weights = [(Path(p) / "model.safetensors").read_bytes() for p in (models[0], output)]
    assert weights[0] == weights[1]
    assert main(["export", models[0], "--output", output]) == 1


def test_train_then_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix, base = write_tiny_mix(tmp_path / "mix"), tiny_export(tmp_path / "base")
    output = str(tmp_path / "run-1")
    options = [
        "--batch-size",
        "8",
        "--max-length",
        "32",
        "--learning-rate",
        "1e-3",
        "--threads",
        "1",
    ]
    command = ["train", "--mix", mix, "--base", base, "--output", output, *options]
    assert main([*command, "--seed", "1"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["stage"] for stage in stages] == ["pretrain", "finetune"]
    assert main([*command, "--seed", "1"]) == 0  # up to date
    assert main([*command, "--seed", "2"]) == 1
    assert "seed was 1, is now 2" in capsys.readouterr().err
    task = write_task(tmp_path / "pairs", "bitext", {"pairs": PAIRS})
    scores = str(tmp_path / "scores")
    assert main(["evaluate", "--model", output, "--tasks", task, "--output", scores]) == 0
    result = json.loads((tmp_path / "scores" / "results.json").read_text())[0]
    assert result["prompts"] == {"text": "Instruct: Find it\nQuery: "}


def test_stages_are_the_published_ones_unless_told() -> None:
    required = ["train", "--mix", "m", "--base", "b", "--output", "o"]

    def stages(*options: str) -> tuple:
        return _stages(_parser().parse_args([*required, *options]), RECIPES["nemotron"].stages)

    assert stages() == (PRETRAIN, FINETUNE)
    pretrain, finetune = stages("--learning-rate", "5e-4,1e-4", "--batch-size", "64")
    assert (pretrain.learning_rate, finetune.learning_rate) == (5e-4, 1e-4)
    assert (pretrain.batch_size, finetune.batch_size) == (64, 64)
    assert (pretrain.negatives, finetune.negatives) == (1, 4)
    assert [stage.name for stage in stages("--stages", "finetune")] == ["finetune"]


@pytest.mark.parametrize("options", [["--negatives", "1,2,3"], ["--stages", "warmup"]])
def test_stages_that_do_not_fit(options: list[str], tmp_path: Path) -> None:
    required = ["train", "--mix", str(tmp_path), "--base", str(tmp_path), "--output", "o"]
    assert main([*required, *options]) == 2


def test_a_plan_counts_steps_tokens_memory_and_hours(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = write_tiny_mix(tmp_path / "mix")
    command = ["plan", "--mix", mix, "--base", models[0]]
    assert main([*command, "--batch-size", "8", "--epochs", "1,2", "--max-rows", "16"]) == 0
    found = json.loads(capsys.readouterr().out)
    pretrain, finetune = found["stages"]
    assert (pretrain["steps"], finetune["rows"]) == (2, 16)
    assert finetune["tokens"] == pytest.approx(2 * 16 * finetune["tokens_a_row"], rel=0.01)
    state = found["gib_of_a_gpu"]["state"]
    assert state == round(16 * found["parameters"] / 2**30, 2)
    assert main([*command, "--recipe", "f2llm-330M"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in small["stages"]] == ["finetune"]
    for wrong in (
        ["--recipe", "x"],
        ["--gpu", "C64"],
        ["--recipe", "f2llm-80M", "--stages", "pretrain"],
    ):
        assert main([*command, *wrong]) == 2
        assert "expected:" in capsys.readouterr().err


def test_the_papers_recipes_are_those_of_their_tables() -> None:
    nemotron, small = RECIPES["nemotron"], RECIPES["f2llm-80M"]
    assert [(s.learning_rate, s.batch_size, s.negatives) for s in nemotron.stages.values()] == [
        (1e-5, 2048, 1),
        (2e-6, 128, 4),
    ]
    (stage,) = small.stages.values()
    assert (stage.learning_rate, stage.epochs, stage.batch_size) == (4e-5, 4, 512)
    assert small.options["smallest_rate"] * stage.learning_rate == pytest.approx(1e-7)
    for recipe in RECIPES.values():  # each is a configuration that exists
        TrainConfig(
            mix="", base="", output="", stages=tuple(recipe.stages.values()), **recipe.options
        )
