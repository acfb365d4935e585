"""Score one evaluation task with the mteb library, from tables in memory.

The task becomes an instance of mteb's own class of its type, so every score is computed by mteb's
code with its defaults: 10 classifiers of 8 samples per label, 10 bootstrapped k-means runs, top
1,000 documents per query. Only two things differ from a task of its registry: the data is handed
over instead of loaded, and all items of a clustering task are used (mteb's default takes 4 %, meant
for sets of 100,000). Nothing is cached between models: mteb names every local checkpoint alike, so
its result cache would give one checkpoint the scores of another.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from trainer.tasks import EvaluationTask

SPLIT, SUBSET = "test", "default"
# task type -> (mteb's type, its class, the main score)
METRICS: Mapping[str, tuple[Any, str, str]] = {
    "retrieval": ("Retrieval", "AbsTaskRetrieval", "ndcg_at_10"),
    "sts": ("STS", "AbsTaskSTS", "cosine_spearman"),
    "bitext": ("BitextMining", "AbsTaskBitextMining", "f1"),
    "classification": ("Classification", "AbsTaskClassification", "accuracy"),
    "clustering": ("Clustering", "AbsTaskClustering", "v_measure"),
    "pair_classification": ("PairClassification", "AbsTaskPairClassification", "cosine_ap"),
}
# Their fits are thousands of passes over 512 rows, where threads only wait for each other: measured
# on two busy cores, a clustering task of 36 items took 58 s with two threads, 0.4 s with one.
_MANY_SMALL_FITS = ("classification", "multilabel_classification", "clustering")
# Classes of mteb name their columns in their own way; these are told ours.
_ATTRIBUTES: Mapping[str, Mapping[str, Any]] = {
    "sts": {"column_names": ("text_a", "text_b")},
    "clustering": {
        "input_column_name": "text",
        "label_column_name": "label",
        "max_fraction_of_documents_to_embed": None,
    },
    "pair_classification": {
        "input1_column_name": "text_a",
        "input2_column_name": "text_b",
        "label_column_name": "label",
    },
}


def score_task(task: "EvaluationTask", encoder: Any, *, batch_size: int) -> dict[str, Any]:
    """All scores of mteb for one task (its `main_score` among them); JSON values, NaN as None.

    `encoder` follows mteb's EncoderProtocol and minds its own threads. Deterministic: mteb seeds
    each task with 42.
    """
    with task_threads(task.type):
        return score_subset(_mteb_task(task), encoder, SPLIT, SUBSET, batch_size=batch_size)


def task_threads(kind: str) -> Any:
    """A context that limits the threads of a task's fits."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(limits=1 if kind in _MANY_SMALL_FITS else None)


def score_subset(
    task: Any, encoder: Any, split: str, subset: str, *, batch_size: int
) -> dict[str, Any]:
    """What mteb's task says of one subset of a split, by name, as JSON values."""
    with warnings.catch_warnings():
        # Of mteb's own code, once per bitext task.
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        scores = task.evaluate(
            encoder,
            split,
            subsets_to_run=[subset],
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        )
    found = plain(scores[subset])
    return {name: found[name] for name in sorted(found)}


def mteb_metadata(task: "EvaluationTask") -> Any:
    """The metadata mteb asks for, without languages: it knows fewer of them than tasks have."""
    from mteb.abstasks.task_metadata import TaskMetadata

    kind, _, main_score = METRICS[task.type]
    return TaskMetadata(
        name=task.name,
        description=task.folder,
        type=kind,
        dataset={"path": task.folder, "revision": task.digest},
        eval_splits=[SPLIT],
        eval_langs=["mul-Latn"],
        main_score=main_score,
        category="t2t",
    )


def _mteb_task(task: "EvaluationTask") -> Any:
    import mteb.abstasks

    base = getattr(mteb.abstasks, METRICS[task.type][1])
    fields = {
        "metadata": mteb_metadata(task),
        "data_loaded": True,
        **_ATTRIBUTES.get(task.type, {}),
    }
    made = type(f"Local{base.__name__}", (base,), fields)()
    made.dataset = _DATA[task.type](task)
    return made


def _retrieval_data(task: "EvaluationTask") -> dict[str, Any]:
    relevant: dict[str, dict[str, int]] = {}
    for row in task.tables["qrels"].to_pylist():
        relevant.setdefault(row["query_id"], {})[row["doc_id"]] = row["score"]
    known = set(task.tables["queries"]["query_id"].to_pylist())
    split = {
        "queries": _dataset(task.tables["queries"].rename_columns({"query_id": "id"})),
        "corpus": _dataset(task.tables["documents"].rename_columns({"doc_id": "id"})),
        "relevant_docs": {query: docs for query, docs in relevant.items() if query in known},
        "top_ranked": None,
    }
    return {SUBSET: {SPLIT: split}}


def _pair_data(task: "EvaluationTask") -> dict[str, Any]:
    return {SPLIT: _dataset(task.tables["pairs"])}


def _bitext_data(task: "EvaluationTask") -> dict[str, Any]:
    names = {"text_a": "sentence1", "text_b": "sentence2"}
    return {SPLIT: _dataset(task.tables["pairs"].rename_columns(names))}


def _classification_data(task: "EvaluationTask") -> dict[str, Any]:
    # Labels as numbers, those of the test rows first: with two of them mteb also scores average
    # precision, which takes 0 and 1 only.
    tested = set(task.tables["test"]["label"].to_pylist())
    names = tested | set(task.tables["train"]["label"].to_pylist())
    numbers = {name: i for i, name in enumerate(sorted(names, key=lambda n: (n not in tested, n)))}
    return {
        name: _dataset(
            pa.table(
                {"text": table["text"], "label": [numbers[n] for n in table["label"].to_pylist()]}
            )
        )
        for name, table in task.tables.items()
    }


def _clustering_data(task: "EvaluationTask") -> dict[str, Any]:
    return {SPLIT: _dataset(task.tables["items"])}


_DATA: Mapping[str, Callable[["EvaluationTask"], dict[str, Any]]] = {
    "retrieval": _retrieval_data,
    "sts": _pair_data,
    "bitext": _bitext_data,
    "classification": _classification_data,
    "clustering": _clustering_data,
    "pair_classification": _pair_data,
}


def _dataset(table: pa.Table) -> Any:
    import datasets

    return datasets.Dataset(datasets.table.InMemoryTable(table))


def plain(value: Any) -> Any:
    """JSON values from mteb's: numpy numbers to Python's, NaN (undefined) to None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
