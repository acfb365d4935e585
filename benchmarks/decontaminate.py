"""What decontamination catches, what it flags wrongly, and how fast it is, on real texts.

    python benchmarks/decontaminate.py TASKS DATA [--output FILE]

TASKS is a folder of task folders, DATA one of folders of Parquet files of other real rows. Plants
every evaluation text verbatim and with another case, punctuation and white space; and every one of
at least 8 words with a tenth of its words replaced by words of other texts of its task, deleted, or
swapped with their neighbours (a word of a script without blanks: two Han or kana letters, four
others). Then matches the texts of DATA: what it flags in a file of another data set than the task's
is a false alarm. One thread; seconds are of the CPU.
"""

import os

os.environ["POLARS_MAX_THREADS"] = "1"

import argparse
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.contamination import Evaluation, build_evaluation, find_hits, text_keys
from datagen.evaluation_sets import find_sets
from datagen.fold import count_words
from datagen.near_index import MINIMUM_WORDS
from datagen.near_match import QUESTION_WORDS
from datagen.row_decontaminate import decontaminate_files
from datagen.task_folders import TaskTexts

RESULTS = Path(__file__).parent / "results" / "decontaminate.md"
COLUMNS = ("query", "positive", "text", "text_a", "text_b")
LENGTHS = (8, 10, 15, 20, 40, 100, 10**9)
SAMPLE = 20_000  # texts of a file
# Files of DATA out of the data set that a task is of, by how the names begin.
SAME = {"osguide": "opensource_guide", "sib200": "flores"}
_LETTER = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"
_WORD = re.compile(rf"[\u3040-\u30ff\u3400-\u9fff]{{1,2}}|{_LETTER}{{1,4}}|.", re.DOTALL)


def split(text: str, unsegmented: bool) -> tuple[list[str], str]:
    """The words of a text, and what is between them."""
    return (_WORD.findall(text), "") if unsegmented else (text.split(), " ")


def replaced(words: list[str], places: Sequence[int], others: Callable[[], str]) -> list[str]:
    return [others() if i in places else word for i, word in enumerate(words)]


def deleted(words: list[str], places: Sequence[int], others: Callable[[], str]) -> list[str]:
    return [word for i, word in enumerate(words) if i not in places]


def swapped(words: list[str], places: Sequence[int], others: Callable[[], str]) -> list[str]:
    words = list(words)
    for i in places[: (len(places) + 1) // 2]:  # a swap moves two words
        j = i + 1 if i + 1 < len(words) else i - 1
        words[i], words[j] = words[j], words[i]
    return words


CHANGES = {"replaced": replaced, "deleted": deleted, "swapped": swapped}


def disguised(text: str) -> str:
    """The text in capitals with other punctuation and white space."""
    shown = text if text.upper().lower() != text.lower() else text.upper()
    return "  «" + re.sub(r"[.,;:!?'\"()\-]", " ", shown).replace(" ", " \t") + "» !"


def texts_of(tasks: Sequence[TaskTexts]) -> pl.DataFrame:
    """Every text once per task: task, kind, text, words, unsegmented."""
    parts = [task.texts.with_columns(task=pl.lit(task.name)) for task in tasks]
    frame = pl.concat(parts).filter(~pl.col("titled") & (pl.col("text").str.strip_chars() != ""))
    frame = frame.unique(["task", "text"], keep="first", maintain_order=True)
    letters = frame["text"].str.count_matches(_LETTER) * 3 >= frame["text"].str.len_chars()
    return frame.with_columns(words=count_words(frame["text"]), unsegmented=letters)


def planted(frame: pl.DataFrame, change: str) -> pl.Series:
    """The texts with a tenth of their words changed, seeded."""
    draw, pools = random.Random(f"plant {change}"), {}
    for (task,), part in frame.group_by("task", maintain_order=True):
        pairs = zip(part["text"], part["unsegmented"], strict=True)
        pools[task] = [word for text, letters in pairs for word in split(text, letters)[0]]
    result = []
    for task, text, letters in frame.select("task", "text", "unsegmented").iter_rows():
        words, blank = split(text, letters)
        places = draw.sample(range(len(words)), max(1, round(len(words) / 10)))
        others = lambda pool=pools[task]: draw.choice(pool)  # noqa: E731
        result.append(blank.join(CHANGES[change](words, places, others)))
    return pl.Series(result)


def caught(frame: pl.DataFrame, texts: pl.Series, evaluation: Evaluation) -> pl.Series:
    """Whether each planted text matches something of its own task."""
    hits = find_hits(texts, evaluation.texts, evaluation.near).select("row", "task").unique()
    own = frame.with_row_index("row").cast({"row": pl.Int64}).select("row", "task")
    found = own.join(hits, on=["row", "task"], how="semi")["row"]
    return own["row"].is_in(found.implode())


def near_tables(frame: pl.DataFrame, evaluation: Evaluation) -> Iterator[str]:
    """Share of the texts with a tenth of their words changed that is caught."""
    long = frame.filter(pl.col("words") >= MINIMUM_WORDS)
    documents = long.filter(kind="document")
    yield f"\n## Texts with a tenth of their words changed ({len(long):,} texts)\n"
    yield "| texts | n | " + " | ".join(CHANGES) + " |\n|---|---:|" + "---:|" * len(CHANGES)
    found = {name: caught(long, planted(long, name), evaluation) for name in CHANGES}
    long = long.with_columns(**found)
    documents = long.filter(kind="document")
    queries = long.filter(kind="query")
    question = pl.col("words") < QUESTION_WORDS
    named = [("all documents", documents)]
    named.append((f"queries of {QUESTION_WORDS} words and more", queries.filter(~question)))
    named.append(("shorter queries (another word is another question)", queries.filter(question)))
    for low, high in zip(LENGTHS, LENGTHS[1:], strict=False):
        part = documents.filter(pl.col("words").is_between(low, high, closed="left"))
        named.append((f"documents of {low}{f'-{high - 1}' if high < 10**9 else '+'} words", part))
    for task in documents["task"].unique(maintain_order=True):
        named.append((f"documents of {task}", documents.filter(task=task)))
    for name, part in named:
        shares = [f"{int(part[change].sum()) / max(len(part), 1):.1%}" for change in CHANGES]
        yield f"| {name} | {len(part):,} | " + " | ".join(shares) + " |"


def exact_table(
    frame: pl.DataFrame, tasks: Sequence[TaskTexts], places: list[str], evaluation: Evaluation
) -> Iterator[str]:
    """Share of planted texts and pairs that `datagen decontaminate` removes."""
    alone = evaluation.texts.filter(~pl.col("generic"))["key"].unique()
    telling = text_keys(frame["text"]).is_in(alone.implode())
    short = int((~telling).sum())
    frame = frame.filter(telling)
    pairs = pl.concat([task.pairs for task in tasks]).unique(maintain_order=True)
    pairs = pairs.filter(pl.all_horizontal(pl.all().str.strip_chars() != ""))
    planted_rows = {
        "queries": (frame.filter(kind="query")["text"].to_list(), None),
        "documents": (frame.filter(kind="document")["text"].to_list(), None),
        "pairs": (pairs["a"].to_list(), pairs["b"].to_list()),
    }
    yield "\n## Planted as they are, and in another case, punctuation and white space\n"
    yield "| planted | n | verbatim | changed |\n|---|---:|---:|---:|"
    for name, (queries, documents) in planted_rows.items():
        shares = []
        for change in (str, disguised):
            columns = {"query": [change(text) for text in queries]}
            if documents:
                columns["positive"] = [change(text) for text in documents]
            shares.append(_removed(columns, places))
        yield f"| {name} | {len(queries):,} | {shares[0]:.2%} | {shares[1]:.2%} |"
    yield f"\nLeft out alone: {short} texts under 3 words and 12 characters; they match as pairs."


def _removed(columns: dict[str, list[str]], places: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table(columns), f"{folder}/in.parquet")
        counts = decontaminate_files([f"{folder}/in.parquet"], places, f"{folder}/out")
    return counts["removed"] / counts["rows"]


def same_source(file: Path, task: str) -> bool:
    stem = re.split(r"[-_]", task)[0]
    return file.stem.startswith((stem, SAME.get(stem, stem)))


def alarm_table(files: Sequence[Path], evaluation: Evaluation) -> Iterator[str]:
    """Near matches in the texts of each file, by whether the task is of the same data set."""
    yield "\n## Real texts: near matches, and speed\n"
    yield "False alarms are near matches with a task of another data set.\n"
    yield "| file | texts | MB | false alarms | same data set | texts/s | MB/s |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    total: list[float] = [0, 0.0, 0, 0.0]
    for file in files:
        rows = pq.read_table(file)
        columns = [pl.Series(rows[name]) for name in COLUMNS if name in rows.column_names]
        texts = pl.concat([c.alias("text") for c in columns]).drop_nulls()
        texts = texts.unique(maintain_order=True).head(SAMPLE)
        start = time.process_time()
        hits = find_hits(texts, evaluation.texts, evaluation.near)
        seconds = time.process_time() - start
        near = hits.filter(pl.col("similarity") < 1)
        same = pl.Series([same_source(file, task) for task in near["task"]], dtype=pl.Boolean)
        false, own = near.filter(~same)["row"].n_unique(), near.filter(same)["row"].n_unique()
        size = float(texts.str.len_bytes().sum()) / 1e6
        rate = f"{len(texts) / seconds:,.0f} | {size / seconds:.1f}"
        name = f"{file.parent.name}/{file.stem}"
        yield f"| {name} | {len(texts):,} | {size:.1f} | {false} | {own} | {rate} |"
        total = [a + b for a, b in zip(total, (len(texts), size, false, seconds), strict=True)]
    count, size, alarms, seconds = total
    yield (
        f"| all | {count:,.0f} | {size:.1f} | {alarms:.0f} ({alarms / count:.4%}) | | "
        f"{count / seconds:,.0f} | {size / seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks")
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tasks = [found.read() for found in find_sets(arguments.tasks)]
    frame = texts_of(tasks)
    start = time.process_time()
    evaluation = build_evaluation(tasks)
    seconds = time.process_time() - start
    lines = [
        "# Decontamination",
        f"\n{len(tasks)} tasks, {len(frame):,} texts; {len(evaluation.near.texts):,} of them and "
        f"{len(evaluation.near.index):,} shingles in the near-match index, built in "
        f"{seconds:.1f} s. One thread, CPU seconds. "
        "Made by `python benchmarks/decontaminate.py TASKS DATA`.",
    ]
    lines += exact_table(frame, tasks, [arguments.tasks], evaluation)
    lines += near_tables(frame, evaluation)
    lines += alarm_table(sorted(arguments.data.glob("*/*.parquet")), evaluation)
    text = "\n".join(lines) + "\n"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
