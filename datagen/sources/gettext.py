"""Bitext out of gettext catalogs: the English messages of a package and their translations.

The catalogs are found through the package's metadata, so nothing of it is imported. One unit is one
locale. An entry with plural forms gives one pair: the singular with the first form, or the English
plural where the language has one form for all numbers. Which side is the query is decided by a hash
of the message and the locale, so each direction gets half of the entries.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polib

from datagen.schema import UserError
from datagen.sources import (
    SourceRows,
    cap,
    check_choice,
    content_order,
    installed_package,
    make_pair,
)

ENGLISH = "eng_Latn"
DIRECTIONS = ("mixed", "from_english", "to_english")

# ISO 639-3 and ISO 15924 of each locale; macro-languages by their standard variety.
LOCALES = {
    "af": "afr_Latn", "am": "amh_Ethi", "ar": "arb_Arab", "ar_DZ": "arb_Arab", "ast": "ast_Latn",
    "az": "azj_Latn", "be": "bel_Cyrl", "bg": "bul_Cyrl", "bn": "ben_Beng", "br": "bre_Latn",
    "bs": "bos_Latn", "ca": "cat_Latn", "ckb": "ckb_Arab", "cs": "ces_Latn", "cy": "cym_Latn",
    "da": "dan_Latn", "de": "deu_Latn", "dsb": "dsb_Latn", "el": "ell_Grek", "en": "eng_Latn",
    "en_AU": "eng_Latn", "en_GB": "eng_Latn", "eo": "epo_Latn", "es": "spa_Latn",
    "es_AR": "spa_Latn", "es_CO": "spa_Latn", "es_MX": "spa_Latn", "es_VE": "spa_Latn",
    "et": "est_Latn", "eu": "eus_Latn", "fa": "pes_Arab", "fi": "fin_Latn", "fr": "fra_Latn",
    "fy": "fry_Latn", "ga": "gle_Latn", "gd": "gla_Latn", "gl": "glg_Latn", "he": "heb_Hebr",
    "hi": "hin_Deva", "hr": "hrv_Latn", "hsb": "hsb_Latn", "hu": "hun_Latn", "hy": "hye_Armn",
    "ia": "ina_Latn", "id": "ind_Latn", "ig": "ibo_Latn", "io": "ido_Latn", "is": "isl_Latn",
    "it": "ita_Latn", "ja": "jpn_Jpan", "ka": "kat_Geor", "kab": "kab_Latn", "kk": "kaz_Cyrl",
    "km": "khm_Khmr", "kn": "kan_Knda", "ko": "kor_Hang", "ky": "kir_Cyrl", "lb": "ltz_Latn",
    "lt": "lit_Latn", "lv": "lvs_Latn", "mk": "mkd_Cyrl", "ml": "mal_Mlym", "mn": "khk_Cyrl",
    "mr": "mar_Deva", "ms": "zsm_Latn", "my": "mya_Mymr", "nb": "nob_Latn", "ne": "npi_Deva",
    "nl": "nld_Latn", "nn": "nno_Latn", "os": "oss_Cyrl", "pa": "pan_Guru", "pl": "pol_Latn",
    "pt": "por_Latn", "pt_BR": "por_Latn", "ro": "ron_Latn", "ru": "rus_Cyrl", "sk": "slk_Latn",
    "sl": "slv_Latn", "sq": "als_Latn", "sr": "srp_Cyrl", "sr_Latn": "srp_Latn", "sv": "swe_Latn",
    "sw": "swh_Latn", "ta": "tam_Taml", "te": "tel_Telu", "tg": "tgk_Cyrl", "th": "tha_Thai",
    "tk": "tuk_Latn", "tr": "tur_Latn", "tt": "tat_Cyrl", "udm": "udm_Cyrl", "ug": "uig_Arab",
    "uk": "ukr_Cyrl", "ur": "urd_Arab", "uz": "uzn_Latn", "vi": "vie_Latn",
    "zh_Hans": "zho_Hans", "zh_Hant": "zho_Hant",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GettextSource:
    """The catalogs (`**/locale/<locale>/**/*.po`) of one installed package."""

    name: str = "django"
    package: str = "Django"
    folder: str = "django"  # of the package, below site-packages
    licence: str = "BSD-3-Clause"
    instruction: str = "Retrieve parallel sentences."
    direction: str = "mixed"
    locales: tuple[str, ...] = ()  # all, unless given
    max_pairs_per_language: int | None = None

    def __post_init__(self) -> None:
        check_choice(self.direction, DIRECTIONS, what="direction")

    def config(self) -> dict[str, Any]:
        version, _ = installed_package(self.package, self.folder)
        return {"kind": "gettext", **dataclasses.asdict(self), "version": version}

    def plan(self) -> list[dict[str, Any]]:
        _, root = installed_package(self.package, self.folder)
        found = {path.parts[path.parts.index("locale") + 1] for path in _catalogs(root, "*")}
        locales = sorted(self.locales or found)
        for locale in locales:
            check_choice(locale, found & LOCALES.keys(), what="locale")
        return [{**self.config(), "source": self.name, "locale": locale} for locale in locales]


def _catalogs(root: Path, locale: str) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.glob(f"**/locale/{locale}/**/*.po"))


def read(unit: dict[str, Any]) -> SourceRows:
    """The pairs of one locale."""
    version, root = installed_package(unit["package"], unit["folder"])
    if version != unit["version"]:
        raise UserError(
            found=f"{unit['package']} {version} on this worker",
            expected=f"{unit['package']} {unit['version']}, as where the build was started",
            do="install the same version everywhere",
        )
    rows = SourceRows()
    for path in _catalogs(root, unit["locale"]):
        for number, entry in enumerate(_entries(root / path)):
            rows.rows_in += 1
            english, translation = sides(entry)
            reason = _reason(entry, english, translation, unit["locale"])
            if reason:
                rows.dropped[reason] += 1
            else:
                row = f"{unit['folder']}/{path.as_posix()}#{number}"
                rows.pairs.append(_pair(unit, english, translation, row=row))
    rows.pairs, cut = cap(rows.pairs, unit["max_pairs_per_language"])
    rows.dropped.update({"over_source_cap": cut} if cut else {})
    return rows


def _entries(path: Path) -> Iterator[polib.POEntry]:
    try:
        yield from polib.pofile(str(path), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            found=f"{path} cannot be read: {error}",
            expected="a gettext catalog in UTF-8",
            do="install the package again",
        ) from error


def sides(entry: polib.POEntry) -> tuple[str, str]:
    """(original, translation) of an entry; with plural forms the ones that go together."""
    forms = entry.msgstr_plural
    if not forms:
        return entry.msgid, entry.msgstr
    return (entry.msgid_plural if len(forms) == 1 else entry.msgid), forms[0]


def _reason(entry: polib.POEntry, english: str, translation: str, locale: str) -> str | None:
    checks = {
        "obsolete": entry.obsolete,
        "fuzzy": entry.fuzzy,
        "untranslated": not translation.strip(),
        "english": LOCALES[locale] == ENGLISH,
        "same_on_both_sides": english.strip() == translation.strip(),
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _pair(unit: dict[str, Any], english: str, translation: str, *, row: str) -> dict[str, Any]:
    direction = unit["direction"]
    if direction == "mixed":
        half = int(content_order(english, unit["locale"]), 16) % 2
        direction = DIRECTIONS[1 + half]
    sides = [(english, ENGLISH), (translation, LOCALES[unit["locale"]])]
    if direction == "to_english":
        sides.reverse()
    (query, query_tag), (text, document_tag) = sides
    return make_pair(
        unit["source"],
        "bitext",
        query=query,
        text=text,
        row=row,
        query_tag=query_tag,
        document_tag=document_tag,
        instruction=unit["instruction"],
        licence=unit["licence"],
    )
