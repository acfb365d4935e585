"""The layouts that public data sets come in: how one record of each becomes pairs.

`expand` gets a record under the layout's own column names and gives the pairs that it holds, as
values of `tables.COLUMNS`; it raises NotAPair for a usable row that gives none, RowError for a bad
one. What the record alone does not tell (the other labels, the contradictions of the same premise,
the texts behind ids) is gathered once, in `prepare`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from datagen.sources import content_order
from datagen.sources.tables import COLUMNS, RowError

Values = dict[str, Any]  # a record under the adapter's names, or a pair under tables.COLUMNS
Texts = Mapping[str, Mapping[str, Values]]  # role -> id -> {title, text}
# How F2LLM-v2, Nemotron and E5 write an instruction into a text.
PREFIX = re.compile(r"Instruct: ?(?P<instruction>.*?)\nQuery: ?(?P<text>.*)", re.DOTALL)
PASSED_ON = ("title", "instruction", "licence", "language", "query_language", "document_language")


class NotAPair(Exception):
    """A usable row that gives no pair; the text is the reason it is counted under."""


def _nothing(rows: Sequence[Values], options: Mapping[str, Any], texts: Texts) -> Any:
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """One layout: the columns it needs and may have, its options, and how a row becomes pairs."""

    expand: Callable[[Values, Mapping[str, Any], Any], list[Values]]
    required: tuple[str, ...]
    optional: tuple[str, ...] = PASSED_ON
    options: tuple[str, ...] = ()
    needed_options: tuple[str, ...] = ()
    tables: tuple[str, ...] = ("rows",)  # the first holds the rows, the others texts by id
    prepare: Callable[[Sequence[Values], Mapping[str, Any], Texts], Any] = _nothing
    wanted: Callable[[Values], Iterable[tuple[str, Any]]] = lambda values: ()  # (role, id)
    whole: bool = False  # must see all rows of the table at once


def _passed_on(values: Values) -> Values:
    return {name: values[name] for name in PASSED_ON if values.get(name)}


def _plain(value: Any) -> tuple[Any, str | None]:
    """(text, instruction) of a text that may carry an instruction."""
    match = PREFIX.fullmatch(value) if isinstance(value, str) else None
    return (match["text"], match["instruction"]) if match else (value, None)


def _columns(values: Values, options: Mapping[str, Any], state: Any) -> list[Values]:
    return [{name: values[name] for name in values}]


def _triplets(values: Values, options: Mapping[str, Any], state: Any) -> list[Values]:
    positives = values["text"] if isinstance(values["text"], list) else [values["text"]]
    if not positives:
        raise NotAPair("no_positive")
    negatives = values.get("negatives")
    negatives = negatives if isinstance(negatives, list) else [negatives] if negatives else []
    scores = values.get("scores") or [None] * len(positives)
    if not isinstance(scores, list) or len(scores) != len(positives):
        raise RowError("scores_do_not_fit", f"{len(positives)} positives, scores {scores!r:.100}")
    query, instruction = _plain(values["query"])
    return [
        {
            **({"instruction": instruction} if instruction else {}),
            **_passed_on(values),
            "query": query,
            "text": _plain(text)[0],
            "negatives": [_plain(negative)[0] for negative in _flat(negatives)],
            **({} if score is None else {"score": score}),
        }
        for text, score in zip(map(_inner, positives), scores, strict=True)
    ]


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The texts of a list that may hold lists and {text} objects."""
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield _inner(value)


def _inner(value: Any) -> Any:
    return value["text"] if isinstance(value, Mapping) and "text" in value else value


def _label(value: Any, labels: Any, *, known: bool = True) -> str:
    """The text of a label: by its number in a list, by its name in a mapping, or itself."""
    if value is None or value == -1 or value == "":
        raise NotAPair("no_label")
    text = value
    if isinstance(labels, Mapping):
        text = labels.get(str(value))
    elif labels and isinstance(value, int):
        text = labels[value] if 0 <= value < len(labels) else None
    elif labels:
        text = value if value in labels else None
    if not isinstance(text, str) and known:
        raise RowError("unknown_label", f"label {value!r} is none of {labels}")
    return str(text)


def _nli_negatives(
    rows: Sequence[Values], options: Mapping[str, Any], texts: Texts
) -> dict[str, list[str]]:
    """The hypotheses of each premise that are its negatives, in order."""
    found: dict[str, list[str]] = {}
    for values in rows:
        kind = _nli_kind(values, options)
        if kind in options.get("negatives", ["contradiction"]):
            found.setdefault(str(values["query"]), []).append(values["text"])
    entailed = {str(v["query"]) for v in rows if _nli_kind(v, options) == "entailment"}
    return {premise: texts for premise, texts in found.items() if premise in entailed}


NLI_LABELS = ["entailment", "neutral", "contradiction"]


def _nli_kind(values: Values, options: Mapping[str, Any]) -> str | None:
    try:
        return _label(values["label"], options.get("labels", NLI_LABELS))
    except (NotAPair, RowError):
        return None


def _nli(
    values: Values, options: Mapping[str, Any], negatives: Mapping[str, list[str]]
) -> list[Values]:
    kind = _label(values["label"], options.get("labels", NLI_LABELS))
    given = negatives.get(str(values["query"]), [])
    if kind != "entailment":
        raise NotAPair("given_as_negative" if values["text"] in given else f"only_{kind}")
    pair = {"query": values["query"], "text": values["text"], "negatives": list(given)}
    return [{**_passed_on(values), **pair}]


def _number(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError) as error:
        raise RowError("score_not_a_number", f"score is {score!r}") from error


def _sts(values: Values, options: Mapping[str, Any], state: Any) -> list[Values]:
    score = values["score"]
    if score is None:
        raise NotAPair("no_score")
    if not _number(score) >= options["min_score"]:
        raise NotAPair("score_below_minimum")
    first = {**_passed_on(values), "query": values["query"], "text": values["text"], "score": score}
    if not options.get("swapped"):
        return [first]
    return [first, {**first, "query": values["text"], "text": values["query"]}]


def _duplicates(values: Values, options: Mapping[str, Any], state: Any) -> list[Values]:
    """Each text of the set with the next one."""
    found = values["set"]
    if not isinstance(found, list):
        raise RowError("set_not_a_list", f"set is {type(found).__name__}, not a list")
    found = list(dict.fromkeys(map(str, found)))
    if len(found) < 2:
        raise NotAPair("set_of_one")
    pairs = zip(found, found[1:], strict=False)
    return [{**_passed_on(values), "query": query, "text": text} for query, text in pairs]


def _label_set(rows: Sequence[Values], options: Mapping[str, Any], texts: Texts) -> list[str]:
    """All label texts: the declared ones, or those in the table, sorted."""
    labels = options.get("labels")
    if labels:
        return list(labels.values() if isinstance(labels, Mapping) else labels)
    return sorted({v["label"] for v in rows if isinstance(v["label"], str) and v["label"]})


def _classification(values: Values, options: Mapping[str, Any], labels: list[str]) -> list[Values]:
    text = _label(values["label"], options.get("labels"))
    negatives = [label for label in labels if label != text]
    return [{**_passed_on(values), "query": values["query"], "text": text, "negatives": negatives}]


def _pair_classification(
    values: Values, options: Mapping[str, Any], labels: list[str]
) -> list[Values]:
    for name in ("first", "second"):
        if not isinstance(values[name], str):
            raise RowError(f"{name}_not_text", f"{name} is {type(values[name]).__name__}, not text")
    form = options.get("form", "{first}\n{second}")
    query = form.replace("{first}", values["first"]).replace("{second}", values["second"])
    return _classification({**values, "query": query}, options, labels)


def _bitext(values: Values, options: Mapping[str, Any], state: Any) -> list[Values]:
    languages = options["languages"]  # of the two sides
    if options.get("gaps") and not (values["first"] and values["second"]):
        raise NotAPair("untranslated")
    sides = [(values["first"], languages[0]), (values["second"], languages[1])]
    made = []
    for (query, ours), (text, theirs) in (sides, sides[::-1]) if options.get("both") else (sides,):
        tags = {"query_language": ours, "document_language": theirs}
        made.append({**_passed_on(values), **tags, "query": query, "text": text})
    return made


def _messages(values: Values, options: Mapping[str, Any], state: Any) -> list[Values]:
    """A translated message; which side is the query is decided by its content."""
    if values.get("problem"):
        raise NotAPair(values["problem"])
    for name in ("first", "language"):
        if not isinstance(values[name], str):
            raise RowError(f"{name}_not_text", f"{name} is {type(values[name]).__name__}, not text")
    sides = [(values["first"], options["language"]), (values["second"], values["language"])]
    if int(content_order(values["first"], values["language"]), 16) % 2:
        sides.reverse()
    (query, ours), (text, theirs) = sides
    made = {"query": query, "query_language": ours, "text": text, "document_language": theirs}
    return [{**{k: v for k, v in _passed_on(values).items() if k != "language"}, **made}]


def _code(values: Values, options: Mapping[str, Any], state: Any) -> list[Values]:
    pair = {"query": values["query"], "text": values["text"]}
    if options.get("query_is_code"):
        pair["query_language"] = values.get("query_language") or "code"
    return [{**_passed_on(values), **pair, "negatives": values.get("negatives")}]


def _texts(rows: Sequence[Values], options: Mapping[str, Any], texts: Texts) -> Texts:
    return texts


def _text_of(texts: Texts, role: str, identifier: Any) -> Values:
    found = texts.get(role, {}).get(str(identifier))
    if found is None:
        raise RowError(f"unknown_id_in_{role}", f"{role} have no id {identifier!r}")
    return found


def _beir(values: Values, options: Mapping[str, Any], texts: Texts) -> list[Values]:
    score = values.get("score")
    if score is not None and _number(score) < options.get("min_score", 1):
        raise NotAPair("not_relevant")
    query = _text_of(texts, "queries", values["query_id"])
    document = _text_of(texts, "documents", values["document_id"])
    return [{**_passed_on(values), "query": query["text"], **document}]


def _beir_ids(values: Values) -> Iterable[tuple[str, Any]]:
    return (("queries", values["query_id"]), ("documents", values["document_id"]))


def _by_ids(values: Values, options: Mapping[str, Any], texts: Texts) -> list[Values]:
    query = values["query"]
    if options.get("ids_only"):
        query = _text_of(texts, "queries", query)["text"]
    positives = [_text_of(texts, "documents", i) for i in _ids(values["positives"])]
    negatives = [_text_of(texts, "documents", i) for i in _ids(values.get("negatives"))]
    if not positives:
        raise NotAPair("no_positive")
    return [
        {**_passed_on(values), "query": query, **positive, "negatives": negatives}
        for positive in positives
    ]


def _ids(value: Any) -> list[Any]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    return [item.get("id") if isinstance(item, Mapping) else item for item in found]


def _ids_of(values: Values) -> Iterable[tuple[str, Any]]:
    yield "queries", values["query"]
    for name in ("positives", "negatives"):
        yield from (("documents", identifier) for identifier in _ids(values.get(name)))


ADAPTERS: Mapping[str, Adapter] = {
    "columns": Adapter(expand=_columns, required=("query", "text"), optional=COLUMNS),
    "triplets": Adapter(
        expand=_triplets, required=("query", "text"), optional=("negatives", "scores", *PASSED_ON)
    ),
    "beir": Adapter(
        expand=_beir,
        required=("query_id", "document_id"),
        optional=("score", *PASSED_ON),
        options=("min_score",),
        tables=("rows", "queries", "documents"),
        prepare=_texts,
        wanted=_beir_ids,
    ),
    "by_ids": Adapter(
        expand=_by_ids,
        required=("query", "positives"),
        optional=("negatives", *PASSED_ON),
        options=("ids_only",),
        tables=("rows", "documents"),
        prepare=_texts,
        wanted=_ids_of,
    ),
    "nli": Adapter(
        expand=_nli,
        required=("query", "text", "label"),
        options=("labels", "negatives"),
        prepare=_nli_negatives,
        whole=True,
    ),
    "sts": Adapter(
        expand=_sts,
        required=("query", "text", "score"),
        options=("swapped",),
        needed_options=("min_score",),
    ),
    "duplicates": Adapter(expand=_duplicates, required=("set",)),
    "classification": Adapter(
        expand=_classification,
        required=("query", "label"),
        options=("labels",),
        prepare=_label_set,
        whole=True,
    ),
    "pair_classification": Adapter(
        expand=_pair_classification,
        required=("first", "second", "label"),
        options=("labels", "form"),
        prepare=_label_set,
        whole=True,
    ),
    "bitext": Adapter(
        expand=_bitext,
        required=("first", "second"),
        options=("both", "gaps"),  # gaps: a side may be missing
        needed_options=("languages",),
    ),
    "messages": Adapter(
        expand=_messages,
        required=("first", "second", "language"),
        optional=("problem", *PASSED_ON),
        needed_options=("language",),
    ),
    "code": Adapter(
        expand=_code,
        required=("query", "text"),
        optional=("negatives", *PASSED_ON),
        options=("query_is_code",),
    ),
}
