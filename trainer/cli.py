"""The command `trainer`: train on a mix, merge, export, evaluate and compare models."""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from datagen import __version__
from datagen.schema import TASKS, UserError

_RUN_OPTIONS: dict[str, tuple[type, str]] = {
    "loss": (str, "nemotron, gecko, gemini, qwen3, f2llm, kalm, nv_retriever, all (nemotron)"),
    "temperature": (float, "of the loss (0.02)"),
    "matryoshka": (bool, "the loss at widths 8, 16, ... as well"),
    "distill": (str, "kl or margin (scores of the mix), embedding (of the teacher)"),
    "distill_weight": (float, "beside the loss (1)"),
    "teacher": (str, "folder of a model with the same tokenizer"),
    "pooling": (str, "mean, last or cls (mean)"),
    "causal": (bool, "leave the attention of a decoder causal"),
    "lora": (int, "rank of adapters to train in place of the weights (0: all weights)"),
    "schedule": (str, "linear or cosine (linear)"),
    "smallest_rate": (float, "the end of the schedule, as a share of the peak (0)"),
    "weight_decay": (float, "of AdamW (0.01)"),
    "clip": (float, "largest norm of a gradient (1)"),
    "dtype": (str, "to compute in: float32 or bfloat16 (bfloat16)"),
    "micro_tokens": (int, "whose activations are kept at once (8192)"),
    "gradient_checkpointing": (bool, "compute activations twice, keep few"),
    "compile": (bool, "with torch.compile"),
    "parallel": (str, "ddp or fsdp, under torchrun (ddp)"),
    "checkpoint_steps": (int, "between two checkpoints (100)"),
    "threads": (int, "(one for each core)"),
    "tensorboard": (str, "folder for TensorBoard (none)"),
}
_STAGE_OPTIONS: dict[str, tuple[type, str]] = {
    "negatives": (int, "per query (1,4)"),
    "learning_rate": (float, "peak (1e-5,2e-6)"),
    "batch_size": (int, "queries (2048,128)"),
    "epochs": (int, "passes over the rows (1,1)"),
    "max_rows": (int, "rows per epoch (all)"),
    "warmup_steps": (int, "(100,100)"),
    "max_length": (int, "tokens (512,512)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 1 failed, 2 unusable arguments)."""
    # Libraries speak at INFO about each batch; the product's own lines are the ones to read.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("embedmix").setLevel(logging.INFO)
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Threads that wait give their core away. On two busy cores a pass took 4.0 s, not 18.9 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise
        print(
            f"found: {error.filename}: {os.strerror(error.errno)}\n"
            "expected: files that can be read and a place with room that can be written\n"
            "do: free space or choose another --output, then run the same command again",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command resumes where it can", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainer",
        description="Train text-embedding models on a mix, merge them, and score them. A whole run "
        "is recipes/train.py; these commands do one part alone.",
    )
    parser.add_argument("--version", action="version", version=f"embedmix {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_train, _merge, _evaluate, _export, _compare):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, about: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=about.split(". ")[0].split(".\n")[0],
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _done(summary: Any) -> int:
    """The summary of a command goes to stdout as JSON, for people and programs alike."""
    if os.environ.get("RANK", "0") == "0":  # one process of a group speaks
        print(json.dumps(summary, ensure_ascii=False, indent=1))
    return 0


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")


def _numbers(kind: Callable[[str], float]) -> Callable[[str], tuple]:
    def read(text: str) -> tuple:
        return tuple(kind(part) for part in text.split(","))

    read.__name__ = "list of numbers"  # argparse puts it into its message
    return read


def _train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _run_train,
        about="Train an encoder on a mix, in two stages.\n\nReads MIX (a finished mix) and BASE (a "
        "model folder, best made by `trainer export`).\nWrites the model to DIR as a "
        "sentence-transformers folder with run.json (losses, digests) and\n"
        "metrics.jsonl (a line per step). A stopped run resumes with the same command.\n"
        "Options with two values are for the two stages, PRETRAIN,FINETUNE.",
        example="trainer train --mix out/demo/mix --base out/demo/models/base --output out/run-1",
    )
    parser.add_argument("--mix", required=True, metavar="MIX")
    parser.add_argument("--base", required=True, metavar="BASE")
    _output(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--stages", default="pretrain,finetune", metavar="NAMES")
    for name, (kind, about) in _STAGE_OPTIONS.items():
        parser.add_argument(_flag(name), type=_numbers(kind), metavar="N,N", help=about)
    parser.add_argument(
        "--draw", action="store_true", help="negatives at random, not the hardest of a row"
    )
    for name, (kind, about) in _RUN_OPTIONS.items():
        if kind is bool:
            parser.add_argument(_flag(name), action="store_true", default=None, help=about)
        else:
            parser.add_argument(_flag(name), type=kind, metavar=name[0].upper(), help=about)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _run_train(arguments: argparse.Namespace) -> int:
    from trainer.train import TrainConfig, train

    given = {name: getattr(arguments, name) for name in _RUN_OPTIONS}
    config = TrainConfig(
        mix=arguments.mix,
        base=arguments.base,
        output=arguments.output,
        seed=arguments.seed,
        stages=_stages(arguments),
        **{name: value for name, value in given.items() if value is not None},
    )
    record = train(config)
    return _done({"output": arguments.output, "stages": record["stages"]})


def _stages(arguments: argparse.Namespace) -> tuple:
    """The published stages with the options given; one value serves all stages."""
    from dataclasses import replace

    from trainer.train import FINETUNE, PRETRAIN

    published = {"pretrain": PRETRAIN, "finetune": FINETUNE}
    chosen = arguments.stages.split(",")
    for name in _STAGE_OPTIONS:
        values = getattr(arguments, name)
        if values is not None and len(values) not in (1, len(chosen)):
            raise UserError(
                found=f"{_flag(name)} with {len(values)} values",
                expected=f"one, or one for each of {len(chosen)} stages",
                do="separate the values with commas",
                exit_status=2,
            )
    stages = []
    for number, stage in enumerate(chosen):
        if stage not in published:
            raise UserError(
                found=f"stage {stage!r}",
                expected="pretrain, finetune or both",
                do="mend --stages",
                exit_status=2,
            )
        given = {name: getattr(arguments, name) for name in _STAGE_OPTIONS}
        values = {k: v[number if len(v) > 1 else 0] for k, v in given.items() if v is not None}
        stages.append(replace(published[stage], draw=arguments.draw, **values))
    return tuple(stages)


def _merge(commands: Any) -> None:
    parser = _command(
        commands,
        "merge",
        _run_merge,
        about="Average the weights of models of one architecture.\n\nReads sentence-transformers "
        "folders with the same configuration and tokenizer.\nWrites one such folder, with "
        "merge.json (models, weights, sha256) and new golden vectors.",
        example="trainer merge run-1 run-2 --output merged --weights 2,1",
    )
    parser.add_argument("models", nargs="+", metavar="M")
    _output(parser)
    parser.add_argument("--weights", type=_numbers(float), metavar="W,W", help="(equal)")


def _run_merge(arguments: argparse.Namespace) -> int:
    from trainer.merge import merge

    return _done(merge(arguments.models, arguments.output, weights=arguments.weights))


def _evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _run_evaluate,
        about="Score a model on task folders with the mteb library.\n\nReads a "
        "sentence-transformers folder, and task folders (task.json beside parquet tables), given "
        "one by\none or as a folder of them. Writes DIR/results.json: a list with one object per "
        "task: task, type,\nlanguages, main_score (0 to 1), scores, prompts, rows, seconds, model "
        "(sha256, dtype), versions.\nResults of the same weights and files that DIR already holds "
        "are taken over.",
        example="trainer evaluate --model merged --tasks tasks/ --output scores/merged",
    )
    parser.add_argument("--model", required=True, metavar="M")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="DIR")
    _output(parser)
    parser.add_argument("--only", nargs="+", default=(), metavar="TYPE", help=", ".join(TASKS))
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts (32)")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens (as the model says)")
    parser.add_argument("--dtype", metavar="D", help="float32 or bfloat16 (as the model says)")
    parser.add_argument(
        "--instructions",
        choices=("auto", "always", "never"),
        default="auto",
        help="the task's instruction in front of queries; auto: if the model was trained with them",
    )


def _run_evaluate(arguments: argparse.Namespace) -> int:
    from trainer.evaluate import evaluate

    summary = evaluate(
        arguments.model,
        arguments.tasks,
        arguments.output,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        dtype=arguments.dtype,
        only=arguments.only,
        instructions=arguments.instructions,
    )
    scores = {result["task"]: result["main_score"] for result in summary["tasks"]}
    return _done({"results": summary["results"], "scores": scores, "means": summary["means"]})


def _export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        _run_export,
        about="Write a model as a sentence-transformers folder without custom code.\n\nReads a "
        "transformers folder (a decoder or an encoder; its attention is made bidirectional) or an\n"
        "exported model. Writes the folder with mean pooling, prompts, a card and golden.json, and "
        "loads it again to check it.",
        example="trainer export checkpoints/step-900 --output model --max-length 512",
    )
    parser.add_argument("model", metavar="MODEL")
    _output(parser)
    parser.add_argument("--max-length", type=int, default=512, metavar="N", help="tokens (512)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="(as the model is saved)")
    parser.add_argument("--licence", metavar="SPDX", help="of the base model, for the card")


def _run_export(arguments: argparse.Namespace) -> int:
    from trainer.export import export_folder

    difference = export_folder(
        arguments.model,
        arguments.output,
        max_length=arguments.max_length,
        dtype=arguments.dtype,
        licence=arguments.licence,
    )
    return _done({"output": arguments.output, "golden_difference": difference})


def _compare(commands: Any) -> None:
    parser = _command(
        commands,
        "compare",
        _run_compare,
        about="Show the scores of several models side by side.\n\nReads results.json files or "
        "their folders. Prints a Markdown table: main scores x 100 per task, and means per type.",
        example="trainer compare scores/base scores/merged",
    )
    parser.add_argument("results", nargs="+", metavar="RESULTS")


def _run_compare(arguments: argparse.Namespace) -> int:
    from trainer.compare import compare

    print(compare(arguments.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
