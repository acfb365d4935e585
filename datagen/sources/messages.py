"""Translated messages of gettext catalogs (.po) as records: original, translation, language.

The language of a catalog is what its header says, else what its path says (`de.po`,
`locale/pt_BR/LC_MESSAGES/app.po`). An entry that cannot be used says why in `problem`. Catalogs are
read whole: they are small, and one that is not is refused.
"""

import posixpath
from typing import Any

import polib

from datagen.codes import standard_tag
from datagen.schema import UserError
from datagen.sources.formats import DataFile, read_bytes
from datagen.sources.gettext import LOCALES, sides

MAX_CATALOG_BYTES = 1 << 26


def read_messages(file: DataFile, *, language: str) -> list[tuple[int, dict[str, Any]]]:
    """(number of the entry, from 0; {first, second, language, problem}); originals in `language`.

    UserError when the catalog cannot be read, or neither header nor path names its language.
    """
    try:
        text = read_bytes(file, limit=MAX_CATALOG_BYTES).decode("utf-8-sig")
        # With a newline in it, the text is never taken for the name of a file.
        catalog = polib.pofile(text + "\n", encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(
            found=f"{file.uri} cannot be read: {str(error)[:200]}",
            expected="a gettext catalog in UTF-8",
            do="convert it with msgconv --to-code=UTF-8, or leave it out",
        ) from error
    locale = catalog.metadata.get("Language") or _locale_of(file)
    tag = LOCALES.get(locale.replace("-", "_")) or standard_tag(locale.partition("@")[0])
    return [(i, _record(entry, tag, language)) for i, entry in enumerate(catalog)]


def _locale_of(file: DataFile) -> str:
    stem = posixpath.splitext(posixpath.basename(file.name))[0]
    folders = [part for part in file.uri.split("/")[:-1] if part not in ("LC_MESSAGES", "")]
    for part in (stem, *reversed(folders)):
        if part.replace("-", "_") in LOCALES:
            return part
    raise UserError(
        found=f"{file.uri} says nowhere what language it is in",
        expected="a Language: header, or a path such as de.po or locale/de/LC_MESSAGES/app.po",
        do="complete the header, or rename the file",
    )


def _record(entry: polib.POEntry, tag: str, language: str) -> dict[str, Any]:
    original, translation = sides(entry)
    checks = {
        "obsolete": entry.obsolete,
        "fuzzy": entry.fuzzy,
        "untranslated": not translation.strip(),
        "same_language": tag.split("_")[0] == language.split("_")[0],
        "same_on_both_sides": original.strip() == translation.strip(),
    }
    problem = next((reason for reason, holds in checks.items() if holds), None)
    return {"first": original, "second": translation, "language": tag, "problem": problem}
