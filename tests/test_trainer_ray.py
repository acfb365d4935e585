"""A run on workers of Ray Train, beside the same run in one process."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from parallel_gradients import sharded
from ray_processes import ray_processes
from safetensors.torch import load_file
from test_trainer_distributed import relative_error
from tiny_encoder import tiny_export
from tiny_mix import write_tiny_mix

from datagen.schema import UserError
from trainer.ray_train import train_on_ray
from trainer.train import TrainConfig, train


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """Two short stages over a tiny mix."""
    write_tiny_mix(tmp_path / "mix")
    tiny_export(tmp_path / "base")
    return sharded(*(str(tmp_path / name) for name in ("mix", "base", "run")))


def of_one_process(config: TrainConfig) -> dict:
    """The weights that one process trains."""
    output = f"{config.output}-one"
    train(replace(config, output=output))
    return load_file(Path(output) / "model.safetensors")


def kill_a_worker(place: Path) -> None:
    """kill -9 to a worker of Ray Train, once there is a checkpoint."""
    while not list(place.glob("*.safetensors")):
        time.sleep(0.02)
    ray_processes("RayTrainWorker")[0].kill()


@pytest.mark.slow
def test_a_worker_is_killed_and_the_run_ends_as_one_process_ends_it(config, ray_session):
    config = replace(config, stages=tuple(replace(one, epochs=8) for one in config.stages))
    expected = of_one_process(config)
    place = Path(config.output).with_name(".run.training")
    killer = threading.Thread(target=kill_a_worker, args=[place], daemon=True)
    killer.start()
    record = train_on_ray(config, workers=2)
    killer.join(1)
    assert not killer.is_alive()
    assert relative_error(load_file(Path(config.output) / "model.safetensors"), expected) <= 1e-5
    assert record == train_on_ray(config, workers=2)  # up to date
    assert not place.exists() and not Path(config.output).with_name(".run.ray").exists()


@pytest.mark.slow
def test_what_a_run_refuses_is_said_in_three_parts(config, ray_session, tmp_path):
    shard = next((tmp_path / "mix").glob("documents-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="does not verify.*\nexpected: the shards"):
        train_on_ray(config, workers=1, retries=0)


def test_more_workers_than_the_cluster_has(config, ray_session):
    with pytest.raises(UserError, match="200 workers of 1 CPUs\nexpected: .* 2 CPUs"):
        train_on_ray(config, workers=200)
    with pytest.raises(UserError, match="0 workers"):
        train_on_ray(config, workers=0)
    assert not any(name.startswith(".run") for name in os.listdir(Path(config.output).parent))
