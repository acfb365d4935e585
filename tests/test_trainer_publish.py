"""Publishing a model to a Hub on the loopback with the real client, and loading it from there."""

import json
from pathlib import Path

import pytest
from hub_server import TOKEN, HubState
from hub_server import upload_hub as upload_hub
from safetensors.torch import load
from tiny_encoder import tiny_export
from tiny_mix import write_tiny_mix

from datagen.schema import UserError
from datagen.sources.hub import api
from trainer.cli import main
from trainer.publish import publish_model
from trainer.train import StageConfig, TrainConfig, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of 10 steps in two stages that kept its steps 4 and 8."""
    place = tmp_path_factory.mktemp("run")
    options = {"learning_rate": 1e-3, "negatives": 1, "max_rows": 20, "batch_size": 4}
    stages = tuple(StageConfig(name=n, max_length=64, **options) for n in ("pretrain", "finetune"))
    mix, base = write_tiny_mix(place / "mix"), tiny_export(place / "base")
    output = str(place / "model")
    train(TrainConfig(mix=mix, base=base, output=output, stages=stages, keep_steps=4, threads=1))
    return output


def test_a_run_keeps_checkpoints_as_models(run: str) -> None:
    kept = sorted(place.name for place in Path(f"{run}-steps").iterdir())
    assert kept == ["step-4", "step-8"]
    weights = [Path(f"{run}-steps/{name}/model.safetensors").read_bytes() for name in kept]
    assert len({*weights, (Path(run) / "model.safetensors").read_bytes()}) == 3


def test_a_model_and_its_steps_go_to_the_hub_and_come_back(
    upload_hub: HubState, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", run, "--repo", "org/small", "--run", run]) == 0
    said = json.loads(capsys.readouterr().out)
    repository = upload_hub.repositories["org/small"]
    assert repository.private and repository.kind == "models"
    assert said["commit"] == repository.head and said["files"] == len(repository.files)
    assert said["revisions"] == ["step-4", "step-8"] == sorted(repository.branches)
    for name, branch in {"": repository, **repository.branches}.items():
        assert branch.commits[-1] == ["README.md"]  # the card comes last
        place = Path(f"{run}-steps") / name if name else Path(run)
        assert branch.files["model.safetensors"] == (place / "model.safetensors").read_bytes()
        card = branch.files["README.md"].decode()
        assert ('"org/small"' + (f', revision="{name}"' if name else "")) in card
        assert json.loads(branch.files["mteb_model_meta.json"])["name"] == "org/small"
        sent = b"".join(branch.files.values())
        assert TOKEN.encode() not in sent and str(Path(run).parent).encode() not in sent
    assert "- `step-8`" in repository.files["README.md"].decode()

    for revision, folder in (("main", run), ("step-4", f"{run}-steps/step-4")):
        file = api().hf_hub_download("org/small", "model.safetensors", revision=revision)
        wanted = load((Path(folder) / "model.safetensors").read_bytes())
        assert all((load(Path(file).read_bytes())[k] == v).all() for k, v in wanted.items())


def test_an_upload_that_was_cut_off_goes_on_and_sends_nothing_twice(
    upload_hub: HubState, run: str
) -> None:
    publish_model(run, "org/small")
    sent = len(upload_hub.uploads)
    upload_hub.refuse = 1
    with pytest.raises(UserError) as cut:
        publish_model(run, "org/small", run=run)
    assert "goes on where it was cut off" in cut.value.do
    before = set(upload_hub.objects)
    publish_model(run, "org/small", run=run)
    assert not before & set(upload_hub.uploads[sent + 1 :])
    sent = len(upload_hub.uploads)
    publish_model(run, "org/small", run=run)
    assert len(upload_hub.uploads) == sent  # all is there


def test_what_arrives_changed_is_found(upload_hub: HubState, run: str) -> None:
    upload_hub.tamper = {"model.safetensors"}
    with pytest.raises(UserError, match=r"model\.safetensors"):
        publish_model(run, "org/small")


@pytest.mark.parametrize(
    ("change", "found", "status"),
    [
        ("other", "without golden.json, modules.json", 2),
        ("weights", "a golden vector differs", 1),
        ("token", "no HF_TOKEN", 1),
        ("repo", "repository 'small'", 2),
        ("run", "no checkpoints of", 2),
    ],
)
def test_what_cannot_be_published_is_refused_before_anything_is_sent(
    upload_hub: HubState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    found: str,
    status: int,
) -> None:
    model = Path(tiny_export(tmp_path / "model"))
    if change == "other":
        for name in ("golden.json", "modules.json"):
            (model / name).unlink()
    elif change == "weights":
        other = Path(tiny_export(tmp_path / "other", seed=5)) / "model.safetensors"
        other.replace(model / "model.safetensors")
    elif change == "token":
        monkeypatch.delenv("HF_TOKEN")
    options = ["--run", str(model)] if change == "run" else []
    repo = "small" if change == "repo" else "org/small"
    assert main(["publish", str(model), "--repo", repo, *options]) == status
    said = capsys.readouterr().err
    assert found in said and "do: " in said and "Traceback" not in said
    assert upload_hub.repositories == {}
