"""`datagen mine`: hard negatives for plain files of queries and documents."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.encoder_model import EncoderModel, encoder_model, inspect_unit_encoder
from datagen.judge_negatives import NegativeJudge, judge_negatives
from datagen.mine import embed_texts, mine_negatives
from datagen.mine_input import MiningInput, read_mining_input
from datagen.mining_rules import Rules
from datagen.rerank import judge_sample, load_reranker
from datagen.schema import QUARANTINE, UserError
from datagen.steps import run_steps
from datagen.store import Folder, Manifest, read_table, write_parquet
from datagen.synthesize.kinds.negative import VERDICTS


def mine_files(
    queries: str | Sequence[str],
    documents: str | Sequence[str],
    output: str,
    *,
    encoder: str | EncoderModel | Sequence[str | EncoderModel],
    margin: float | None = 0.95,
    negatives: int = 24,
    rules: Rules | None = None,
    candidates: int = 0,
    reranker: str | None = None,
    judge: NegativeJudge | None = None,
    executor: Literal["ray", "local"] = "local",
    **embedding: Any,
) -> dict[str, Any]:
    """Mine over plain files and write `mined.parquet` in `output`; returns the counts.

    Queries have query_id, query and positives (list of doc_id), and may have an instruction and a
    language; documents doc_id, text and perhaps title and language. Columns written: query_id,
    positives, positive_scores, negatives and negative_scores, best first (those that pad come
    last). Of several encoders the scores are the mean; `rules.teachers` says whether each has
    negatives of its own. With `candidates`, `candidates.parquet` has the best of each query
    whatever the rules. A `reranker` folder judges a sample of the negatives, and so does an LLM as
    `judge`, whose verdicts and reasons become `judged.parquet`.
    `embedding` is as in `embed_texts`; work in progress is kept in `output`/.work, from which the
    same command resumes, and deleted at the end. UserError for what cannot be used.
    """
    several = [encoder] if isinstance(encoder, str | EncoderModel) else encoder
    encoders = [encoder_model(one) for one in several]
    for one in encoders:
        inspect_unit_encoder(one)
    ranker = load_reranker(reranker) if reranker else None
    rules = rules or Rules(margin=margin, negatives=negatives)
    data = read_mining_input(_listed(queries), _listed(documents))
    read = data.step()
    embedding = {"stored": "float32", **embedding}
    teachers = [
        embed_texts(read, encoder=one, name=f"teacher-{number}", **embedding)
        for number, one in enumerate(encoders[1:], 1)
    ]
    mine = mine_negatives(
        read,
        encoder=encoders[0],
        rules=rules,
        candidates=candidates,
        teachers=teachers,
        **embedding,
    )
    judging = [judge_negatives(mine, read, judge)] if judge else []
    folder = Folder(output)
    work = folder.folder(".work")
    done = run_steps([read, *teachers, mine, *judging], work.uri, executor=executor)
    manifest = done["mine"]
    place = work.folder(mine.place)
    mined = _as_given(read_table(place, "mined"), data)
    result = _counts(mined, data, manifest, rules)
    if ranker is not None:
        result["false_negatives"] = judge_sample(ranker, mined, data, seed=rules.seed)
    for step in judging:
        judged, verdicts = done[step.name], work.folder(step.place)
        result["judged_negatives"] = judged.stats["judged_negatives"]
        write_parquet(folder, "judged.parquet", _judged_as_given(verdicts, judged, data))
    kept = pc.greater(pc.list_value_length(mined["negatives"]), 0).to_numpy()
    keep = kept if rules.too_few == "drop" else None
    write_parquet(folder, "mined.parquet", mined, keep=keep)
    if candidates:
        listed = read_table(place, "candidates")
        write_parquet(folder, "candidates.parquet", _candidates_as_given(listed, data))
    if data.quarantine:
        rows = pa.Table.from_pylist(data.quarantine, schema=QUARANTINE)
        write_parquet(folder, "quarantine.parquet", rows)
    folder.delete_folder(".work")
    return {"output": f"{output}/mined.parquet", **result}


def required(**arguments: Any) -> None:
    """UserError unless all are given: without --sweep they are needed."""
    missing = [f"--{name}" for name, value in arguments.items() if not value]
    if missing:
        raise UserError(
            found=f"no {', '.join(missing)}",
            expected="queries, documents and an encoder, or --sweep",
            do="see datagen mine --help",
            exit_status=2,
        )


def _listed(paths: str | Sequence[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def _counts(mined: pa.Table, data: MiningInput, manifest: Manifest, rules: Rules) -> dict[str, Any]:
    facts = manifest.stats["mining"]["sources"]["queries"]
    found = pc.list_value_length(mined["negatives"]).to_numpy()
    return {
        "queries": len(mined),
        "documents": len(data.documents),
        "quarantined": len(data.quarantine),
        "negatives": int(found.sum()),
        "queries_with_fewer_negatives": int(np.sum(found < rules.negatives)),
        "dropped_queries": facts["dropped"],
        "padded_negatives": facts["padded"],
        "median_lowest_positive_score": facts["median_lowest_positive_score"],
        "ceiling_share_of_top": facts["ceiling_share_of_top"],
        "near_duplicates_kept_out": sum(facts["caught"].values()),
        "rules": rules.record(),
        "encoder": manifest.config["embedding"]["encoder"],
        "seconds": manifest.run["seconds"],
    }


def _as_given(mined: pa.Table, data: MiningInput) -> pa.Table:
    """The mined rows under the ids and types of the user's files."""
    repeated = pa.list_(data.doc_id_type)
    columns = {
        "query_id": data.query_ids,
        "positives": mined["positives"].cast(repeated),
        "positive_scores": mined["positive_scores"],
        "negatives": mined["negatives"].cast(repeated),
        "negative_scores": mined["negative_scores"],
    }
    return pa.table(columns)


def _judged_as_given(place: Folder, manifest: Manifest, data: MiningInput) -> pa.Table:
    """The verdicts under the user's ids, negatives first, in the order of the sample."""
    if not manifest.table("judged_negatives"):
        rows = VERDICTS.empty_table()
    else:
        rows = read_table(place, "judged_negatives")
    rows = rows.sort_by([("side", "ascending"), ("request", "ascending")])
    for name, kind in (("query_id", data.query_ids.type), ("doc_id", data.doc_id_type)):
        number = rows.column_names.index(name)
        rows = rows.set_column(number, name, rows[name].cast(kind))
    return rows.drop_columns(["request", "source"])


def _candidates_as_given(listed: pa.Table, data: MiningInput) -> pa.Table:
    columns = {
        "query_id": data.query_ids,
        "lowest_positive_score": listed["lowest_positive_score"],
        "documents": listed["documents"].cast(pa.list_(data.doc_id_type)),
        "scores": listed["scores"],
    }
    return pa.table(columns)
