"""Merge models of one architecture: the weighted mean of their weights, or another method.

Averaging the runs of one recipe that differ in seed or data costs no inference time and gains
accuracy (model soups, arXiv 2203.05482); llama-embed-nemotron-8b averages six runs with equal
weights (arXiv 2511.07025, section 4). One tensor at a time is read from each model, summed in
float64 and rounded once, so the memory needed is one output file. A tensor is stored once where
models tie it, so tied weights are averaged once. Models that differ in configuration, modules or
tokenizer are refused, with the key that differs.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from trainer.card import CARD, META, README, merged_mixes, read_card, write_card
from trainer.export import any_entry, edit_json, new_folder, write_json
from trainer.golden import GOLDEN, write_golden
from trainer.model_folder import refuse_cut

log = logging.getLogger("embedmix")

RECIPE = "merge.json"
METHODS = {
    "mean": "weighted mean",
    "slerp": "slerp",
    "spherical": "spherical barycentre",
    "task-arithmetic": "task arithmetic",
    "ties": "TIES",
}
FROM_BASE = ("task-arithmetic", "ties")  # they merge the differences from a base
# JSON files that must agree, and their keys that say nothing about the function computed.
_COMPARED: Mapping[str, frozenset[str]] = {
    "config.json": frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"}),
    "modules.json": frozenset(),
    "sentence_bert_config.json": frozenset(),
    "config_sentence_transformers.json": frozenset({"__version__"}),
    "tokenizer.json": frozenset({"truncation", "padding"}),
    "tokenizer_config.json": frozenset({"name_or_path"}),
}
_COPIED = (".json", ".txt", ".model", ".jinja")
# Records of a single run, which the merged folder must not carry.
_LEFT_OUT = (GOLDEN, RECIPE, CARD, README, META, "run.json", "base.json", "result.json")

Key = tuple[str, str]  # folder inside the model, name of the tensor


def merge(
    models: Sequence[str],
    output: str,
    *,
    weights: Sequence[float] | None = None,
    method: str = "mean",
    base: str | None = None,
    scale: float = 1.0,
    density: float = 0.2,
) -> dict[str, Any]:
    """Write the merge of model folders to `output`; returns the recipe, as in merge.json.

    Weights default to equal ones and are scaled to sum to 1. `task-arithmetic` and `ties` merge
    what training changed in `base`, times `scale`; `density` is the share of each change that ties
    keeps. The dtype is that of the inputs, or the wider one where they differ. A folder that
    already holds this very merge is left as it is.
    """
    shares = _shares(models, weights)
    _check_method(method, models, base, scale=scale, density=density)
    everything = [*models, *([base] if base else [])]
    for model in everything:
        _require_model(model)
        refuse_cut(model)
    for model in everything[1:]:
        _require_same_files(Path(models[0]), Path(model))
    tensors = [_tensor_files(Path(model)) for model in everything]
    for model, found in zip(everything[1:], tensors[1:], strict=True):
        _require_same_tensors(tensors[0], found, names=(models[0], model))
    recipe: dict[str, Any] = {
        "method": METHODS[method],
        "models": [
            {"path": model, "weight": share, "sha256": _digest(found)}
            for model, share, found in zip(models, shares, tensors, strict=False)
        ],
    }
    if base:
        recipe |= {"base": {"path": base, "sha256": _digest(tensors[-1])}, "scale": scale}
        recipe |= {"density": density} if method == "ties" else {}
    if _is_done(Path(output), recipe):
        log.info("merge: up to date (%s)", output)
        return recipe
    with new_folder(output) as folder:
        _copy_settings(Path(models[0]), folder)
        combine = partial(_combine, method, scale=scale, density=density)
        dtype = _write_merged(folder, Path(models[0]), tensors, shares, combine)
        edit_json(folder / "config.json", dtype=dtype)
        write_json(folder / RECIPE, recipe)
        write_golden(str(folder))
        write_card(folder, _card(recipe))
    log.info("merge: %d models in %s", len(models), output)
    return recipe


def _check_method(
    method: str, models: Sequence[str], base: str | None, *, scale: float, density: float
) -> None:
    problem = None
    if method not in METHODS:
        problem = (f"method {method!r}", "one of " + ", ".join(METHODS))
    elif method == "slerp" and len(models) != 2:
        problem = (f"slerp of {len(models)} models", "two models; `spherical` takes any number")
    elif (method in FROM_BASE) != (base is not None):
        with_base = "with" if base else "without"
        problem = (f"{method} {with_base} a base", f"--base for {' and '.join(FROM_BASE)} alone")
    elif not (math.isfinite(scale) and 0 < density <= 1):
        problem = (f"scale {scale}, density {density}", "a finite scale, a density in (0, 1]")
    if problem:
        raise UserError(
            found=problem[0], expected=problem[1], do="mend the arguments", exit_status=2
        )


def _combine(
    method: str, tensors: Sequence[Any], shares: Sequence[float], *, scale: float, density: float
) -> Any:
    """One tensor out of those of all models, the base's last where there is one."""
    from trainer import merge_methods as methods

    if method in FROM_BASE:
        *tensors, base = tensors
        if method == "ties":
            return methods.ties(base, scale=scale, density=density)(tensors, shares)
        return methods.task_arithmetic(base, scale=scale)(tensors, shares)
    known = {"mean": methods.weighted_mean, "slerp": methods.slerp, "spherical": methods.spherical}
    return known[method](tensors, shares)


def _shares(models: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """Weights that sum to 1."""
    given = [1.0] * len(models) if weights is None else list(weights)
    usable = all(math.isfinite(w) and w >= 0 for w in given) and sum(given) > 0
    if not models or len(given) != len(models) or not usable:
        raise UserError(
            found=f"{len(models)} models with weights {given}",
            expected="at least one model, and for each a weight of 0 or more, not all 0",
            do="mend the list of models or --weights",
            exit_status=2,
        )
    return [w / sum(given) for w in given]


def _require_model(model: str) -> None:
    for name in ("modules.json", "config.json"):
        if not (Path(model) / name).is_file():
            raise UserError(
                found=f"no {name} in {model}",
                expected="the folder of a sentence-transformers model",
                do=f"check the path, or make one with: trainer export {model} --output DIR",
                exit_status=2,
            )


def _require_same_files(first: Path, other: Path) -> None:
    """Refuse models whose settings, modules or tokenizer differ."""
    modules = {str(p.relative_to(m)) for m in (first, other) for p in m.glob("*/config.json")}
    for name in (*_COMPARED, *sorted(modules)):
        values = [_read_json(model / name) for model in (first, other)]
        for value in values:
            for key in _COMPARED.get(name, ()):
                value.pop(key, None) if isinstance(value, dict) else None
        path = _first_difference(*values)
        if path is not None:
            raise UserError(
                found=f"{name}: {path or 'the file'} differs between {first} and {other}",
                expected="models with the same configuration, modules and tokenizer",
                do="merge only models that were trained from the same base",
            )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """The path of keys to the first value that differs (`model.vocab.dog`), or None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            where = f"{path}.{key}" if path else str(key)
            if key not in a or key not in b:
                return where
            found = _first_difference(a[key], b[key], where)
            if found is not None:
                return found
        return None
    if a == b:
        return None
    if isinstance(a, int | float | str) and isinstance(b, int | float | str):
        return f"{path} ({a} and {b})"
    return path


def _tensor_files(model: Path) -> dict[Key, Path]:
    """Where each tensor of a model is: its files may be cut differently from another model's."""
    from safetensors import safe_open

    found: dict[Key, Path] = {}
    for file in sorted(model.rglob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {
                (str(file.parent.relative_to(model)), name): file for name in list(tensors.keys())
            }
    if not found:
        raise UserError(
            found=f"no .safetensors file in {model}",
            expected="weights in safetensors files",
            do="save the model again with safetensors",
        )
    return found


def _require_same_tensors(
    first: Mapping[Key, Path], other: Mapping[Key, Path], *, names: tuple[str, str]
) -> None:
    lone = sorted(first.keys() ^ other.keys())
    if lone:
        place = names[0] if lone[0] in first else names[1]
        raise UserError(
            found=f"tensor {lone[0][1]!r} is only in {place} ({len(lone)} such tensors)",
            expected=f"the same tensors in {names[0]} and {names[1]}",
            do="merge only models of the same architecture",
        )


def _digest(tensors: Mapping[Key, Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(set(tensors.values())):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _is_done(output: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether `output` holds this merge; UserError when it holds anything else."""
    if not output.exists() or not any_entry(output):
        return False
    made = _read_json(output / RECIPE)
    if made and _decisive(made) == _decisive(recipe):
        return True
    raise UserError(
        found=f"{output} holds " + ("another merge" if made else "something else"),
        expected="a new or empty folder, or the merge of the same models and weights",
        do="choose another --output, or delete that folder",
    )


def _decisive(recipe: Mapping[str, Any]) -> Any:
    """What decides the weights: everything but where the models lay."""
    models = [(m["sha256"], m["weight"]) for m in recipe["models"]]
    names = ("method", "scale", "density")
    base = recipe.get("base", {}).get("sha256")
    return models, base, [recipe.get(name) for name in names]


def _copy_settings(model: Path, folder: Path) -> None:
    """Settings of the model and its modules; other folders, as of scores, are of the run."""
    listed = model / "modules.json"
    modules = json.loads(listed.read_text()) if listed.is_file() else []
    kept = {Path(module["path"]).parts[0] for module in modules if module["path"]}

    def skipped(place: str, names: list[str]) -> list[str]:
        others = [n for n in names if (Path(place) / n).is_dir()]
        files = [n for n in names if n not in others]
        left_out = [n for n in files if not n.endswith(_COPIED) or n in _LEFT_OUT]
        return left_out + [n for n in others if Path(place) == model and n not in kept]

    shutil.copytree(model, folder, ignore=skipped, dirs_exist_ok=True)


def _write_merged(
    folder: Path,
    model: Path,
    tensors: Sequence[Mapping[Key, Path]],
    shares: Sequence[float],
    combine: Callable[[Sequence[Any], Sequence[float]], Any],
) -> str:
    """Write all merged tensors, in files cut like those of `model`; returns their dtype."""
    import torch
    from safetensors.torch import save_file

    kept: torch.dtype | None = None
    for file in sorted(set(tensors[0].values())):
        keys = [key for key, place in tensors[0].items() if place == file]
        merged = {
            key[1]: _merged(key, [found[key] for found in tensors], shares, combine) for key in keys
        }
        for dtype in (t.dtype for t in merged.values() if t.is_floating_point()):
            kept = dtype if kept is None else torch.promote_types(kept, dtype)
        save_file(merged, folder / file.relative_to(model), metadata={"format": "pt"})
    return str(kept).removeprefix("torch.")


def _merged(
    key: Key,
    files: Sequence[Path],
    shares: Sequence[float],
    combine: Callable[[Sequence[Any], Sequence[float]], Any],
) -> Any:
    """One tensor merged in float64; a tensor of integers must be equal in all models."""
    import torch

    tensors = [_tensor(file, key) for file in files]
    first, dtype = tensors[0], tensors[0].dtype
    for file, tensor in zip(files, tensors, strict=True):
        whole = not tensor.is_floating_point()
        if tensor.shape != first.shape or (whole and not torch.equal(tensor, first)):
            raise UserError(
                found=f"tensor {key[1]!r} of {file.parent} differs in shape or whole numbers",
                expected=f"that of {files[0].parent}",
                do="merge only models of the same architecture",
            )
        dtype = torch.promote_types(dtype, tensor.dtype)
    if not dtype.is_floating_point:
        return first
    return combine([tensor.double() for tensor in tensors], shares).to(dtype).contiguous()


def _tensor(file: Path, key: Key) -> Any:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(key[1])


def _card(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says: the models and their shares, and all mixes that they were trained on."""
    lines = [f"{Path(m['path']).name}, weight {m['weight']:.4g}" for m in recipe["models"]]
    if "base" in recipe:
        lines.append(f"changes to {Path(recipe['base']['path']).name}, times {recipe['scale']:g}")
    cards = [read_card(model["path"]) for model in recipe["models"]]
    first = {key: value for key, value in cards[0].items() if key != "stages"}
    about = f"{recipe['method']} of the weights of {len(cards)} models"
    return {**first, "about": about, "mixes": merged_mixes(cards), "merged": lines}
