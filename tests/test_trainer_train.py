"""Training a decoder of two layers: it learns, repeats to the bit, resumes to the bit, refuses."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoder import tiny_export, tiny_model, tiny_tokenizer
from tiny_mix import write_tiny_mix

from datagen.schema import UserError
from trainer import loop
from trainer.base import prepare_base
from trainer.data import StageData
from trainer.encoder import load_encoder
from trainer.golden import check_golden
from trainer.schedule import learning_rate, new_optimizer
from trainer.train import StageConfig, TrainConfig, train

STAGES = (
    StageConfig(name="pretrain", negatives=1, learning_rate=5e-3, batch_size=8, max_length=64),
    StageConfig(name="finetune", negatives=4, learning_rate=1e-3, batch_size=8, max_length=64),
)  # 5 and 6 steps
CONFIG = TrainConfig(mix="m", base="b", output="o")
LEARNS = replace(STAGES[0], learning_rate=2e-2, epochs=8)  # 40 steps


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_mix(tmp_path_factory.mktemp("mix"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_export(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def config(mix: str, base: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        mix=mix, base=base, output=str(tmp_path / "run"), stages=STAGES, dtype="float32",
        temperature=0.05, threads=1, checkpoint_steps=2,
    )  # fmt: skip


def weights(folder: str | Path) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def metrics(folder: str | Path) -> list[dict]:
    """The lines of a run but for how fast it was."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "speed"} for line in lines]


def test_a_run_learns_and_says_what_it_did(config):
    record = train(replace(config, stages=(LEARNS, STAGES[1])))
    pretrain, finetune = record["stages"]
    assert (pretrain["stage"], pretrain["steps"], pretrain["rows"]) == ("pretrain", 40, 320)
    assert (finetune["stage"], finetune["rows"], finetune["skipped"]) == ("finetune", 39, {})
    assert pretrain["last_loss"] < pretrain["first_loss"] / 2
    assert pretrain["last_accuracy"] > 0.9
    assert record["rows"] == 359
    assert record["tokens"] == pretrain["tokens"] + finetune["tokens"] > 1000
    assert record["versions"]["torch"] == torch.__version__
    assert record == json.loads((Path(config.output) / "run.json").read_text())
    steps = metrics(config.output)
    assert [m["step"] for m in steps] == list(range(40)) + list(range(finetune["steps"]))
    assert sum(m["tokens"] for m in steps) == record["tokens"]
    model, _ = load_encoder(config.output)
    assert model.config.is_causal is False
    assert not list(Path(config.output).parent.glob(".*")), "nothing is left beside the output"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(config, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(replace(config, output=str(tmp_path / name), seed=seed))
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert weights(tmp_path / "one") != weights(tmp_path / "three")


@pytest.mark.parametrize("killed_at", [0, 1, 3, 6, 9])
def test_a_killed_run_resumes_to_the_same_weights(config, tmp_path, monkeypatch, killed_at):
    whole = train(replace(config, output=str(tmp_path / "whole")))
    step, seen = loop._Run._step, []

    def kill(run: loop._Run, *arguments: object) -> dict:
        if len(seen) == killed_at:
            raise KeyboardInterrupt
        seen.append(1)
        return step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", kill)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert not Path(config.output).exists()

    resumed = train(config)
    assert weights(config.output) == weights(tmp_path / "whole")
    assert metrics(config.output) == metrics(tmp_path / "whole")
    timeless = [
        [{k: v for k, v in stage.items() if "seconds" not in k} for stage in record["stages"]]
        for record in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_a_run_killed_at_its_export_is_exported_from_the_last_checkpoint(
    config, tmp_path, monkeypatch
):
    train(replace(config, output=str(tmp_path / "whole")))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainer.train.export_model", die)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", lambda *_: pytest.fail("trained again"))
        train(config)
    assert weights(config.output) == weights(tmp_path / "whole")
    assert metrics(config.output) == metrics(tmp_path / "whole")


def test_again_is_up_to_date_and_a_moved_mix_is_the_same_mix(config, mix, tmp_path, caplog):
    first = train(config)
    link = tmp_path / "elsewhere"
    link.symlink_to(mix)
    caplog.set_level("INFO", logger="embedmix")
    assert train(replace(config, mix=str(link), threads=2)) == first
    assert "run: up to date" in caplog.text


def test_up_to_date_is_found_without_loading_torch():
    code = "import sys, trainer.train, trainer.base; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_drifted_configuration_names_its_keys(config, tmp_path):
    train(config)
    with pytest.raises(UserError, match="temperature was 0.05, is now 0.1") as caught:
        train(replace(config, temperature=0.1))
    assert "seed" not in str(caught.value)
    other = tiny_export(tmp_path / "other", seed=3)
    with pytest.raises(UserError, match="base was"):
        train(replace(config, base=other))


def die_at_first_checkpoint(config, monkeypatch) -> None:
    save = loop._Run._save

    def save_and_die(run: loop._Run, *arguments: object) -> None:
        save(run, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def test_a_drifted_configuration_does_not_resume(config, monkeypatch):
    die_at_first_checkpoint(config, monkeypatch)
    with pytest.raises(UserError, match="clip was 1.0, is now 0.5"):
        train(replace(config, clip=0.5))


def test_micro_batches_do_not_change_the_gradient(config, tmp_path):
    for name, tokens in (("small", 60), ("large", 100_000)):
        stages = (replace(STAGES[1], max_rows=8),)
        out = str(tmp_path / name)
        train(replace(config, stages=stages, micro_tokens=tokens, output=out))
    small, large = (load_file(tmp_path / n / "model.safetensors") for n in ("small", "large"))
    assert metrics(tmp_path / "small")[0]["loss"] == pytest.approx(
        metrics(tmp_path / "large")[0]["loss"], rel=1e-5
    )
    norms = [metrics(tmp_path / n)[0]["gradient_norm"] for n in ("small", "large")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert small.keys() == large.keys()


def test_bf16_keeps_fp32_weights_and_learns(config):
    record = train(replace(config, stages=(LEARNS,), dtype="bfloat16"))
    assert record["stages"][0]["last_loss"] < record["stages"][0]["first_loss"] / 2
    saved = load_file(Path(config.output) / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


OPTIONS: list[dict] = [
    *(
        {"loss": name}
        for name in ("gecko", "gemini", "qwen3", "f2llm", "kalm", "nv_retriever", "all")
    ),
    {"loss": "gemini", "matryoshka": True, "micro_tokens": 100},
    {"distill": "kl"},
    {"distill": "margin"},
    {"pooling": "last", "causal": True},
    {"pool_instruction": False},
    {"pooling": "cls", "schedule": "cosine", "smallest_rate": 0.1},
    {"gradient_checkpointing": True, "dtype": "bfloat16"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_option_trains_and_exports(config, options):
    learns = replace(LEARNS, learning_rate=5e-3, epochs=4, draw=True)  # 20 steps
    record = train(replace(config, stages=(learns,), **options))
    (stage,) = record["stages"]
    assert stage["last_loss"] < stage["first_loss"]
    assert stage["task_losses"].keys() == {"retrieval"}
    pooling = json.loads((Path(config.output) / "1_Pooling" / "config.json").read_text())
    wanted = {"mean": "mean_tokens", "last": "lasttoken", "cls": "cls_token"}
    assert pooling[f"pooling_mode_{wanted[options.get('pooling', 'mean')]}"]
    assert check_golden(config.output) < 1e-5


def test_a_teacher_draws_the_embeddings_to_its_own(config, base, tmp_path):
    teacher = tiny_export(tmp_path / "teacher", seed=9, width=64)
    options = {"distill": "embedding", "distill_weight": 100.0, "teacher": teacher}
    record = train(replace(config, stages=(LEARNS,), **options))
    assert record["stages"][0]["last_loss"] < record["stages"][0]["first_loss"] / 2
    with pytest.raises(UserError, match="teacher was"):
        train(replace(config, stages=(LEARNS,), **options | {"teacher": base}))
    narrow = tiny_export(tmp_path / "narrow", width=16)
    with pytest.raises(UserError, match="narrower vectors"):
        train(replace(config, output=str(tmp_path / "x"), **options | {"teacher": narrow}))


def test_a_cached_teacher_is_the_teacher_to_fp16(config, tmp_path):
    """What mining has encoded is not encoded again; the losses are those of a teacher's pass."""
    from datagen.cached_encoder import CachedEncoder
    from trainer.data import StageData

    teacher, cache = tiny_export(tmp_path / "teacher", seed=9, width=64), str(tmp_path / "cache")
    mined = CachedEncoder(teacher, root=cache, max_length=64)
    stage = replace(STAGES[0], max_rows=24)
    for example in StageData(config.mix, "pretrain", negatives=1).sample(1000):
        mined.encode(example.texts[1:], stored="float16")  # but not the queries
    known = mined.space("", "float16").rows()
    options = {"distill": "cosine", "teacher": teacher, "distill_weight": 10.0, "stages": (stage,)}
    train(replace(config, **options, output=str(tmp_path / "pass")))
    train(replace(config, **options, teacher_cache=cache))
    ours, cached = (
        [line["loss"] for line in metrics(folder)] for folder in (tmp_path / "pass", config.output)
    )
    assert cached == pytest.approx(ours, rel=1e-3)
    rows = mined.space("", "float16").rows()
    assert known < rows <= known + 24, "the queries of the rows are kept, documents were there"
    train(replace(config, **options, teacher_cache=cache, output=str(tmp_path / "again")))
    assert mined.space("", "float16").rows() == rows
    assert metrics(tmp_path / "again") == metrics(config.output)
    with pytest.raises(UserError, match="cosine: it has unit vectors"):
        replace(config, **{**options, "distill": "embedding"}, teacher_cache=cache)


def test_adapters_are_trained_and_merged(config, base, tmp_path):
    wanted = replace(config, stages=(LEARNS,), lora=4)
    if importlib.util.find_spec("peft") is None:
        with pytest.raises(UserError, match="peft library is not installed"):
            train(wanted)
        return
    record = train(wanted)
    assert record["stages"][0]["last_loss"] < record["stages"][0]["first_loss"]
    before, after = (load_file(Path(f) / "model.safetensors") for f in (base, config.output))
    assert before.keys() == after.keys(), "a plain model"
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name in after if "_proj" in name}
    train(replace(wanted, output=str(tmp_path / "again")))
    assert weights(tmp_path / "again") == weights(config.output)


def test_a_cut_checkpoint_is_refused_and_said_so(config, monkeypatch):
    die_at_first_checkpoint(config, monkeypatch)
    (file,) = Path(config.output).parent.glob(".*/checkpoint.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="no whole checkpoint") as caught:
        train(config)
    assert "to train from the beginning" in caught.value.do


def test_the_checkpoint_before_a_cut_one_is_kept(config, tmp_path, monkeypatch, caplog):
    """Checkpoints come every second step: the third is lost, the run goes on at the second."""
    train(replace(config, output=str(tmp_path / "whole")))
    save, saved = loop._Run._save, []

    def save_and_die(run: loop._Run, *arguments: object) -> None:
        save(run, *arguments)
        saved.append(arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    place = tmp_path / ".run.training"
    cut = place / "checkpoint.safetensors"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(UserError, match="no whole checkpoint") as caught:
        train(config)
    assert "to resume at the one before" in caught.value.do
    cut.unlink()
    caplog.set_level("INFO", logger="embedmix")
    train(config)
    assert "resuming stage 1 at step 2" in caplog.text
    assert weights(config.output) == weights(tmp_path / "whole")


def test_a_mix_that_fails_verify_is_refused_before_training(config, tmp_path):
    mix = write_tiny_mix(tmp_path / "damaged")
    (shard, *_) = sorted(Path(mix).glob("documents-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"does not verify: {shard.name}: sha256 differs") as caught:
        train(replace(config, mix=mix))
    assert "datagen verify" in caught.value.do
    assert not list(Path(config.output).parent.glob("*run*"))


def test_a_tokenizer_without_padding_token_is_refused(config, base, tmp_path):
    """Its end token serves where it has one; with neither, there is nothing to pad with."""
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    place = bare / "tokenizer_config.json"
    told = json.loads(place.read_text())
    place.write_text(json.dumps({k: v for k, v in told.items() if not k.endswith("_token")}))
    with pytest.raises(UserError, match="neither a padding nor an end token") as caught:
        train(replace(config, base=str(bare)))
    assert "set pad_token" in caught.value.do


def test_a_batch_that_does_not_fit_names_the_knob(config, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("trainer.objective.backward", full)
    with pytest.raises(UserError, match="20.00 GiB") as caught:
        train(config)
    assert "lower micro_tokens" in str(caught.value)


def test_training_needs_none_of_the_factorys_engines():
    code = (
        "import sys\n"
        "for name in ('ray', 'polars', 'vllm', 'datasets', 'numba'): sys.modules[name] = None\n"
        "import trainer.loop, trainer.lora, trainer.export, trainer.merge, trainer.base"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensorboard_is_asked_for_by_name(config, tmp_path):
    found = importlib.util.find_spec("tensorboard")
    wanted = replace(config, tensorboard=str(tmp_path / "board"))
    if found is None:
        with pytest.raises(UserError, match="tensorboard library is not installed"):
            train(wanted)
        return
    train(wanted)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    for stage in ("pretrain", "finetune"):
        lines = [line for line in metrics(config.output) if line["stage"] == stage]
        for name in ("loss", "accuracy", "learning_rate", "gradient_norm", "rows", "tokens"):
            points = board.Scalars(f"{stage}/{name}")
            assert [p.step for p in points] == [line["step"] for line in lines]
            assert [p.value for p in points] == pytest.approx([line[name] for line in lines])
        for task in {line["task"] for line in lines}:
            own = [line["loss"] for line in lines if line["task"] == task]
            points = board.Scalars(f"{stage}/loss of {task}")
            assert [p.value for p in points] == pytest.approx(own)
        assert min(p.value for p in board.Scalars(f"{stage}/tokens_per_s")) > 0
        assert board.Scalars(f"{stage}/seconds_left")[-1].value == 0


def test_a_line_says_how_fast_how_well_used_and_how_long(config, monkeypatch, caplog):
    """A device of 1e9 operations a second, so that there is an MFU to speak of."""
    monkeypatch.setattr("trainer.progress.peak_flops", lambda: 1e9)
    caplog.set_level("INFO", logger="embedmix")
    monkeypatch.setattr("trainer.progress.LOG_INTERVAL_S", 0.0)
    train(replace(config, stages=STAGES[:1]))
    lines = [line for line in caplog.messages if "step " in line]
    form = (
        r"run pretrain: step \d/5, loss [\d.]+, accuracy@1 [\d.]+, \d+ rows/s, \d+ tokens/s, "
        r"MFU \d+%, \d+\.\d GiB(, \d+% idle)?, \d+:\d\d left"
    )
    assert len(lines) == 5 and all(re.fullmatch(form, line) for line in lines)
    assert lines[-1].endswith(" 0:00 left")


def test_metrics_have_the_speed_of_each_step(config, monkeypatch):
    """The first batch cannot be read while another is computed: that time is idle."""
    read = StageData.examples

    def slowly(self: StageData, *arguments: Any, **named: Any) -> list:
        time.sleep(0.05)
        return read(self, *arguments, **named)

    monkeypatch.setattr(StageData, "examples", slowly)
    (stage,) = train(replace(config, stages=STAGES[:1]))["stages"]
    assert 0.05 <= stage["idle_seconds"] <= stage["seconds"] + 0.1
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line)["speed"] for line in lines]
    assert len(speeds) == 5
    assert set(speeds[0]) == {"rows_per_s", "tokens_per_s", "idle", "gib", "seconds_left"}
    assert 0 < speeds[-1]["idle"] < 1 and speeds[-1]["seconds_left"] == 0


def test_a_loss_that_is_not_finite_stops_and_names_the_queries(config, base, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((Path(base) / name).read_bytes())
    tensors = load_file(Path(base) / "model.safetensors")
    (question_mark,) = tiny_tokenizer()("?")["input_ids"]
    tensors["embed_tokens.weight"][question_mark] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"loss is nan in stage pretrain.*[0-9a-f]{32}"):
        train(replace(config, base=str(broken)))
    assert not Path(config.output).exists()


def test_a_folder_of_something_else_is_refused_before_training(config):
    Path(config.output).mkdir()
    (Path(config.output) / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match="not a model"):
        train(config)
    assert not list(Path(config.output).parent.glob(".*"))


def test_unusable_configurations_are_refused():
    with pytest.raises(UserError, match="int8"):
        TrainConfig(mix="m", base="b", output="o", dtype="int8")
    with pytest.raises(UserError, match="loss 'triplet'"):
        TrainConfig(mix="m", base="b", output="o", loss="triplet")
    with pytest.raises(UserError, match="a teacher if and only if"):
        TrainConfig(mix="m", base="b", output="o", distill="embedding")
    with pytest.raises(UserError, match="'warmup'"):
        StageConfig(name="warmup", negatives=1, learning_rate=1e-5, batch_size=8)
    with pytest.raises(UserError, match="'negatives': 0"):
        StageConfig(name="pretrain", negatives=0, learning_rate=1e-5, batch_size=8)


def test_the_published_recipe_is_the_default():
    pretrain, finetune = TrainConfig(mix="m", base="b", output="o").stages
    assert (pretrain.learning_rate, pretrain.batch_size, pretrain.negatives) == (1e-5, 2048, 1)
    assert (finetune.learning_rate, finetune.batch_size, finetune.negatives) == (2e-6, 128, 4)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    stage = replace(STAGES[0], learning_rate=1.0, warmup_steps=2)
    rates = [learning_rate(CONFIG, stage, step=step, steps=22) for step in range(22)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.05)
    assert learning_rate(CONFIG, stage, step=0, steps=1) == 1.0


def test_a_cosine_ends_at_its_smallest_rate():
    config = replace(CONFIG, schedule="cosine", smallest_rate=0.1)
    stage = replace(STAGES[0], learning_rate=1.0, warmup_steps=2)
    rates = [learning_rate(config, stage, step=step, steps=22) for step in range(23)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.55)
    assert rates[22] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_norms_and_biases_do_not_decay():
    model = tiny_model()
    matrices, vectors = new_optimizer(model, 0.01).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.01, 0.0)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    assert {id(p) for p in vectors["params"]} == {id(p) for p in norms}


def test_the_base_is_the_first_layers_exported_untrained(base, tmp_path):
    place = str(tmp_path / "base")
    assert prepare_base(base, place, layers=1) == place
    whole, cut = (load_file(Path(f) / "model.safetensors") for f in (base, place))
    assert not any("layers.1" in name for name in cut)
    assert all(torch.equal(cut[name], whole[name]) for name in cut)
    assert (Path(place) / "modules.json").is_file()
    assert prepare_base(base, place, layers=1) == place
    with pytest.raises(UserError, match="layers"):
        prepare_base(base, place, layers=2)
