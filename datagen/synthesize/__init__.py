"""A pool of open-weight LLMs writes pairs: queries for documents, texts for each other's tasks."""

from datagen.synthesize.draw import Knobs
from datagen.synthesize.files import synthesize_files
from datagen.synthesize.judge import Judge
from datagen.synthesize.llm import LLM
from datagen.synthesize.round_trip import RoundTrip
from datagen.synthesize.step import synthesize
from datagen.synthesize.tasks import write_tasks

__all__ = [
    "LLM",
    "Judge",
    "Knobs",
    "RoundTrip",
    "synthesize",
    "synthesize_files",
    "write_tasks",
]
