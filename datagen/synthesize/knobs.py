"""What a recipe decides of the requests, and the choices that everything else is drawn from."""

from dataclasses import dataclass

from datagen.schema import UserError
from datagen.synthesize.languages import check_languages

QUERY_TYPES = ("question", "keywords", "statement", "summary", "yes_or_no")
ONE_CALL_TYPES = QUERY_TYPES[:3]
QUERY_WORDS = ("4 to 7 words", "6 to 10 words", "8 to 14 words")
# What a length means for a type of query.
LENGTHS = {
    "question": {"short": "4 to 8 words", "medium": "8 to 14 words", "long": "15 to 25 words"},
    "keywords": {"short": "2 to 3 words", "medium": "3 to 5 words", "long": "5 to 8 words"},
    "statement": {"short": "5 to 8 words", "medium": "8 to 14 words", "long": "15 to 25 words"},
    "summary": {"short": "10 to 15 words", "medium": "15 to 25 words", "long": "25 to 40 words"},
    "yes_or_no": {"short": "4 to 8 words", "medium": "8 to 14 words", "long": "15 to 25 words"},
}
DIFFICULTIES = ("easy for anyone", "for a student", "for an expert")
CLARITIES = ("clear", "understandable with some effort", "ambiguous")
RARITIES = ("extremely rare", "rare", "common")
SHORT_WORDS = ("3 to 5 words", "5 to 10 words", "8 to 15 words")
TEXT_WORDS = ("5 to 10 words", "10 to 20 words", "20 to 30 words")
UNITS = ("phrase of 4 to 8 words", "sentence of 8 to 20 words", "paragraph of 30 to 60 words")
HIGH_SCORES, LOW_SCORES = (4.0, 4.5, 5.0), (2.5, 3.0, 3.5)
FLAWS = ("one number or name is wrong", "one important word is wrong", "one part is left out")
ASPECTS = ("subject", "opinion", "intent", "urgency", "emotion", "kind", "audience", "problem")
SHAPES = ("short_long", "long_short", "short_short", "long_long")
TASK_KINDS = (*(f"scratch/{shape}" for shape in SHAPES), "classification", "clustering")
PROGRAMS = ("function", "class", "short program")
PROGRAMMING_LANGUAGES = {
    "python": "Python", "javascript": "JavaScript", "typescript": "TypeScript", "java": "Java",
    "c": "C", "cpp": "C++", "csharp": "C#", "go": "Go", "rust": "Rust", "kotlin": "Kotlin",
    "swift": "Swift", "ruby": "Ruby", "php": "PHP", "perl": "Perl", "r": "R", "julia": "Julia",
    "scala": "Scala", "haskell": "Haskell", "lua": "Lua", "bash": "Bash", "sql": "SQL",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What a recipe decides of the requests; the rest is drawn."""

    languages: tuple[str, ...] = ("eng",)  # ISO 639-3; an LLM gets those that it writes
    language_temperature: float = 1.0  # 1: as on the web; higher: more of the small languages
    cross_lingual: float = 0.0  # share whose query is in another language than the document
    calls: int = 1  # 2: the LLM first chooses who asks what; right for large ones
    task_kinds: tuple[str, ...] = ("classification",)  # out of TASK_KINDS, in turn
    tasks_per_call: int = 1
    labels: bool = True  # classification tasks come with labels; right for small LLMs
    long_words: tuple[int, ...] = (50, 100, 200, 300)  # of long texts written from scratch
    programming_languages: tuple[str, ...] = tuple(PROGRAMMING_LANGUAGES)

    def __post_init__(self) -> None:
        check_languages(self.languages)
        unknown = [kind for kind in self.task_kinds if kind not in TASK_KINDS]
        unknown += [p for p in self.programming_languages if p not in PROGRAMMING_LANGUAGES]
        right = 0 <= self.cross_lingual <= 1 and self.calls in (1, 2) and self.tasks_per_call >= 1
        if unknown or not right or not self.long_words or self.language_temperature <= 0:
            raise UserError(
                found=f"knobs {self}" + (f"; not known: {', '.join(unknown)}" if unknown else ""),
                expected="cross_lingual in 0..1, calls 1 or 2, tasks_per_call of 1 or more, a "
                "language_temperature above 0, and kinds out of " + ", ".join(TASK_KINDS),
                do="mend the knobs in the recipe",
                exit_status=2,
            )
