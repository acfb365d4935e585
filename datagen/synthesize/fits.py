"""Whether an LLM can be loaded at all, before any engine starts: memory, and nodes that hold it.

Weights are judged where they are at hand: in a folder or a package. What the KV cache needs beyond
`kv_cache_gib`, and what a Hub id weighs, only the engine finds out.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from datagen.packaged import resolve_model
from datagen.schema import UserError
from datagen.synthesize.llm import LLM

log = logging.getLogger("embedmix")
GIB = 1 << 30


def check_fits(
    llms: Iterable[LLM], *, cache: str, executor: Literal["ray", "local"], nodes: Sequence[Any] = ()
) -> None:
    """UserError for an LLM that no node holds; `nodes` are those of `ray.nodes()`.

    In a cluster that was joined more nodes may come, so there a node that is missing is a warning.
    """
    for llm in llms:
        if llm.endpoint:
            continue
        _check_memory(llm, _weights(llm, cache))
        if executor == "ray":
            _check_nodes(llm, nodes)


def _weights(llm: LLM, cache: str) -> int:
    """Bytes of the weights; 0 where they are not here yet."""
    folder = Path(resolve_model(llm.model, cache)[0])
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _check_memory(llm: LLM, weights: int) -> None:
    if llm.num_gpus or not weights:
        return
    wanted = weights + llm.kv_cache_gib * GIB
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > there:
        raise UserError(
            found=f"LLM {llm.name}: weights of {weights / GIB:.1f} GiB and a KV cache of "
            f"{llm.kv_cache_gib:g} GiB",
            expected=f"at most the {there / GIB:.1f} GiB of memory of this machine",
            do="choose a smaller model, a smaller kv_cache_gib, or give it GPUs (num_gpus)",
        )


def _check_nodes(llm: LLM, nodes: Sequence[Any]) -> None:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    wanted = {"CPU": llm.num_cpus, "GPU": llm.num_gpus}
    if any(all(node.get(k, 0) >= n for k, n in wanted.items()) for node in alive):
        return
    largest = {k: max((node.get(k, 0) for node in alive), default=0) for k in wanted}
    found = f"LLM {llm.name}: a replica of {wanted['GPU']:g} GPUs and {wanted['CPU']:g} CPUs"
    expected = f"at most {largest['GPU']:g} GPUs and {largest['CPU']:g} CPUs, what a node has"
    if os.environ.get("RAY_ADDRESS"):
        log.warning("%s; %s: it waits until there is a larger one", found, expected)
        return
    raise UserError(
        found=found,
        expected=expected,
        do="lower num_gpus and tensor_parallel_size, num_cpus, or join a cluster (RAY_ADDRESS)",
    )
