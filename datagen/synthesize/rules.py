"""What generated texts may not be; every rule has a name and is counted under it.

Of any text: too_short, too_long, refused, meta_text, template_leak, repetitive. Against what was
asked: shorter_than_asked, longer_than_asked. Of a query: copies_document, copies_example,
unrelated. Of a text for a label: label_in_text. Of a task: bad_labels, copies_example, unrelated.
Of two texts: same_text, too_similar. Rules look at one request alone; equal texts of different
requests are left to dedup.

Scripts without blanks between words (Chinese, Japanese, Thai, Khmer, Lao, Burmese) are counted by
characters: so many of them stand for a word, and runs of them are compared.
"""

import re
from collections.abc import Sequence

from datagen.synthesize.phrases import LEAK, LEAK_LONG, META, META_LONG, REFUSED

MINIMUM_CHARACTERS, MAXIMUM_CHARACTERS = 8, 300
MINIMUM_UNSPACED = 4  # Chinese says in four characters what takes a line of English
COPIED_WORDS = 8  # a run of this many words out of the document is a copy, not a query
COPIED_QUERY_WORDS = 5  # and so is a whole query of this many; fewer are keywords
REPEATED_WORDS = 4  # a run of this many words must not occur twice in a short text
REPEATED_LONG = 12  # nor a run of this many in a long one, where set phrases come back
LONG_WORDS = 60
DISTINCT_SHARE, DISTINCT_LONG = 0.55, 0.3  # of the words of a text that has more than three
GROUNDED_SHARE = 0.25  # of a query's content words that its document must have
STEM_CHARACTERS = 5  # `parses` and `parser` are about the same thing
LENGTH_FACTOR = 2  # how far a length may be off what was asked, either way
SIMILAR_SHARE = 0.8  # of the stems of two texts that should differ in their words

_WORD_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
HAN_CHARACTERS, OTHER_CHARACTERS = 1.7, 4.0  # of an unspaced script that stand for a word
_COMMON = (
    "about after all and any are been but can could did does each for get had has her his how its "
    "may not one our out set she the too two was who why yes you "
    "also doesn each every from have here into itself just like make "
    "more most much must only other over return same self should some such than that their them "
    "then there these they this those used using very want were what when where which while will "
    "with would your value values function method object code string return returns"
)
_LABEL = re.compile(r"[^\W\d_]+([ '-][^\W\d_]+){0,3}")
_NO_LAST_WORD = "a an and are as at by for from in is of on or the to very with your"
_UNENDING = frozenset(_NO_LAST_WORD.split())
_COMMON_STEMS = frozenset(word[:STEM_CHARACTERS] for word in _COMMON.split())


def text_problem(text: str, *, maximum: int = MAXIMUM_CHARACTERS) -> str | None:
    """The rule that a sentence or two break, whatever they are for."""
    if problem := _size_problem(text, maximum):
        return problem
    for reason, pattern in (("template_leak", LEAK), ("refused", REFUSED), ("meta_text", META)):
        if pattern.search(text):
            return reason
    return "repetitive" if repetitive(text) else None


def document_problem(text: str, *, maximum: int) -> str | None:
    """The rule that a document breaks: it may speak of documents, hold braces and say sorry."""
    if problem := _size_problem(text, maximum):
        return problem
    if LEAK_LONG.search(text):
        return "template_leak"
    if META_LONG.search(text):
        return "meta_text"
    if REFUSED.search(text[:80]):
        return "refused"
    return "repetitive" if repetitive(text) else None


def _size_problem(text: str, maximum: int) -> str | None:
    minimum = MINIMUM_UNSPACED if _UNSPACED.search(text) else MINIMUM_CHARACTERS
    if len(text.strip()) < minimum or not folded(text):
        return "too_short"
    return "too_long" if len(text) > maximum else None


def length_problem(text: str, asked: str) -> str | None:
    """Whether a text is far off the length asked for, such as `6 to 10 words` or `50 words`."""
    numbers = [int(found) for found in re.findall(r"\d+", asked)]
    count = words_in(text)
    if count < min(numbers) / LENGTH_FACTOR:
        return "shorter_than_asked"
    return "longer_than_asked" if count > max(numbers) * LENGTH_FACTOR else None


def words_in(text: str) -> float:
    """Words of a text; of scripts without blanks what their characters amount to."""
    unspaced = len(_UNSPACED.findall(text))
    han = len(_HAN.findall(text))
    spaced = len(_UNSPACED.sub(" ", text).split()) if unspaced else len(text.split())
    kana = han < unspaced / 2  # Japanese has more kana than Han; Thai, Khmer and Burmese no Han
    return spaced + unspaced / (OTHER_CHARACTERS if kana else HAN_CHARACTERS)


def query_problem(query: str, document: str, *, examples: str, grounded: bool) -> str | None:
    """The rule that a query breaks against its document and the examples of its prompt.

    `grounded` asks for a word in common with the document: small LLMs wander off, large ones may
    find better words than the document's. It says nothing across languages.
    """
    if problem := text_problem(query):
        return problem
    if copies(query, document):
        return "copies_document"
    if folded(query) in folded(examples):
        return "copies_example"
    return "unrelated" if grounded and not related(query, document) else None


def sample_problem(text: str, label: str, *, examples: str, maximum: int = 0) -> str | None:
    """The rule that a text for a label breaks."""
    if problem := text_problem(text, maximum=maximum or MAXIMUM_CHARACTERS):
        return problem
    if label_in_text(label, text):
        return "label_in_text"
    return "copies_example" if folded(text) in folded(examples) else None


def task_problem(
    task: str, labels: Sequence[str], *, topic: str, examples: str, grounded: bool = True
) -> str | None:
    """The rule that a task breaks; with `grounded` its topic must be recognisable in it."""
    if problem := text_problem(task):
        return problem
    if labels and (problem := labels_problem(labels)):
        return problem
    if any(label_in_text(label, task) for label in labels):
        return "bad_labels"
    known = folded(examples)
    if folded(task) in known or (labels and all(folded(label) in known for label in labels)):
        return "copies_example"
    return "unrelated" if grounded and not _stems(task) & _stems(topic) else None


def labels_problem(labels: Sequence[str]) -> str | None:
    """Labels must be two or more short phrases of letters, none cut off or said twice."""
    stems = [_stems(label) or {label} for label in labels]
    usable = all(_LABEL.fullmatch(label) and label.split()[-1] not in _UNENDING for label in labels)
    nested = any(
        one <= other for i, one in enumerate(stems) for j, other in enumerate(stems) if i != j
    )
    return None if len(labels) >= 2 and usable and not nested else "bad_labels"


def other_labels(label: str, labels: Sequence[str]) -> list[str]:
    """Of the labels those that can stand beside a label: usable, and neither it nor each other."""
    kept = [label]
    for other in labels:
        if labels_problem([*kept, other]) is None:
            kept.append(other)
    return kept[1:]


def label_in_text(label: str, text: str) -> bool:
    """Whether the label, as words, occurs in the text."""
    if _UNSPACED.search(label):
        return label in text
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE) is not None


def distinct_problem(*texts: str) -> str | None:
    """Texts that are the same but for case and punctuation."""
    known = {folded(text) or text for text in texts}
    return "same_text" if len(known) < len(texts) else None


def similar_problem(one: str, other: str) -> str | None:
    """Two texts that should say something in different words share nearly all their words."""
    first, second = _stems(one), _stems(other)
    if not first or not second:
        return None
    share = len(first & second) / min(len(first), len(second))
    return "too_similar" if share > SIMILAR_SHARE else None


def copies(query: str, document: str) -> bool:
    """Whether the query is a part of the document, or shares a long run of words with it."""
    words, other = _units(query), f" {' '.join(_units(document))} "
    factor = 2 if _UNSPACED.search(query) else 1
    length = max(factor * COPIED_QUERY_WORDS, min(len(words), factor * COPIED_WORDS))
    return any(f" {run} " in other for run in _runs(words, length))


def repetitive(text: str) -> bool:
    """Whether a run of words occurs twice, or few words make up the whole text."""
    words = _units(text)
    if _UNSPACED.search(text):  # characters come back by nature, long runs of them do not
        runs = _runs(words, REPEATED_LONG)
        return len(set(runs)) < len(runs)
    long = len(words) > LONG_WORDS
    runs = _runs(words, REPEATED_LONG if long else REPEATED_WORDS)
    share = DISTINCT_LONG if long else DISTINCT_SHARE
    few = len(words) > 3 and len(set(words)) < share * len(words)
    return few or len(set(runs)) < len(runs)


def related(query: str, document: str) -> bool:
    """Whether enough of the query's content words have their stem in the document.

    Identifiers are taken apart; without content words there is no relation.
    """
    asked = _stems(query)
    return bool(asked) and len(asked & _stems(document)) >= GROUNDED_SHARE * len(asked)


def folded(text: str) -> str:
    """The words alone, in lower case."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _units(text: str) -> list[str]:
    """The words in lower case, characters where there are no blanks between words."""
    words = folded(text).split()
    if not _UNSPACED.search(text):
        return words
    return [unit for word in words for unit in (word if _UNSPACED.search(word) else [word])]


def _stems(text: str) -> set[str]:
    found: set[str] = set()
    for part in _WORD_PARTS.findall(text):
        if _UNSPACED.match(part):
            found.update(part[i : i + 2] for i in range(len(part) - 1))
        elif len(part) >= 3:
            found.add(part.casefold()[:STEM_CHARACTERS])
    return found - _COMMON_STEMS


def _runs(words: Sequence[str], length: int) -> list[str]:
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]
