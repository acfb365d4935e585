"""Samples per second of the trainer beside those of its peers, and the use of a GPU.

    python benchmarks/train.py --mix out/demo/mix --base out/demo/models/base \\
        [--f2llm CodeFuse-Embeddings/F2LLM]
    python benchmarks/train.py --gpu                                  # a random model, no files

The peers are sentence-transformers and, where a checkout of it is named, F2LLM's script. Each pair
gets the same model, rows, order of batches, loss (cosines over 0.05), learning rates, bf16 and
threads, one after the other in a process of its own; the curves of their losses stand side by side.

Of F2LLM's script the model, the losses and the loop run as they are, with torch's attention in
place of flash-attn and without DeepSpeed, which need a GPU; nothing is validated or saved. Its
texts are tokenised before the clock starts, as it does. It keeps bf16 weights, where ours and
sentence-transformers keep fp32 ones and compute in bf16. It always recomputes activations; a second
run of it does not.

The GPU part trains an encoder of the shape of Llama-3.2-1B with random weights on random tokens.
Writes Markdown to stdout and to --output.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TEMPERATURE, RATE = 0.05, 1e-4


def _stage(arguments: argparse.Namespace) -> Any:
    from trainer.train import StageConfig

    return StageConfig(
        name=arguments.stage, negatives=arguments.negatives, learning_rate=RATE,
        batch_size=arguments.batch_size, max_rows=arguments.rows, max_length=arguments.max_length,
    )  # fmt: skip


def ours(arguments: argparse.Namespace, output: str, **other: Any) -> dict[str, Any]:
    """The trainer as it is: reading, tokenising, steps; without loading and export."""
    from trainer.train import TrainConfig, train

    config = TrainConfig(**{
        "mix": arguments.mix, "base": arguments.base, "output": output,
        "stages": (_stage(arguments),), "loss": "all", "temperature": TEMPERATURE,
        "micro_tokens": arguments.micro_tokens, "threads": arguments.threads,
        "checkpoint_steps": 10**6, **other,
    })  # fmt: skip
    record = train(config)
    lines = (Path(output) / "metrics.jsonl").read_text().splitlines()
    return {
        "seconds": record["stages"][0]["seconds"],
        "rows": record["rows"],
        "tokens": record["tokens"],
        "losses": [json.loads(line)["loss"] for line in lines],
    }


def _planned(arguments: argparse.Namespace) -> list[list[Any]]:
    """The examples of each batch that our trainer makes."""
    from trainer.data import StageData
    from trainer.plan import stage_plan

    stage = _stage(arguments)
    data = StageData(arguments.mix, stage.name, negatives=stage.negatives)
    return [data.examples(rows.tolist(), seed=0, epoch=0) for _, rows in stage_plan(data, stage, 0)]


def f2llm(arguments: argparse.Namespace, output: str, *, recompute: bool) -> dict[str, Any]:
    """F2LLM's model, losses and loop on the same rows in the same batches."""
    import torch
    from accelerate import Accelerator
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoTokenizer, get_scheduler

    sys.path.insert(0, arguments.f2llm)
    import model as peer_model  # type: ignore[import-not-found]
    import utils as peer  # type: ignore[import-not-found]

    load = peer_model.AutoModel.from_pretrained

    def load_here(path: str, **options: Any) -> Any:
        return load(path, dtype=options["torch_dtype"], attn_implementation="sdpa")

    peer_model.AutoModel = SimpleNamespace(from_pretrained=load_here)
    losses: list[float] = []

    def keep(_: Any, values: dict[str, Any], __: int) -> None:
        own = [float(v) for k, v in values.items() if "/training_loss" in k and "Avg" not in k]
        losses.append(sum(own))

    peer.write_tensorboard, peer.save_checkpoint = keep, lambda *_, **__: None
    peer.validate = lambda *_, **__: None
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.base, local_files_only=True)
    names = {True: "msmarco", False: "amazon_polarity"}  # with in-batch negatives, without
    batches, plan = [], _planned(arguments)
    for examples in plan:
        texts = [e.query for e in examples] + [e.positive for e in examples]
        texts += [text for e in examples for text in e.negatives]
        ids = tokenizer(texts, truncation=True, max_length=arguments.max_length)["input_ids"]
        tensors = [torch.tensor(one) for one in ids]
        sizes = torch.tensor([len(one) for one in ids])
        padded = pad_sequence(tensors, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = (torch.arange(padded.shape[1]) < sizes[:, None]).long()
        batches.append({
            "input_ids": padded, "seq_lens": sizes, "attention_mask": mask, "bs": len(examples),
            "dataset_name": names[examples[0].in_batch],
        })  # fmt: skip

    class Loader:
        loader_dict = dict.fromkeys(batch["dataset_name"] for batch in batches)

        def __len__(self) -> int:
            return len(batches)

        def reset_epoch(self, _: int) -> None:
            pass

        def __iter__(self) -> Any:
            return iter(batches)

    steps = len(batches)
    settings = SimpleNamespace(
        train_epochs=1, train_steps=steps, train_batch_size=arguments.batch_size, log_interval=1,
        tb_dir=output, output_dir=output, use_mrl=False, kd_weight=1.0, min_lr=0.0,
        validation_steps=10**9, checkpointing_steps=0,
    )  # fmt: skip
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = peer_model.F2LLM(arguments.base, arguments.max_length, settings, accelerator)
    if recompute:
        model.lm.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(
        [{"params": list(model.lm.parameters()), "lr": RATE}], weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = get_scheduler(
        "linear", optimizer=optimizer, num_warmup_steps=steps // 10, num_training_steps=steps
    )
    model.set_device()
    rows = sum(len(examples) for examples in plan)
    begin = time.monotonic()
    peer.accelerate_train(
        settings, accelerator, model, Loader(), {}, optimizer, schedule, rows, teacher=None
    )
    return {"seconds": time.monotonic() - begin, "rows": rows, "losses": losses[:steps]}


def theirs(arguments: argparse.Namespace, output: str) -> dict[str, Any]:
    """The trainer of sentence-transformers on the same rows in the same batches."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.training_args import (
        SentenceTransformerTrainingArguments,
    )

    stage, plan = _stage(arguments), _planned(arguments)
    examples = [example for batch in plan for example in batch]
    columns = ["anchor", "positive", *(f"negative_{n}" for n in range(1, stage.negatives + 1))]
    table = {name: [e.texts[i] for e in examples] for i, name in enumerate(columns)}
    starts = [sum(map(len, plan[:i])) for i in range(len(plan) + 1)]
    batches = [list(range(a, b)) for a, b in zip(starts, starts[1:], strict=False)]

    torch.set_num_threads(arguments.threads)
    model = SentenceTransformer(arguments.base, local_files_only=True)
    model.max_seq_length = stage.max_length
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=output, use_cpu=not torch.cuda.is_available(), bf16=True,
            num_train_epochs=1, per_device_train_batch_size=stage.batch_size,
            batch_sampler=lambda *_, **__: batches,  # type: ignore[arg-type]
            learning_rate=stage.learning_rate, weight_decay=0.01, lr_scheduler_type="linear",
            warmup_steps=len(plan) // 10, max_grad_norm=1.0, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(table),
        loss=MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE),
    )  # fmt: skip
    begin = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - begin
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"seconds": seconds, "rows": len(examples), "losses": losses}


RUNS = {
    "embedmix": ours,
    "sentence-transformers": theirs,
    "embedmix, last token, F2LLM's loss": partial(ours, loss="f2llm", pooling="last"),
    "F2LLM's script": partial(f2llm, recompute=True),
    "F2LLM's script, activations kept": partial(f2llm, recompute=False),
}
PAIRS = [list(RUNS)[:2], list(RUNS)[2:]]


def compare(arguments: argparse.Namespace) -> str:
    """The trainers, `--repeats` times in turn; the median of each counts."""
    pairs = PAIRS if arguments.f2llm else PAIRS[:1]
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.repeats):
        for name in (name for pair in pairs for name in pair):
            with tempfile.TemporaryDirectory() as folder:
                found = Path(folder) / "found.json"
                command = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(found)]
                subprocess.run(command, check=True)
                runs.setdefault(name, []).append(json.loads(found.read_text()))
    middle = {
        name: sorted(found, key=lambda run: run["seconds"])[len(found) // 2]
        for name, found in runs.items()
    }
    one = middle["embedmix"]
    names = ("torch", "transformers", "sentence-transformers", "accelerate")
    lines = [
        "# Training beside peers",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, {', '.join(f'{n} {version(n)}' for n in names)}. Made by "
        f"`python benchmarks/train.py {shlex.join(sys.argv[1:])}`.",
        "",
        f"{one['rows']} rows of {1 + 1 + arguments.negatives} texts, {one['tokens']:,} different "
        f"tokens in {len(one['losses'])} batches of {arguments.batch_size}, {arguments.threads} "
        f"threads, bf16; the median of {arguments.repeats}.",
        "",
        "| trainer | rows/s | seconds | ours is times | first loss | last loss | a step's differ |",
        "|---|---|---|---|---|---|---|",
    ]
    for own, *others in pairs:
        for name in (own, *others):
            found, curve = middle[name], middle[name]["losses"]
            apart = max(abs(a - b) for a, b in zip(middle[own]["losses"], curve, strict=True))
            lines.append(
                f"| {name} | {found['rows'] / found['seconds']:.2f} | {found['seconds']:.1f} "
                f"| {found['seconds'] / middle[own]['seconds']:.2f} | {curve[0]:.4f} "
                f"| {curve[-1]:.4f} | <= {apart:.3f} |"
            )
    return "\n".join(lines)


def gpu(arguments: argparse.Namespace) -> str:
    """Steps of a random encoder: tokens/s, share of the device's bf16 rate, memory."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from trainer.objective import Gradients, Objective
    from trainer.packed import PackedEncoder
    from trainer.progress import peak_flops, token_flops
    from trainer.schedule import new_optimizer

    shape = {
        "1b": (2048, 16, 32, 8, 8192),
        "8b": (4096, 32, 32, 8, 14336),
        "tiny": (64, 2, 4, 2, 128),
    }
    width, layers, heads, key_heads, inner = shape[arguments.shape]
    config = LlamaConfig(
        vocab_size=128_256 if arguments.shape != "tiny" else 512, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        intermediate_size=inner, is_causal=False, use_cache=False, max_position_embeddings=8192,
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        model = LlamaModel(config).train()
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if arguments.compile:
        model.compile(dynamic=True)
    optimizer = new_optimizer(model, 0.01)
    work = Gradients(
        encoder=PackedEncoder(model, mixed=True), device=device,
        objective=Objective(loss=arguments.loss), micro_tokens=arguments.micro_tokens, pad_id=0,
    )  # fmt: skip
    rows = arguments.batch_size
    texts = 2 + arguments.negatives
    numbers = torch.randint(1, 512, (rows, texts, arguments.max_length)).tolist()
    examples: Any = [
        SimpleNamespace(
            query=str(n), in_batch=True, documents=range(n * texts, n * texts + texts - 1),
            clusters=(None,) * (texts - 1), scores=(0.0,) * (texts - 1), known=(n * texts,),
        )
        for n in range(rows)
    ]  # fmt: skip

    def step() -> int:
        found = work.add(examples, numbers, count=rows, negatives=arguments.negatives)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found.tokens

    for _ in range(2):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.monotonic()
    tokens = sum(step() for _ in range(arguments.steps))
    if device.type == "cuda":
        torch.cuda.synchronize()
    rate = tokens / (time.monotonic() - begin)
    peak = peak_flops()
    use = rate * token_flops(model, length=arguments.max_length) / peak if peak else None
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return "\n".join(
        [
            "| shape | device | loss | length | tokens at once | tokens/s | rows/s | MFU | GiB |",
            "|---|---|---|---|---|---|---|---|---|",
            f"| {arguments.shape} | {torch.cuda.get_device_name() if peak else device.type} "
            f"| {arguments.loss} | {arguments.max_length} | {arguments.micro_tokens:,} "
            f"| {rate:,.0f} | {rate / arguments.max_length / texts:.1f} "
            f"| {f'{use:.1%}' if use else 'not known'} | {f'{memory:.1f}' if memory else '-'} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", default=str(ROOT / "out/demo/mix"))
    parser.add_argument("--base", default=str(ROOT / "out/demo/models/base"))
    parser.add_argument("--stage", default="pretrain", help="of the mix")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--negatives", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--micro-tokens", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--f2llm", metavar="FOLDER", help="with F2LLM's run.py, to run it, too")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--shape", choices=("1b", "8b", "tiny"), default="1b")
    parser.add_argument("--loss", default="nemotron", help="of the GPU part")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", metavar="FILE")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, found = arguments.one
        Path(found).write_text(json.dumps(RUNS[name](arguments, f"{found}.model")))
        return
    text = gpu(arguments) if arguments.gpu else compare(arguments)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
