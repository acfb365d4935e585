"""Text forms under which two texts count as the same: `fold` for dedup, `squeeze` for evaluation.

`fold` sets case, punctuation, compatibility forms and invisible characters aside and leaves words
with one blank between them. What carries meaning stays: digits and what parts them (`1.5` is not
`15`), signs (`-5`, `C++`, `5 %`), accents. Commands and formulas, where a bracket or a capital is
the meaning (`ls -l` and `ls -L`), keep everything but white space.

`squeeze` drops case, punctuation and all white space: evaluation texts must not slip through.

Everything is polars expressions over a whole column, 15 MB/s and core. They are the definition;
what is much used has a compiled twin (`fold_kernel`) that is tested to give the same.
"""

import polars as pl

MINIMUM_CHARACTERS = 40  # shorter texts are the same only when every word and blank is
CODE_CHARACTERS = 400  # longer code is compared by its words; one bracket is no longer the meaning
# Scripts written without blanks between words: letters a word has in them, for counting words.
DENSE = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
SPARSE = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
UNSEGMENTED = rf"[{DENSE}{SPARSE}]"
DENSE_WORD, SPARSE_WORD = 2, 4

CODE = r"[{}\[\]<>=|`$\\~^*_#@&+/%]"
_OPTION = r"(?:^|\s)(?:-\pL(?:\s|$)|--\pL)"
QUOTES = {"’‘ʼʻ′´": "'", "“”„": '"'}
INVISIBLE = r"[\p{Cf}'’‘ʼʻ′´]"  # apostrophes too: "don't" is "dont"
RAISED = r"([⁰¹²³⁴-⁹₀-₉]+)"  # compatibility forms would make 10² the number 102
_NEGATIVE = r"(^|[\s(])-(\d)"
PUNCTUATION = r"[\p{P}--[#%&@*/\\]]"  # dropped: "e-mail" is "email"
_BEFORE_DIGIT = rf"{PUNCTUATION}+(\d)"  # but "1.5" is "1 5", never 15


def plain(texts: pl.Expr) -> pl.Expr:
    """NFC with every run of white space as one blank: the text that ids are computed on."""
    return texts.str.normalize("NFC").str.replace_all(r"\s+", " ").str.strip_chars()


def fold(texts: pl.Series) -> pl.Series:
    """The texts without case and punctuation, words parted by one blank; never empty for a text."""
    return fold_plain(texts.alias("text").to_frame().select(plain(pl.col("text")))["text"])


def fold_plain(texts: pl.Series) -> pl.Series:
    """`fold` for texts that are `plain` already."""
    text = pl.col("text")
    frame = texts.alias("text").to_frame().with_row_index()
    dense = text.str.count_matches(CODE) * 20 >= text.str.len_chars()
    code = (text.str.len_chars() < CODE_CHARACTERS) & (dense | text.str.contains(_OPTION))
    form = pl.col("form")
    parts = [
        frame.filter(~code).with_columns(_natural(text).alias("form")),
        frame.filter(code).with_columns(_straight(text).alias("form")),
    ]
    forms = pl.concat(parts).sort("index")
    return forms.select(pl.when(form == "").then(text).otherwise(form).alias("form"))["form"]


def _straight(text: pl.Expr) -> pl.Expr:
    for quotes, plain_quote in QUOTES.items():
        text = text.str.replace_all(f"[{quotes}]", plain_quote)
    return text


def _natural(text: pl.Expr) -> pl.Expr:
    return (
        text.str.replace_all(INVISIBLE, "")
        .str.replace_all(RAISED, " ^$1 ")
        .str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_many(["ß", "ς"], ["ss", "σ"])
        .str.replace_all(_NEGATIVE, "${1}\u2212$2")
        .str.replace_all(_BEFORE_DIGIT, " $1")
        .str.replace_all(PUNCTUATION, "")
        .str.replace_all(r"\s+", " ")
        .str.strip_chars()
    )


def squeeze(texts: pl.Series) -> pl.Series:
    """Letters, marks, digits and symbols alone, without case: what evaluation texts match by."""
    return (
        texts.str.normalize("NFKC")
        .str.to_lowercase()
        .str.replace_many(["ß", "ς"], ["ss", "σ"])
        .str.replace_all(r"[\p{P}\p{Z}\p{C}\s]+", "")
    )


def count_words(texts: pl.Series) -> pl.Series:
    """Words of each text; in scripts without blanks, as many as its letters usually make."""
    text = pl.col("text")
    dense, sparse = text.str.count_matches(DENSE), text.str.count_matches(SPARSE)
    other = text.str.replace_all(UNSEGMENTED, " ").str.count_matches(r"[^\s\p{P}]+")
    words = other + dense // DENSE_WORD + sparse // SPARSE_WORD
    return texts.alias("text").to_frame().select(words.alias("words"))["words"]
