"""The dataset card of a mix: README.md as the Hub reads it, metadata first.

The card says what the mix holds and how it came to be; every number on it is counted from the
shards or read from manifests. Names come from sources that anyone may have written: in the metadata
they pass through a YAML writer, in the text every character that Markdown acts on is escaped.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import yaml
from markupsafe import Markup

from datagen.codes import ISO_639_3
from datagen.escape import inline, visible
from datagen.overview import Overview, count_mix
from datagen.report import environment
from datagen.report_tables import totals, written_by
from datagen.steps import Context, Step
from datagen.store import read_manifest

CARD = "README.md"

# The first two-letter code of the table wins where two stand for one language (nb and no for nob).
_ISO_639_1 = {three: two for two, three in reversed(ISO_639_3.items())}
_THREE_LETTERS = re.compile(r"[a-z]{3}")

_TASK_CATEGORIES = {
    "retrieval": "text-retrieval",
    "bitext": "translation",
    "sts": "sentence-similarity",
    "classification": "text-classification",
    "clustering": "text-classification",
    "pair_classification": "text-classification",
}
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
)

# Licence identifiers of the Hub that open data and models usually carry.
_LICENCES = """
apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 gemma gfdl gpl
gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 mit
mpl-2.0 odbl odc-by pddl postgresql unlicense zlib
"""
HUB_LICENCES = frozenset(_LICENCES.split())


def write_card(
    mix: Step,
    report: Step,
    *,
    title: str,
    licence: str | None = None,
    recipe: str = "",
    command: str = "",
    name: str = "card",
) -> Step:
    """Write `README.md` into the mix.

    `licence` is the one under which the collection as a whole is given, as the Hub spells it;
    without it the card lists the licences of the rows.
    """
    config = {"title": title, "licence": licence, "recipe": recipe, "command": command}
    return Step(
        name=name,
        version=1,
        config=config,
        inputs={"mix": mix, "report": report},
        work=_work,
        summary="write the dataset card",
    )


def _work(context: Context) -> None:
    folder = context.inputs["mix"]
    facts = read_manifest(context.inputs["report"]).stats["report"]
    card = render_card(count_mix(folder), facts, **context.config)
    folder.write_bytes(CARD, card.encode())


def published_card(
    overview: Overview,
    facts: Mapping[str, Any],
    *,
    configs: Sequence[Mapping[str, Any]],
    title: str,
    repo: str,
) -> str:
    """The text of the card of a mix as `datagen publish` lays it out (see datagen.published)."""
    return render_card(
        overview,
        facts,
        title=title,
        licence=None,
        recipe="",
        command="",
        configs=configs,
        repo=repo,
    )


def render_card(
    overview: Overview,
    facts: Mapping[str, Any],
    *,
    title: str,
    licence: str | None,
    recipe: str,
    command: str,
    configs: Sequence[Mapping[str, Any]] = (),
    repo: str = "",
) -> str:
    """The text of the card; `facts` as the report step gathered them."""
    header = metadata(overview, title=title, licence=licence, configs=configs)
    return (
        environment(inline)
        .get_template("card.md.jinja")
        .render(
            header=Markup(yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100)),
            title=title,
            recipe=recipe,
            command=_code(command),
            totals=totals(overview),
            stages={stage: source_table(overview, stage) for stage in overview.stages},
            settings={stage["name"]: stage for stage in overview.manifest.config["stages"]},
            llms=llm_table(overview),
            tasks=some(facts["evaluation_tasks"], 200),
            manifest=overview.manifest,
            repo=repo,
            example=configs[0]["config_name"] if configs else "",
            split=configs[0]["data_files"][-1]["split"] if configs else "",
        )
    )


def metadata(
    overview: Overview,
    *,
    title: str,
    licence: str | None,
    configs: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The YAML header of the card; `configs` are those of the mix's own folder unless given."""
    tasks = overview.rows["task"].unique().to_list()
    queries = max(int(overview.rows.filter(stage=s)["rows"].sum()) for s in overview.stages)
    tables = ["documents", *overview.stages]
    default = overview.stages[-1]
    header: dict[str, Any] = {
        "pretty_name": visible(title),
        "license": licence or hub_licences(overview),
        "language": hub_languages(overview),
        "task_categories": sorted({_TASK_CATEGORIES[task] for task in tasks}),
        "size_categories": [next((name for limit, name in _SIZES if queries < limit), "n>1T")],
        "tags": _tags(overview),
        "configs": list(configs)
        or [
            {
                "config_name": table,
                "data_files": [{"split": "train", "path": f"{table}-*.arrow"}],
                **({"default": True} if table == default else {}),
            }
            for table in tables
        ],
    }
    return header


def _tags(overview: Overview) -> list[str]:
    tags = ["text-embeddings", "hard-negatives", "embedmix"]
    tags += ["synthetic"] if overview.rows["llm"].drop_nulls().len() else []
    return tags + (["code"] if overview.programming_languages else [])


def hub_languages(overview: Overview) -> list[str]:
    """Language codes as the Hub lists them: ISO 639-1 where there is one, else ISO 639-3."""
    codes = {_ISO_639_1.get(language, language) for language in overview.languages if language}
    return sorted(code for code in codes if code in ISO_639_3 or _THREE_LETTERS.fullmatch(code))


def hub_licences(overview: Overview) -> list[str]:
    """The licences of the rows and of the LLMs that wrote some, as the Hub spells them."""
    stated = set(overview.rows["licence"].to_list())
    stated |= set(overview.rows["llm_licence"].drop_nulls().to_list())
    found = {hub_licence(licence) for licence in stated}
    return sorted(found)


def hub_licence(licence: str | None) -> str:
    """`CC-BY-SA-4.0` -> `cc-by-sa-4.0`; `other` for one that the Hub has no name for."""
    if not licence:
        return "unknown"
    name = spelled(licence)
    return name if name in HUB_LICENCES else "other"


def spelled(licence: str) -> str:
    """`CC BY 4.0 ` -> `cc-by-4.0`: the form in which names of licences are compared."""
    return licence.strip().lower().replace(" ", "-")


def source_table(overview: Overview, stage: str) -> list[dict[str, Any]]:
    """One line for each task and source of a stage."""
    lines = []
    for (task, source), part in overview.rows.filter(stage=stage).group_by("task", "source"):
        documents = overview.documents.filter(source=source)
        languages = {*part["language"].unique(), *documents["language"].unique()} - {None}
        lines.append(
            {
                "task": task,
                "source": source,
                "origin": ", ".join(sorted(part["origin"].unique())),
                "rows": int(part["rows"].sum()),
                "languages": some(sorted(languages)),
                "licences": some(sorted(part["licence"].drop_nulls().unique())),
            }
        )
    return sorted(lines, key=lambda line: (line["task"], -line["rows"], line["source"]))


def llm_table(overview: Overview) -> list[dict[str, Any]]:
    """LLMs that wrote rows: name, licence, rows of all stages."""
    if not (lines := written_by(overview)):
        return []
    keys = ["llm", "llm_licence"]
    summed = pl.DataFrame(lines).group_by(keys).agg(pl.col("rows").sum()).sort(keys)
    return list(summed.iter_rows(named=True))


def some(names: Sequence[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _code(command: str) -> Markup:
    """A command for a fenced block, which it cannot leave."""
    return Markup(visible(command).replace("```", ""))
