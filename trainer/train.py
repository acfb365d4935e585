"""Train an encoder on a mix: two stages, hard negatives only, resumable to the bit.

`train` refuses what cannot work, says `up to date` when the same run is already there, and
otherwise runs the loop (trainer/loop.py), exports the model and writes `run.json` last. While it
runs, metrics and the checkpoint lie in a hidden folder beside the output; the metrics move into the
output when it is complete.

Defaults are the published recipe of llama-embed-nemotron-8b (arXiv 2511.07025, section 3.2 and
Table 8): retrieval with 1 negative at 1e-5 in batches of 2,048, then all tasks with 4 negatives at
2e-6 in batches of 128; AdamW, weight decay 0.01, linear decay after 100 steps of warm-up,
temperature 0.02, 512 tokens.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from datagen import __version__
from datagen.schema import STAGES, UserError
from datagen.store import Folder, read_manifest, verify
from trainer.card import merged_mixes, read_card
from trainer.export import GOLDEN, any_entry, export_model
from trainer.model_folder import refuse_cut

log = logging.getLogger("embedmix")

_KNOWN = {
    "dtype": ("bfloat16", "float32"),
    "loss": ("nemotron", "nv_retriever", "gecko", "gemini", "qwen3", "f2llm", "kalm", "all"),
    "distill": (None, "kl", "margin", "embedding", "cosine"),
    "pooling": ("mean", "last", "cls"),
    "schedule": ("linear", "cosine"),
    "parallel": ("ddp", "fsdp"),
}
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")
# These do not decide the weights, or only through what lies there.
_PLACES = (
    "mix",
    "base",
    "teacher",
    "teacher_cache",
    "output",
    "threads",
    "checkpoint_steps",
    "keep_steps",
    "parallel",
    "tensorboard",
)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage: its table in the mix, negatives per query, and its schedule."""

    name: str
    negatives: int
    learning_rate: float
    batch_size: int
    epochs: int = 1
    max_rows: int | None = None  # per epoch: a seeded part of the rows, another one each epoch
    warmup_steps: int = 100  # a tenth of the stage's steps where that is fewer
    max_length: int = 512  # tokens, instruction included
    draw: bool = False  # negatives at random from those of the row, not the first ones

    def __post_init__(self) -> None:
        counts = [self.negatives, self.batch_size, self.epochs, self.max_length]
        counts += [] if self.max_rows is None else [self.max_rows]
        possible = min(counts) >= 1 and self.warmup_steps >= 0 and self.learning_rate > 0
        if self.name not in STAGES or not possible:
            _refuse(
                f"stage {asdict(self)}",
                f"a name of {STAGES}, a learning rate above 0, counts of at least 1",
            )


def _refuse(found: str, expected: str) -> NoReturn:
    raise UserError(found=found, expected=expected, do="mend the training recipe", exit_status=2)


PRETRAIN = StageConfig(name="pretrain", negatives=1, learning_rate=1e-5, batch_size=2048)
FINETUNE = StageConfig(name="finetune", negatives=4, learning_rate=2e-6, batch_size=128)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about one training run; `mix`, `base` and `output` are local folders.

    `bfloat16` keeps weights, optimiser and sums in fp32 and computes in bf16 (autocast): updates of
    1e-5 would be lost in bf16 weights.
    """

    mix: str
    base: str
    output: str
    stages: tuple[StageConfig, ...] = (PRETRAIN, FINETUNE)
    seed: int = 0
    temperature: float = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0  # largest norm of the gradient of a batch
    dtype: str = "bfloat16"
    loss: str = "nemotron"  # a key of trainer.loss.LOSSES
    matryoshka: bool = False  # the loss at widths 8, 16, ... as well
    distill: str | None = None  # kl, margin (the mix's scores), embedding, cosine (of `teacher`)
    distill_weight: float = 1.0
    teacher: str | None = None  # folder of a model; with the same tokenizer unless it is cached
    teacher_cache: str | None = None  # folder of vectors (trainer/teacher.py), for cosine
    pooling: str = "mean"  # last, cls
    pool_instruction: bool = True  # whether the tokens of instructions count in a mean
    causal: bool = False
    lora: int = 0  # rank of adapters that are trained in place of the weights; 0: all weights
    schedule: str = "linear"  # cosine
    smallest_rate: float = 0.0  # what a schedule ends at, as a share of its peak
    micro_tokens: int = 8192  # tokens whose activations are kept at once
    gradient_checkpointing: bool = False
    compile: bool = False
    parallel: str = "ddp"  # fsdp; under torchrun
    checkpoint_steps: int = 100
    keep_steps: int | None = None  # between checkpoints kept as models in OUTPUT-steps
    tensorboard: str | None = None  # folder for TensorBoard, beside metrics.jsonl
    threads: int | None = None  # None: one for each core this process may use

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                _refuse(
                    f"{name} {getattr(self, name)!r}",
                    f"one of {known}",
                )
        of_vectors = self.distill in ("embedding", "cosine")
        if of_vectors != (self.teacher is not None) or not self.stages:
            _refuse(
                f"distill {self.distill!r}, teacher {self.teacher!r}, {len(self.stages)} stages",
                "a teacher if and only if its embeddings are matched; at least one stage",
            )
        if self.teacher_cache is not None and self.distill != "cosine":
            _refuse(f"teacher_cache with distill {self.distill!r}", "cosine: it has unit vectors")
        if not self.pool_instruction and self.pooling != "mean":
            _refuse(
                f"pool_instruction off with pooling {self.pooling!r}", "a mean to leave it out of"
            )
        positive = (self.temperature, self.clip, self.micro_tokens, self.checkpoint_steps)
        others = (self.weight_decay, self.smallest_rate, self.lora)
        if (
            min(positive) <= 0
            or min(others) < 0
            or min(self.threads or 1, self.keep_steps or 1) < 1
        ):
            _refuse(
                f"temperature, clip, micro_tokens, checkpoint_steps = {positive}, "
                f"weight_decay, smallest_rate, lora = {others}, threads = {self.threads}, "
                f"keep_steps = {self.keep_steps}",
                "numbers above 0 (those of the second group may be 0)",
            )

    def identity(self) -> dict[str, Any]:
        """What decides the weights: the configuration, with digests in place of folders."""
        fields = {k: v for k, v in asdict(self).items() if k not in _PLACES}
        digests = {
            "mix": read_manifest(Folder(self.mix)).digest,
            "base": model_digest(self.base),
            "teacher": self.teacher and model_digest(self.teacher),
            "teacher_is_cached": self.teacher_cache is not None,
        }
        return json.loads(json.dumps({**fields, **digests}))


def model_digest(folder: str) -> str:
    """sha256 over configuration, tokenizer and weights of a model folder."""
    place = Path(folder)
    names = ("config.json", "tokenizer.json")
    files = [place / n for n in names if (place / n).is_file()]
    weights = sorted(place.glob("*.safetensors"))
    if not weights or not files:
        raise UserError(
            found=f"no config.json and *.safetensors in {folder}",
            expected="the folder of a transformers model in safetensors",
            do="check the path of the model",
        )
    refuse_cut(folder)
    digest = hashlib.sha256()
    for file in files + weights:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}\x1f{content}\n".encode())
    return digest.hexdigest()


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the stages and export the model to `config.output`; returns the content of run.json.

    A finished run of the same configuration, mix and base is returned as it is. UserError when the
    output was trained with another one (names the keys), and when a loss is not finite.
    """
    output, identity = Path(config.output), config.identity()
    record = earlier_run(config, identity)
    if record is not None:
        return record
    from trainer.distributed import process_group, rank
    from trainer.loop import run_stages

    place = output.with_name(f".{output.name}.training")
    with process_group() as device:
        if rank() == 0 and not any(place.glob("*.safetensors")):  # one that resumes has done this
            _refuse_damaged(config.mix)
        model, tokenizer, stages = run_stages(config, identity, place=place, device=device)
        if rank() == 0:
            export_run(config, output, model, tokenizer, stages=stages)
            shutil.copyfile(place / "metrics.jsonl", output / "metrics.jsonl")
            text = json.dumps(_record(config, identity, stages), indent=1) + "\n"
            (output / "run.json").write_text(text)
            shutil.rmtree(place)
    return json.loads(json.dumps(_record(config, identity, stages)))


def earlier_run(config: TrainConfig, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run in the output, if there is one; UserError when it is another."""
    output = Path(config.output)
    done = output / "run.json"
    if done.is_file():
        record: dict[str, Any] = json.loads(done.read_text())
        refuse_drift(output, record["identity"], identity)
        log.info("%s: up to date", output.name)
        return record
    _refuse_other_content(output)
    return None


def export_run(
    config: TrainConfig, output: Path, model: Any, tokenizer: Any, *, stages: list
) -> None:
    """Export what a run has trained, with a card that says on which data and how."""
    from trainer.loss import matryoshka_widths
    from trainer.prompts import PROMPTS
    from trainer.training_data import training_data

    length = max(stage.max_length for stage in config.stages)
    before = read_card(config.base)
    data = training_data(config.mix, [stage.name for stage in config.stages])
    card = {"base_model": Path(config.base).name, **before, "stages": stages}
    card["mixes"] = merged_mixes([before, {"mixes": [data]}])
    if "about" in before:
        card["about"] = f"training of the base: {before['about']}"
    if config.matryoshka:
        card["matryoshka"] = matryoshka_widths(model.config.hidden_size)
    settings: dict[str, Any] = {"prompts": PROMPTS, "card": card, "pooling": config.pooling}
    settings["pool_instruction"] = config.pool_instruction
    export_model(model, tokenizer, str(output), max_length=length, **settings)


def _record(config: TrainConfig, identity: dict[str, Any], stages: list) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "identity": identity,
        "fingerprint": fingerprint(identity),
        "stages": stages,
        "rows": sum(stage["rows"] for stage in stages),
        "tokens": sum(stage["tokens"] for stage in stages),
        "seconds": round(sum(stage["seconds"] for stage in stages), 1),
        "versions": {"embedmix": __version__, **{name: version(name) for name in _LIBRARIES}},
    }


def _refuse_damaged(mix: str) -> None:
    """Read every byte of the mix once: hours of training on half a shard would be lost."""
    problems = verify(Folder(mix))
    if problems:
        raise UserError(
            found=f"{mix} does not verify: {'; '.join(problems[:3])}",
            expected="the shards that its manifest lists, byte for byte",
            do="build or fetch the mix again; `datagen verify` lists all problems",
        )


def _refuse_other_content(output: Path) -> None:
    """An earlier export may be replaced; anything else would stop the export after training."""
    if output.exists() and any_entry(output) and not (output / GOLDEN).is_file():
        raise UserError(
            found=f"{output} exists and is not a model that was exported here",
            expected="a new or empty folder",
            do="choose another output",
        )


def fingerprint(identity: dict[str, Any]) -> str:
    """sha256 of what decides the weights."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def refuse_drift(place: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise UserError naming each key whose value changed."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        lines = [f"{key} was {old.get(key)}, is now {new.get(key)}" for key in changed]
        raise UserError(
            found=f"{place} was trained with another configuration: " + "; ".join(lines),
            expected="the configuration that trained it",
            do="choose another output, or delete that folder",
        )
