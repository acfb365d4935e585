"""Pools of LLMs as data: the six of llama-embed-nemotron-8b, and a user's own in a YAML file.

The paper names its LLMs (arXiv 2511.07025, section 4.3) and no settings. GPUs are those of a
replica with 80 GB each that hold the weights and leave a third or so for the KV cache: gpt-oss has
4-bit weights (13 and 63 GB), Mixtral-8x22B 282 GB, Llama-3.3-70B 141 GB, Llama-4-Scout 218 GB in
16 bit, Llama-4-Maverick 402 GB in its 8-bit version. Texts are sampled at temperature 1, as
E5-mistral does (arXiv 2401.00368, appendix C). gpt-oss would think before it answers; the answer's
channel is opened for it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from datagen.schema import UserError
from datagen.synthesize.llm import LLM

_LARGE: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "presence_penalty": 0.0,
    "max_tokens": 1024,
    "max_model_len": 8192,
    "max_num_seqs": 256,
}
# Of the languages that the makers name, those of all of the pool; more can be given to each.
_LLAMA = ("eng", "deu", "fra", "ita", "por", "hin", "spa", "tha")
_MIXTRAL = ("eng", "fra", "ita", "deu", "spa")
_MANY = (*_LLAMA, "arb", "zho", "jpn", "kor", "rus", "nld", "pol", "tur", "vie", "ind", "ukr")
_FINAL = "<|channel|>final<|message|>"

NEMOTRON = (
    LLM(
        name="gpt-oss-20b",
        model="openai/gpt-oss-20b",
        licence="Apache-2.0",
        languages=_MANY,
        answer_prefix=_FINAL,
        num_gpus=1,
        **_LARGE,
    ),
    LLM(
        name="gpt-oss-120b",
        model="openai/gpt-oss-120b",
        licence="Apache-2.0",
        languages=_MANY,
        answer_prefix=_FINAL,
        num_gpus=1,
        **_LARGE,
    ),
    LLM(
        name="Mixtral-8x22B-Instruct",
        model="mistralai/Mixtral-8x22B-Instruct-v0.1",
        licence="Apache-2.0",
        languages=_MIXTRAL,
        tensor_parallel_size=8,
        num_gpus=8,
        **_LARGE,
    ),
    LLM(
        name="Llama-3.3-70B-Instruct",
        model="meta-llama/Llama-3.3-70B-Instruct",
        licence="Llama-3.3",
        languages=_LLAMA,
        tensor_parallel_size=4,
        num_gpus=4,
        **_LARGE,
    ),
    LLM(
        name="Llama-4-Scout",
        model="meta-llama/Llama-4-Scout-17B-16E-Instruct",
        licence="Llama-4",
        languages=(*_LLAMA, "arb", "ind", "tgl", "vie"),
        tensor_parallel_size=4,
        num_gpus=4,
        **_LARGE,
    ),
    LLM(
        name="Llama-4-Maverick",
        model="meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
        licence="Llama-4",
        languages=(*_LLAMA, "arb", "ind", "tgl", "vie"),
        tensor_parallel_size=8,
        num_gpus=8,
        **_LARGE,
    ),
)
POOLS = {"nemotron": NEMOTRON}


def load_pool(name_or_path: str) -> tuple[LLM, ...]:
    """A pool by name, or out of a YAML file: a list of mappings with the fields of `LLM`."""
    if name_or_path in POOLS:
        return POOLS[name_or_path]
    try:
        entries = yaml.safe_load(Path(name_or_path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            found=f"pool {name_or_path}: {' '.join(str(error).split())}",
            expected="a YAML file, or one of " + ", ".join(POOLS),
            do="name a file that lists the LLMs",
            exit_status=2,
        ) from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(
            found=f"pool {name_or_path}: {type(entries).__name__}",
            expected="a list of mappings, one an LLM",
            do="write `- name: ...`, `  model: ...`, `  licence: ...` for each",
            exit_status=2,
        )
    return tuple(_llm(entry, name_or_path) for entry in entries)


def _llm(entry: dict[str, Any], place: str) -> LLM:
    fields = {field.name: field for field in dataclasses.fields(LLM)}
    needed = [name for name in ("name", "model", "licence") if not entry.get(name)]
    unknown = sorted(set(map(str, entry)) - set(fields))
    if needed or unknown:
        raise UserError(
            found=f"{place}, LLM {entry.get('name', '?')}: "
            + "; ".join(
                part
                for part in (
                    f"not given: {', '.join(needed)}" if needed else "",
                    f"not known: {', '.join(unknown)}" if unknown else "",
                )
                if part
            ),
            expected="fields out of " + ", ".join(fields),
            do="mend the entry",
            exit_status=2,
        )
    made = dict(entry)
    if "languages" in made:
        made["languages"] = tuple(made["languages"])
    if isinstance(made.get("replicas"), list):
        made["replicas"] = tuple(made["replicas"])
    if "engine" in made:
        made["engine"] = tuple(sorted(dict(made["engine"]).items()))
    return LLM(**made)
