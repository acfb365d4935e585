"""A model folder with a file that is cut is refused by every command, in three parts."""

import shutil
from pathlib import Path

import pytest
from hub_server import TOKEN
from tiny_encoder import tiny_export, write_task
from tiny_mix import write_tiny_mix

from datagen.schema import UserError
from trainer.cli import main
from trainer.model_folder import refuse_cut

FILES = (
    *("config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json"),
    *("golden.json", "card.json", "model.safetensors"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a mix and a task."""
    place = tmp_path_factory.mktemp("place")
    tiny_export(place / "model")
    write_tiny_mix(place / "mix")
    pairs = {"text_a": ["one", "two"], "text_b": ["eins", "zwei"]}
    write_task(place / "task", "bitext", {"pairs": pairs})
    return place


def cut_model(place: Path, tmp_path: Path, file: str) -> str:
    """A copy of the model in which this file lost its second half."""
    broken = tmp_path / "broken"
    shutil.copytree(place / "model", broken)
    whole = (broken / file).read_bytes()
    (broken / file).write_bytes(whole[: len(whole) // 2])
    return str(broken)


def test_a_whole_folder_passes(place):
    refuse_cut(str(place / "model"))


@pytest.mark.parametrize("file", FILES)
def test_each_file_that_is_cut_is_named(place, tmp_path, file):
    with pytest.raises(UserError, match=f"{file} is not whole.*\n.*\ndo: copy the folder again"):
        refuse_cut(cut_model(place, tmp_path, file))


COMMANDS = {
    "train": "train --mix {mix} --base {broken} --output {out}",
    "prune": "prune {broken} --layers 1 --output {out}",
    "merge": "merge {model} {broken} --output {out}",
    "evaluate": "evaluate --model {broken} --tasks {task} --output {out}",
    "export": "export {broken} --output {out}",
    "publish": "publish {broken} --repo org/name",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_shows_a_traceback(place, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is asked
    places = {name: place / name for name in ("mix", "model", "task")}
    places |= {"broken": cut_model(place, tmp_path, "model.safetensors"), "out": tmp_path / "out"}
    assert main(COMMANDS[command].format(**places).split()) == 1
    assert "model.safetensors is not whole" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
