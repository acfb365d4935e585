"""The command `datagen`: every build step over plain files, and what to do with a finished mix."""

import argparse
import dataclasses
import gc
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from datagen import __version__
from datagen.schema import UserError

DEFAULT_CACHE = ".cache/embedmix"

FILES = "Parquet, JSONL (.gz, .zst), CSV, TSV or Arrow files or folders, by path or URI"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 1 failed, 2 unusable arguments)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "huggingface_hub"):  # a line a request
        logging.getLogger(name).setLevel(logging.ERROR)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped; the same command resumes at the last committed unit", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="datagen",
        description="Build training mixes for text-embedding models. A whole mix is built by "
        "recipes/build_mix.py; these commands run one step alone, or read a finished mix.",
    )
    parser.add_argument("--version", action="version", version=f"embedmix {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    steps = (_sources, _dedup, _language, _decontaminate, _synthesize, _mine)
    for add in (*steps, _report, _verify, _diff, _show, _export, _publish):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], *, about: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=about.split(". ")[0],
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help=FILES)
    _output(parser)


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")


def _done(summary: dict[str, Any]) -> int:
    """The summary of a command goes to stdout as JSON, for people and programs alike."""
    print(json.dumps(summary, ensure_ascii=False, indent=1))
    return 0


def _dedup(commands: Any) -> None:
    parser = _command(
        commands,
        "dedup",
        _run_dedup,
        about="Remove exact and near-duplicate rows.\n\nReads rows with a text column. Writes "
        "kept.parquet (the rows that stay, all columns) and removed.parquet\n(id if there was one, "
        "row, duplicate_of, similarity, kind).",
        example="datagen dedup questions.jsonl --output clean --text-column question",
    )
    _inputs(parser)
    parser.add_argument("--text-column", default="text", metavar="NAME")
    parser.add_argument("--similarity", type=float, default=0.8, metavar="J", help="0..1 (0.8)")
    parser.add_argument("--backend", help="signatures by numba (default), rensa or datasketch")


def _run_dedup(arguments: argparse.Namespace) -> int:
    from datagen.minhash import DEFAULT_BACKEND
    from datagen.row_dedup import dedup_files

    return _done(
        dedup_files(
            arguments.inputs,
            arguments.output,
            text_column=arguments.text_column,
            similarity=arguments.similarity,
            backend=arguments.backend or DEFAULT_BACKEND,
        )
    )


def _language(commands: Any) -> None:
    parser = _command(
        commands,
        "language",
        _run_language,
        about="Tag the language and script of every row.\n\nReads rows with a text column. Writes "
        "rows.parquet: the input with detected_language (deu_Latn),\ndetected_score (0..1) and "
        "detector.",
        example="datagen language pages.parquet --output tagged",
    )
    _inputs(parser)
    parser.add_argument("--text-column", default="text", metavar="NAME")
    parser.add_argument(
        "--backend",
        default=None,
        help="embedmix (default), py3langid, langdetect, cld2, cld3, fasttext, heliport, "
        "or fasttext:MODEL_FILE",
    )


def _run_language(arguments: argparse.Namespace) -> int:
    from datagen.detectors import DEFAULT_BACKEND
    from datagen.language_files import tag_files

    return _done(
        tag_files(
            arguments.inputs,
            arguments.output,
            text_column=arguments.text_column,
            backend=arguments.backend or DEFAULT_BACKEND,
        )
    )


def _decontaminate(commands: Any) -> None:
    parser = _command(
        commands,
        "decontaminate",
        _run_decontaminate,
        about="Remove rows that match evaluation sets.\n\nReads pairs or texts, and evaluation "
        "sets: task folders (task.json beside Parquet tables), BEIR folders,\nhub:org/name"
        "[@revision][/config], or mteb:NAME for a benchmark or a task: 'mteb:MTEB(eng, v2)'.\n"
        "Writes kept.parquet and removed.parquet (the row, with task, kind: query / document / "
        "near_query /\nnear_document / pair, matched_column, matched_text and similarity). With "
        "--mode tag writes rows.parquet\ninstead (all rows, with these columns), with --mode "
        "report only matches.parquet.\n--explain shows matched texts side by side; without IN "
        "those that --output holds already.",
        example="datagen decontaminate pairs.parquet --against tasks/ --output clean --explain 5",
    )
    parser.add_argument("inputs", nargs="*", metavar="IN", help=FILES)
    _output(parser)
    parser.add_argument("--against", nargs="+", default=[], metavar="SET", help="evaluation sets")
    parser.add_argument("--mode", default="drop", help="drop (default), tag or report")
    parser.add_argument("--exact", action="store_true", help="only equal texts match")
    parser.add_argument("--query-column", metavar="NAME")
    parser.add_argument("--text-columns", nargs="+", metavar="NAME")
    parser.add_argument(
        "--explain", nargs="?", type=int, const=10, metavar="N", help="show N matches (10)"
    )


def _run_decontaminate(arguments: argparse.Namespace) -> int:
    from datagen.explain import explain, match_table
    from datagen.row_decontaminate import decontaminate_files

    if arguments.explain is not None and not arguments.inputs and not arguments.against:
        print(explain(arguments.output, count=arguments.explain))
        return 0
    if not arguments.inputs or not arguments.against:
        raise UserError(
            found="no " + ("IN" if arguments.against else "--against"),
            expected="IN... and --against SET..., or --explain and the --output of an earlier run",
            do="name files and evaluation sets; see datagen decontaminate --help",
            exit_status=2,
        )
    summary = decontaminate_files(
        arguments.inputs,
        arguments.against,
        arguments.output,
        mode=arguments.mode,
        near=not arguments.exact,
        query_column=arguments.query_column,
        text_columns=arguments.text_columns,
    )
    print(match_table(summary["matches"]), file=sys.stderr)
    if arguments.explain is not None:
        print(explain(arguments.output, count=arguments.explain), file=sys.stderr)
    return _done(summary)


def _synthesize(commands: Any) -> None:
    parser = _command(
        commands,
        "synthesize",
        _run_synthesize,
        about="Let LLMs write queries for documents, and pairs of other kinds.\n\nReads rows with "
        "text (title and language if known). Writes rows.parquet (each record with its\n"
        "provenance), rejected.parquet (with the reason) and models.json (the table per LLM).\n"
        "What was answered once is never asked again: stop it, run it again, ask for more.",
        example="datagen synthesize --documents d.jsonl --models gemma3-270m --output queries\n"
        "  datagen synthesize --models smollm2-135m-instruct --kinds classification=100 sts=50 "
        "--output pairs\n"
        "  datagen synthesize --documents d.jsonl --models http://gpu:8000/v1#Qwen/Qwen3-8B "
        "--output queries --plan",
    )
    parser.add_argument(
        "--documents", nargs="+", default=(), metavar="IN", help=f"{FILES}; for retrieval"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--models",
        nargs="+",
        metavar="M",
        help="model folders, Hub ids, packaged names, or URL#NAME of an OpenAI-compatible server",
    )
    which.add_argument(
        "--pool", metavar="FILE", help="LLMs with all their settings, as YAML; or `nemotron`"
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--per-model", type=int, metavar="N", help="queries to keep of each (100)")
    amount.add_argument(
        "--kinds",
        nargs="+",
        metavar="KIND=N",
        help="rows to keep of all LLMs: retrieval, code_translation (of documents); scratch, "
        "classification, clustering, sts, bitext, code",
    )
    parser.add_argument(
        "--languages", nargs="+", default=(), metavar="L", help="of queries, beside the documents'"
    )
    parser.add_argument(
        "--cross-lingual", type=float, default=0.0, metavar="P", help="share in another language"
    )
    parser.add_argument(
        "--calls", type=int, choices=(1, 2), default=1, help="2: large LLMs choose who asks what"
    )
    parser.add_argument(
        "--round-trip",
        metavar="ENCODER",
        help="a query must find its document in the first 20: a folder, or all-minilm-l6-v2",
    )
    parser.add_argument(
        "--round-trip-languages", nargs="+", default=("eng",), metavar="L", help="it knows (eng)"
    )
    parser.add_argument("--judge", metavar="M", help="the LLM that grades what the others wrote")
    parser.add_argument(
        "--judge-share", type=float, default=1.0, metavar="P", help="of the rows that it sees (1)"
    )
    parser.add_argument("--plan", action="store_true", help="only say what it takes, by a sample")
    parser.add_argument(
        "--key-variable", default="", metavar="NAME", help="environment variable with the key"
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of each of --models on a CPU (1)"
    )
    parser.add_argument("--cache", default=DEFAULT_CACHE, metavar="DIR", help="unpacked models")
    parser.add_argument("--ray", action="store_true", help="spread over the Ray cluster")
    _output(parser)


def _run_synthesize(arguments: argparse.Namespace) -> int:
    from datagen.synthesize import synthesize_files
    from datagen.synthesize.llm import from_model
    from datagen.synthesize.pools import load_pool
    from datagen.synthesize.wanted import wanted_of

    own: dict[str, Any] = {"key_variable": arguments.key_variable, "threads": arguments.threads}
    return _done(
        synthesize_files(
            arguments.documents,
            arguments.output,
            llms=load_pool(arguments.pool)
            if arguments.pool
            else [from_model(model, **own) for model in arguments.models],
            cache=arguments.cache,
            wanted=wanted_of(arguments),
            only_plan=arguments.plan,
            executor="ray" if arguments.ray else "local",
        )
    )


def _mine(commands: Any) -> None:
    parser = _command(
        commands,
        "mine",
        _run_mine,
        about="Mine hard negatives with an encoder.\n\nReads queries (query_id, query, positives: "
        "list of doc_id) and documents (doc_id, title, text).\nWrites mined.parquet: query_id, "
        "positives, positive_scores, negatives, negative_scores.\nExact top-k; a negative "
        "scores at most --margin times the lowest positive (sign-safe); rules combine.\n"
        "--candidates N also writes candidates.parquet: the best N of each query with their scores."
        "\n--sweep reads it in DIR and writes sweep.json: what other rules would give, in seconds."
        "\n--judge M also writes judged.parquet: whether negatives of a sample answer their query "
        "after all, and why.",
        example="datagen mine --queries q.parquet --documents d.parquet --encoder M --output out",
    )
    parser.add_argument("--queries", nargs="+", metavar="Q", help=FILES)
    parser.add_argument("--documents", nargs="+", metavar="D", help=FILES)
    parser.add_argument(
        "--encoder",
        nargs="+",
        metavar="M",
        help="model folder, packaged name or Hub id (owner/name@revision); scores are the mean of "
        "several",
    )
    parser.add_argument("--engine", choices=("torch", "vllm"), default="torch", help="of encoders")
    parser.add_argument(
        "--pooling", choices=("mean", "cls", "last"), help="of a plain transformers encoder"
    )
    parser.add_argument(
        "--normalise", action=argparse.BooleanOptionalAction, help="of its vectors, as it was made"
    )
    parser.add_argument("--query-prompt", metavar="TEXT", help="in place of what encoders declare")
    parser.add_argument("--document-prompt", metavar="TEXT")
    parser.add_argument(
        "--teachers",
        choices=("mean", "each"),
        default="mean",
        help="each: every encoder gives negatives of its own, taken in turn",
    )
    parser.add_argument("--sweep", action="store_true", help="try rules on stored scores")
    parser.add_argument("--margins", nargs="+", type=float, metavar="P", help="of --sweep")
    parser.add_argument("--max-scores", nargs="+", type=float, metavar="S", help="of --sweep")
    parser.add_argument("--margin", type=float, default=0.95, metavar="P")
    parser.add_argument("--absolute-margin", type=float, metavar="M", help="below the positive")
    parser.add_argument("--max-score", type=float, metavar="S", help="of a negative")
    parser.add_argument("--rank-window", type=int, metavar="N", help="only the best N documents")
    parser.add_argument("--skip-top", type=int, default=0, metavar="N", help="of the window")
    parser.add_argument("--sample-from", type=int, metavar="K", help="draw from the best K left")
    parser.add_argument("--languages", choices=("any", "same", "other"), default="any")
    parser.add_argument("--too-few", choices=("keep", "drop", "pad"), default="keep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--negatives", type=int, default=24, metavar="N", help="kept per query")
    parser.add_argument("--candidates", type=int, default=0, metavar="N", help="stored per query")
    parser.add_argument("--reranker", metavar="M", help="cross-encoder that judges a sample")
    parser.add_argument(
        "--judge", metavar="M", help="LLM that judges a sample: folder, name, Hub id or URL#NAME"
    )
    parser.add_argument("--judge-sample", type=int, default=500, metavar="N", help="negatives")
    parser.add_argument(
        "--key-variable", default="", metavar="NAME", help="environment variable with its key"
    )
    parser.add_argument("--cache", default=DEFAULT_CACHE, metavar="DIR", help="models, embeddings")
    _output(parser)


def _run_mine(arguments: argparse.Namespace) -> int:
    from datagen.encoder_model import stated_models
    from datagen.judge_negatives import NegativeJudge, judge_llm
    from datagen.mine_files import mine_files, required
    from datagen.mining_rules import Rules
    from datagen.packaged import resolve_model
    from datagen.sweep import sweep_file

    given = vars(arguments)
    rules = Rules(**{f.name: given[f.name] for f in dataclasses.fields(Rules) if f.name in given})
    if arguments.sweep:
        margins, caps = arguments.margins, arguments.max_scores
        return _done(sweep_file(arguments.output, rules, margins=margins, max_scores=caps))
    required(queries=arguments.queries, documents=arguments.documents, encoder=arguments.encoder)
    encoders = stated_models(
        [resolve_model(name, arguments.cache)[0] for name in arguments.encoder],
        engine=arguments.engine,
        pooling=arguments.pooling,
        normalise=arguments.normalise,
    )
    judge = arguments.judge and NegativeJudge(
        llm=judge_llm(arguments.judge, key_variable=arguments.key_variable),
        cache=arguments.cache,
        sample=arguments.judge_sample,
        seed=arguments.seed,
        responses=f"{arguments.cache}/responses",
    )
    return _done(
        mine_files(
            arguments.queries,
            arguments.documents,
            arguments.output,
            encoder=encoders,
            rules=rules,
            candidates=arguments.candidates,
            reranker=arguments.reranker,
            judge=judge or None,
            query_prompt=arguments.query_prompt,
            document_prompt=arguments.document_prompt,
            cache=f"{arguments.cache}/embeddings",
        )
    )


def _sources(commands: Any) -> None:
    parser = _command(
        commands,
        "sources",
        _run_sources,
        about="List the public data sets that a recipe can name.\n\nEvery data set of the two "
        "published mixes: size, task, licence, and whether it can be read now or what it needs. "
        "What is not known says so.",
        example="datagen sources --licence commercial --task retrieval",
    )
    parser.add_argument("--licence", choices=("commercial",), help="only those that allow it")
    parser.add_argument("--task", help="only those of this task")
    parser.add_argument("--json", action="store_true", help="all fields, a JSON object a line")


def _run_sources(arguments: argparse.Namespace) -> int:
    from datagen.schema import TASKS
    from datagen.sources import check_choice
    from datagen.sources.catalog import catalog_table

    if arguments.task is not None:
        check_choice(arguments.task, TASKS, what="task")
    rows = catalog_table(arguments.licence)
    rows = [row for row in rows if arguments.task in (None, row["task"])]
    if arguments.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return 0
    shown = ("name", "task", "samples", "licence", "commercial", "status")
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in shown]
    for line in [dict(zip(shown, shown, strict=True)), *rows]:
        cells = (line[name].ljust(width) for name, width in zip(shown, widths, strict=True))
        print("  ".join(cells).rstrip())
    print(f"{len(rows)} data sets, {sum(row['status'] == 'ready' for row in rows)} ready to read")
    return 0


def _report(commands: Any) -> None:
    parser = _command(
        commands,
        "report",
        _run_report,
        about="Write the page about a mix again.\n\nReads MIX and the steps beside it. Writes "
        "MIX/report.html, one self-contained page.",
        example="datagen report out/demo/mix --tokenizer out/demo/models/base",
    )
    parser.add_argument("mix", metavar="MIX")
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="model folder or tokenizer.json to count lengths in tokens with; else in characters",
    )


def _run_report(arguments: argparse.Namespace) -> int:
    from datagen.report import render_mix

    return _done({"report": render_mix(arguments.mix, tokenizer=arguments.tokenizer)})


def _verify(commands: Any) -> None:
    parser = _command(
        commands,
        "verify",
        _run_verify,
        about="Check a finished mix or step folder.\n\nReads every shard: digests, schemas, row "
        "numbers, scores and the ledger. Exit status 1 when a problem is found.",
        example="datagen verify out/demo/mix",
    )
    parser.add_argument("mix", metavar="MIX")


def _run_verify(arguments: argparse.Namespace) -> int:
    from datagen.verify import verify_mix

    problems = verify_mix(arguments.mix)
    _done({"mix": arguments.mix, "problems": problems})
    return 1 if problems else 0


def _diff(commands: Any) -> None:
    parser = _command(
        commands,
        "diff",
        _run_diff,
        about="Say what changed between two mixes.\n\nRows added, removed and changed by stage, "
        "source, task and language; documents; and how many negatives\nstayed. A row has changed "
        "when its instruction, positives or negatives did.",
        example="datagen diff out/monday/mix out/tuesday/mix",
    )
    parser.add_argument("mixes", nargs=2, metavar="MIX")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def _run_diff(arguments: argparse.Namespace) -> int:
    from datagen.compare_mixes import diff_mixes, diff_table

    found = diff_mixes(*arguments.mixes)
    if arguments.json:
        return _done(found)
    print(diff_table(found))
    return 0


def _show(commands: Any) -> None:
    parser = _command(
        commands,
        "show",
        _run_show,
        about="Show one query of a mix.\n\nIts positives and negatives with scores, and why each "
        "was kept.",
        example="datagen show out/demo/mix --query-id 0c1f5a31c7ab7b3a5ad0dd80b7d5a5de",
    )
    parser.add_argument("mix", metavar="MIX")
    parser.add_argument("--query-id", required=True, metavar="ID")
    parser.add_argument("--json", action="store_true", help="the row of each stage, as JSON")


def _run_show(arguments: argparse.Namespace) -> int:
    from datagen.show import find_query, show

    rows = find_query(arguments.mix, arguments.query_id)
    if arguments.json:
        return _done({"rows": rows})
    print("\n\n".join(show(row) for row in rows))
    return 0


def _export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        _run_export,
        about="Write a stage of a mix for another trainer.\n\nLayouts: sentence-transformers "
        "(Parquet: anchor, positive, negative_1..n), f2llm (Parquet: query, passage,\n"
        "negative_1..n), flagembedding (JSONL: query, pos, neg, prompt), automodel (NeMo "
        "Automodel: JSON and corpus),\nbeir (corpus, queries, qrels). Files are for one task and "
        "source each; export.json says what was written.",
        example="datagen export out/demo/mix --layout sentence-transformers --output pairs",
    )
    parser.add_argument("mix", metavar="MIX")
    parser.add_argument("--layout", required=True, metavar="L", help="one of those above")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--stage", metavar="STAGE", help="pretrain or finetune (the last)")
    parser.add_argument(
        "--negatives", type=int, metavar="N", help="of each row (what the stage asks of every row)"
    )


def _run_export(arguments: argparse.Namespace) -> int:
    from datagen.export import export_mix
    from datagen.export_layouts import writer_of

    return _done(
        export_mix(
            arguments.mix,
            arguments.output,
            writer=writer_of(arguments.layout),
            layout=arguments.layout,
            stage=arguments.stage,
            negatives=arguments.negatives,
        )
    )


def _publish(commands: Any) -> None:
    parser = _command(
        commands,
        "publish",
        _run_publish,
        about="Put a finished mix on the Hub.\n\nVerifies MIX, converts it to Parquet (queries and "
        "documents of each task and source),\nuploads it with a card and proves every file by its "
        "digest. The same command goes on\nwhere it was cut off. The token comes from HF_TOKEN.",
        example="datagen publish out/demo/mix --repo me/my-mix",
    )
    parser.add_argument("mix", metavar="MIX")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME")
    parser.add_argument("--public", action="store_true", help="a new repository is private else")
    parser.add_argument("--title", help="of the card; by default the name of the repository")
    parser.add_argument(
        "--allow-licence",
        action="append",
        default=[],
        metavar="LICENCE",
        help="publish rows of this licence, too (`unknown`: those that state none); repeatable",
    )
    parser.add_argument("--work", metavar="FOLDER", help="for the conversion (default MIX.publish)")


def _run_publish(arguments: argparse.Namespace) -> int:
    from datagen.publish import publish_mix

    return _done(
        publish_mix(
            arguments.mix,
            arguments.repo,
            title=arguments.title,
            public=arguments.public,
            allowed_licences=arguments.allow_licence,
            work=arguments.work,
        )
    )


def run() -> NoReturn:
    """The console command. Imports and compiled code are a million objects, none of them garbage:
    looking for some costs the short commands a third of a second. So does scipy's linear algebra,
    which numba loads where it finds it: none of the functions compiled here calls it."""
    gc.set_threshold(100_000)
    if sys.argv[1:2] in (["dedup"], ["decontaminate"]):
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]
        sys.setswitchinterval(0.0005)  # a reading thread waits ten times as long by default
    status = main()
    gc.freeze()
    sys.exit(status)


if __name__ == "__main__":
    run()
