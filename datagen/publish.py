"""Publish a mix on the Hub: checked, converted to Parquet, uploaded, verified by digest.

Everything that can be refused is refused before the conversion: a name that is no repository, rows
that may not be given on, a token that is not there, a mix that does not verify. What was converted
lies beside the mix until the upload is complete, so the same command goes on where it was cut off.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datagen.card import HUB_LICENCES, published_card, spelled
from datagen.export import Mix
from datagen.overview import LEDGER, Overview, count_mix, steps_beside
from datagen.published import convert
from datagen.report import PAGE
from datagen.report_tables import evaluation_tasks, gather_facts
from datagen.schema import UserError
from datagen.upload import CARD, check_repo, check_token, open_repo, upload_folder
from datagen.verify import verify_mix

log = logging.getLogger("embedmix")

UNKNOWN = "unknown"
# Licences that let anyone give the rows on, changed in form as they are here.
REDISTRIBUTABLE = (frozenset(n for n in HUB_LICENCES if "-nd-" not in n) | {"psf-2.0"}) - {"cc"}


def publish_mix(
    mix: str,
    repo: str,
    *,
    title: str | None = None,
    public: bool = False,
    allowed_licences: Sequence[str] = (),
    work: str | None = None,
) -> dict[str, Any]:
    """Put a finished mix into the dataset repository `repo` (org/name); gives where it is.

    The repository is private unless `public`. `allowed_licences` names licences beside those known
    to allow redistribution (`unknown`: rows that state none). `work` is where the conversion lies,
    by default `MIX.publish`. UserError for what cannot be published.
    """
    check_repo(repo)
    opened = Mix.open(mix)
    overview = count_mix(opened.folder)
    refuse_licences(overview, allowed_licences)
    check_token(repo)
    url = open_repo(repo, private=not public)  # refused now rather than after the conversion
    problems = verify_mix(mix)
    if problems:
        raise UserError(
            found=f"{mix} does not verify: {'; '.join(problems[:3])}",
            expected="a mix whose shards have their digests, schemas and row numbers",
            do="build the mix again",
        )
    place = _work_folder(mix, work, digest=opened.manifest.digest)
    log.info("publish: converting %s to Parquet", mix)
    configs = convert(opened, place)
    for name in (LEDGER, PAGE):
        if opened.folder.exists(name):
            (place / name).write_bytes(opened.folder.read_bytes(name))
    facts = {"evaluation_tasks": evaluation_tasks(gather_facts(steps_beside(opened.folder)))}
    name = title or repo.split("/")[1]
    card = published_card(overview, facts, configs=configs, title=name, repo=repo)
    (place / CARD).write_text(card, encoding="utf-8")
    message = f"Mix {opened.manifest.fingerprint[:16]}"
    done = upload_folder(str(place), repo, message=message)
    shutil.rmtree(place)
    return {
        "url": url,
        "commit": done.commit,
        "files": done.files,
        "bytes": done.size,
        "configs": [config["config_name"] for config in configs],
    }


def refuse_licences(overview: Overview, allowed: Sequence[str]) -> None:
    """Raise UserError if rows, or LLMs that wrote some, have a licence not known to allow this."""
    fine = REDISTRIBUTABLE | {spelled(licence) for licence in allowed}
    refused: dict[str, set[str]] = {}
    for column, owner in (("licence", "source"), ("llm_licence", "llm")):
        pairs = overview.rows.select(column, owner).unique()
        for licence, name in pairs.iter_rows():
            if name is not None and spelled(licence or UNKNOWN) not in fine:
                refused.setdefault(licence or UNKNOWN, set()).add(name)
    if refused:
        listed = "; ".join(
            f"{licence}: {', '.join(sorted(names))}" for licence, names in sorted(refused.items())
        )
        raise UserError(
            found=f"licences that are not known to allow redistribution ({listed[:600]})",
            expected="rows that may be given on: apache-2.0, mit, cc-by-4.0 and the like",
            do="leave these sources out of the mix, or, if you may publish them, name each licence "
            "with --allow-licence",
        )


def _work_folder(mix: str, work: str | None, *, digest: str) -> Path:
    """The folder of the conversion, empty unless it is of this very mix."""
    if work is None and "://" in mix:
        raise UserError(
            found=f"{mix}, which is not a local folder",
            expected="a local folder for the conversion",
            do="name one with --work",
            exit_status=2,
        )
    place = Path(work or f"{mix.rstrip('/')}.publish")
    mark = place / ".mix"
    if mark.is_file() and mark.read_text() == digest:
        return place
    if place.exists() and (not mark.is_file() and any(place.iterdir())):
        raise UserError(
            found=f"{place}, which holds other files",
            expected="a folder that is not there yet, or one of an earlier upload",
            do="choose another --work, or delete it",
            exit_status=2,
        )
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    mark.write_text(digest)
    return place
