"""The command `trainer`: train on a mix, merge, export, evaluate and compare models."""

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datagen import __version__
from datagen.schema import TASKS, UserError

_RUN_OPTIONS: dict[str, tuple[type, str]] = {
    "loss": (str, "nemotron, gecko, gemini, qwen3, f2llm, kalm, nv_retriever, all (nemotron)"),
    "temperature": (float, "of the loss (0.02)"),
    "matryoshka": (bool, "the loss at widths 8, 16, ... as well"),
    "distill": (str, "kl or margin (scores of the mix), embedding or cosine (of the teacher)"),
    "distill_weight": (float, "beside the loss (1)"),
    "teacher": (str, "folder of a model, with the same tokenizer unless cached"),
    "teacher_cache": (str, "folder of the teacher's vectors, as mining keeps them, for cosine"),
    "pooling": (str, "mean, last or cls (mean)"),
    "pool_instruction": (bool, "tokens of instructions count in the mean (they do)"),
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
    "keep_steps": (int, "between checkpoints kept as models in DIR-steps (none)"),
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
    for add in (_train, _plan, _merge, _prune, _evaluate, _export, _publish, _compare):
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
        "Options with two values are for the two stages, PRETRAIN,FINETUNE. --recipe takes a "
        "paper's: nemotron,\nor f2llm-80M, 160M, 330M, 0.6B, 1.7B, 4B, 8B, 14B; options go first.",
        example="trainer train --mix out/demo/mix --base out/demo/models/base --output out/run-1",
    )
    _output(parser)
    parser.add_argument(
        "--ray-workers", type=int, metavar="N", help="processes on a Ray cluster (RAY_ADDRESS)"
    )
    _training_options(parser)


def _plan(commands: Any) -> None:
    parser = _command(
        commands,
        "plan",
        _run_plan,
        about="Say what a training run takes: steps, tokens, memory and GPU-hours.\n\nReads MIX "
        "and BASE, with the options of `trainer train`; runs nothing. Prints JSON.",
        example="trainer plan --mix MIX --base BASE --recipe f2llm-0.6B --gpus 8 --parallel fsdp",
    )
    parser.add_argument("--gpus", type=int, default=1, metavar="N")
    parser.add_argument("--gpu", default="H100", help="H100, H200, A100, L40S, B200 (H100)")
    parser.add_argument("--mfu", type=float, default=0.4, help="that you expect (0.4)")
    _training_options(parser)


def _run_plan(arguments: argparse.Namespace) -> int:
    from trainer.estimate import estimate
    from trainer.progress import PEAK_FLOPS

    if arguments.gpu not in PEAK_FLOPS or arguments.gpus < 1 or not 0 < arguments.mfu <= 1:
        raise UserError(
            found=f"--gpu {arguments.gpu} --gpus {arguments.gpus} --mfu {arguments.mfu}",
            expected=f"one of {', '.join(PEAK_FLOPS)}, one GPU or more, an MFU in (0, 1]",
            do="mend these options",
            exit_status=2,
        )
    arguments.output = ""  # nothing is written
    found = estimate(_config(arguments), gpus=arguments.gpus, gpu=arguments.gpu, use=arguments.mfu)
    return _done(found)


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mix", required=True, metavar="MIX")
    parser.add_argument("--base", required=True, metavar="BASE")
    parser.add_argument("--recipe", default="nemotron", metavar="R", help="(nemotron)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--stages", metavar="NAMES", help="(those of the recipe)")
    for name, (kind, about) in _STAGE_OPTIONS.items():
        parser.add_argument(_flag(name), type=_numbers(kind), metavar="N,N", help=about)
    parser.add_argument(
        "--draw", action="store_true", help="negatives at random, not the hardest of a row"
    )
    for name, (kind, about) in _RUN_OPTIONS.items():
        if kind is bool:
            action = argparse.BooleanOptionalAction if name == "pool_instruction" else "store_true"
            parser.add_argument(_flag(name), action=action, default=None, help=about)
        else:
            parser.add_argument(_flag(name), type=kind, metavar=name[0].upper(), help=about)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _run_train(arguments: argparse.Namespace) -> int:
    from trainer.train import train

    config = _config(arguments)
    if arguments.ray_workers is None:
        record = train(config)
    else:
        from trainer.ray_train import train_on_ray

        record = train_on_ray(config, workers=arguments.ray_workers)
    return _done({"output": arguments.output, "stages": record["stages"]})


def _config(arguments: argparse.Namespace) -> Any:
    """The run that the options of training describe."""
    from trainer.papers import RECIPES
    from trainer.train import TrainConfig

    if arguments.recipe not in RECIPES:
        raise UserError(
            found=f"--recipe {arguments.recipe}",
            expected="one of " + ", ".join(RECIPES),
            do="name one of these",
            exit_status=2,
        )
    recipe = RECIPES[arguments.recipe]
    given = {name: getattr(arguments, name) for name in _RUN_OPTIONS}
    told = {name: value for name, value in given.items() if value is not None}
    return TrainConfig(
        mix=arguments.mix,
        base=arguments.base,
        output=arguments.output,
        seed=arguments.seed,
        stages=_stages(arguments, recipe.stages),
        **(recipe.options | told),
    )


def _stages(arguments: argparse.Namespace, published: Mapping[str, Any]) -> tuple:
    """The published stages with the options given; one value serves all stages."""
    from dataclasses import replace

    chosen = arguments.stages.split(",") if arguments.stages else list(published)
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
                expected=f"{' or '.join(published)}, the stages of the recipe",
                do="mend --stages",
                exit_status=2,
            )
        given = {name: getattr(arguments, name) for name in _STAGE_OPTIONS}
        values = {k: v[number if len(v) > 1 else 0] for k, v in given.items() if v is not None}
        own = published[stage]
        stages.append(replace(own, draw=own.draw or arguments.draw, **values))
    return tuple(stages)


def _merge(commands: Any) -> None:
    parser = _command(
        commands,
        "merge",
        _run_merge,
        about="Merge the weights of models of one architecture.\n\nReads sentence-transformers "
        "folders with the same configuration and tokenizer.\nWrites one such folder, with "
        "merge.json (models, weights, sha256) and new golden vectors.\nMethods: mean, slerp (two "
        "models), spherical (barycentre of any number), task-arithmetic and\nties (of the changes "
        "to --base). --greedy TASKS adds models one by one while the mean scores better\nthere.",
        example="trainer merge run-1 run-2 --output merged --weights 2,1",
    )
    parser.add_argument("models", nargs="+", metavar="M")
    _output(parser)
    parser.add_argument("--weights", type=_numbers(float), metavar="W,W", help="(equal)")
    parser.add_argument("--method", default="mean", metavar="M", help="(mean)")
    parser.add_argument("--base", metavar="M", help="that the models were trained from")
    parser.add_argument("--scale", type=float, default=1.0, help="of the changes to --base (1)")
    parser.add_argument("--density", type=float, default=0.2, help="kept by ties (0.2)")
    parser.add_argument("--greedy", nargs="+", metavar="TASKS", help="folders of held-out tasks")


def _run_merge(arguments: argparse.Namespace) -> int:
    from trainer.merge import merge

    if arguments.greedy:
        from trainer.soup import greedy_soup, score_on

        score = score_on(arguments.greedy)
        return _done(greedy_soup(arguments.models, arguments.output, score=score))
    names = ("weights", "method", "base", "scale", "density")
    options = {name: getattr(arguments, name) for name in names}
    return _done(merge(arguments.models, arguments.output, **options))


def _prune(commands: Any) -> None:
    parser = _command(
        commands,
        "prune",
        _run_prune,
        about="Cut a model to a smaller width and depth.\n\nReads a model folder and, to make it "
        "narrower, a mix, whose texts tell which channels and neurons\ncarry most. Writes the "
        "smaller model as a sentence-transformers folder with prune.json; train it, best\nwith "
        "--distill. Sizes of F2LLM-v2 by name: 80M, 160M, 330M (of Qwen3-0.6B). Any model can lose "
        "its\nlast layers; Llama, Mistral, Qwen2 and Qwen3 become narrower as well.",
        example="trainer prune MODEL --mix out/demo/mix --size 330M --output small",
    )
    parser.add_argument("model", metavar="M")
    _output(parser)
    parser.add_argument("--mix", metavar="MIX", help="to calibrate on; not needed for --layers")
    parser.add_argument("--stage", default="finetune", help="of the mix (finetune)")
    parser.add_argument("--rows", type=int, default=256, metavar="N", help="to calibrate on (256)")
    parser.add_argument("--size", metavar="S", help="80M, 160M or 330M")
    parser.add_argument("--hidden", type=int, metavar="N", help="channels (all)")
    parser.add_argument("--mlp", type=int, metavar="N", help="neurons of each layer (all)")
    parser.add_argument("--layers", type=int, metavar="N", help="the first ones (all)")


def _run_prune(arguments: argparse.Namespace) -> int:
    from trainer.prune import SIZES, calibration_texts, prune

    if arguments.size is not None and arguments.size not in SIZES:
        raise UserError(
            found=f"--size {arguments.size}",
            expected="one of " + ", ".join(SIZES),
            do="name one of these, or give --hidden, --mlp and --layers",
            exit_status=2,
        )
    told = vars(SIZES[arguments.size]) if arguments.size else {}
    given = {name: getattr(arguments, name) for name in ("hidden", "mlp", "layers")}
    size = told | {name: value for name, value in given.items() if value is not None}
    texts: Sequence[str] = ()
    if arguments.mix:
        texts = calibration_texts(arguments.mix, arguments.stage, rows=arguments.rows)
    return _done(prune(arguments.model, arguments.output, texts=texts, **size))


def _evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _run_evaluate,
        about="Score a model on task folders and benchmarks with the mteb library.\n\nReads a "
        "sentence-transformers folder, and task folders (task.json beside parquet tables), given "
        "one by\none or as a folder of them; benchmarks by name, from a Hub. Writes "
        "DIR/results.json: a list with one\nobject per task: task, type, languages, main_score (0 "
        "to 1), scores, prompts, rows, seconds, model\n(sha256, dtype), versions, revision. "
        "Results of the same weights and files that DIR already holds are\ntaken over.",
        example="trainer evaluate --model merged --tasks tasks/ --output scores/merged",
    )
    parser.add_argument("--model", required=True, metavar="M")
    parser.add_argument("--tasks", nargs="+", default=(), metavar="DIR")
    parser.add_argument(
        "--benchmark", action="append", default=[], metavar="NAME", help="as in 'MTEB(eng, v2)'"
    )
    parser.add_argument(
        "--widths", type=_numbers(int), default=(), metavar="N,N", help="of shorter vectors"
    )
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

    if not arguments.tasks and not arguments.benchmark:
        raise UserError(
            found="neither --tasks nor --benchmark",
            expected="what to score the model on",
            do="name folders of tasks, or a benchmark of mteb",
            exit_status=2,
        )
    summary = evaluate(
        arguments.model,
        arguments.tasks,
        arguments.output,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        dtype=arguments.dtype,
        only=arguments.only,
        instructions=arguments.instructions,
        benchmarks=arguments.benchmark,
        widths=arguments.widths,
    )
    scores = {result["task"]: result["main_score"] for result in summary["tasks"]}
    told = {name: summary[name] for name in ("results", "means", "languages")}
    return _done(told | {"scores": scores})


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
    parser.add_argument("--onnx", action="store_true", help="write onnx/model.onnx as well")


def _run_export(arguments: argparse.Namespace) -> int:
    from trainer.export import export_folder

    difference = export_folder(
        arguments.model,
        arguments.output,
        max_length=arguments.max_length,
        dtype=arguments.dtype,
        licence=arguments.licence,
        onnx=arguments.onnx,
    )
    return _done({"output": arguments.output, "golden_difference": difference})


def _publish(commands: Any) -> None:
    parser = _command(
        commands,
        "publish",
        _run_publish,
        about="Put a model on the Hub, with the checkpoints of its training as branches.\n\nReads "
        "MODEL, an exported, trained or merged model, and the checkpoints that RUN kept\n"
        "(--keep-steps). Writes to the repository, private unless told: each checkpoint to its "
        "branch step-N,\nthe model to main, its card last; proves every file by its digest. The "
        "same command goes on where it\nwas cut off. The token comes from HF_TOKEN. Prints JSON.",
        example="trainer publish out/demo/models/merged --repo me/my-model",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME")
    parser.add_argument("--run", dest="training", metavar="RUN", help="output of `trainer train`")
    parser.add_argument("--public", action="store_true", help="a new repository is private else")


def _run_publish(arguments: argparse.Namespace) -> int:
    from trainer.publish import publish_model

    options = {"run": arguments.training, "public": arguments.public}
    return _done(publish_model(arguments.model, arguments.repo, **options))


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
    parser.add_argument("--languages", action="store_true", help="a row per language, not per task")


def _run_compare(arguments: argparse.Namespace) -> int:
    from trainer.compare import compare, compare_languages

    table = compare_languages if arguments.languages else compare
    print(table(arguments.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
