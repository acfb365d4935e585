"""What turns texts into vectors, as data: the weights, how tokens become a vector, what runs it.

An encoder is named by a text, or by an `EncoderModel` where more has to be said:

- a Sentence Transformers folder, or `owner/name@revision` of the Hub (datagen.hub_models): its own
  modules say how tokens are pooled; its vectors are given unit length.
- a plain transformers folder, without modules.json, or such a repository: `pooling` and `normalise`
  must be stated, since nothing in it says how it was trained, and a wrong guess goes unnoticed.
- either of them with `engine="vllm"` (datagen.encode_vllm) in place of sentence-transformers.

`EncoderInfo.digest` is sha256 over the files that decide the vectors and, beyond a plain Sentence
Transformers model, over what was stated: two engines or poolings of one model share no vectors. No
code of a model runs: its modules must be Sentence Transformers' own, its weights safetensors.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from datagen.hub_models import HubName, fetch_model, hub_name
from datagen.schema import UserError

PRECISIONS = ("float32", "bfloat16", "float16")
ENGINES = ("torch", "vllm")
POOLINGS = ("mean", "cls", "last")
# What decides the vectors; notes, images and exports to other runtimes do not.
_DECISIVE = {".safetensors", ".json", ".txt", ".model", ".jinja"}
_MODULES = "modules.json"


@dataclass(frozen=True, kw_only=True)
class EncoderModel:
    """An encoder. `place` is a folder, or a Hub id with its `revision`: a commit, branch or tag."""

    place: str
    revision: str = ""
    engine: Literal["torch", "vllm"] = "torch"
    pooling: Literal["mean", "cls", "last"] | None = None  # of a plain transformers model
    normalise: bool | None = None  # whether the vectors of a plain one are given unit length
    options: tuple[tuple[str, Any], ...] = ()  # further arguments of vllm.LLM

    def __post_init__(self) -> None:
        known = self.engine in ENGINES and (self.pooling is None or self.pooling in POOLINGS)
        if not known or (self.options and self.engine != "vllm"):
            raise UserError(
                found=f"engine {self.engine!r}, pooling {self.pooling!r}, options {self.options}",
                expected=f"engine {' or '.join(ENGINES)}, pooling one of {', '.join(POOLINGS)}, "
                "options for vllm only",
                do="mend the encoder",
                exit_status=2,
            )

    def folder(self) -> str:
        """Its folder on this machine; fetched where it is of the Hub and not here yet."""
        return fetch_model(self.place, self.revision) if self.revision else self.place


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What an encoder says of itself: its digest, its prompts by name, the length of vectors."""

    digest: str
    prompts: dict[str, str]
    unit: bool = True  # vectors have length 1

    def query_prompt(self, given: str | None = None) -> str:
        """What stands in front of a query: what is given, else what the model declares."""
        return self.prompts.get("query", "") if given is None else given

    def document_prompt(self, given: str | None = None) -> str:
        """What stands in front of a document."""
        declared = self.prompts.get("document", self.prompts.get("passage", ""))
        return declared if given is None else given


def encoder_model(encoder: str | EncoderModel) -> EncoderModel:
    """The encoder that a text names; `owner/name` and `owner/name@branch` become one commit."""
    model = EncoderModel(place=encoder) if isinstance(encoder, str) else encoder
    if model.revision:
        return replace(model, revision=HubName(model.place, model.revision).commit())
    found = hub_name(model.place)
    # `models/minilm` beside a folder `models` is a path that does not exist, not a Hub id.
    if found is None or Path(model.place).is_dir() or Path(found.repo).parent.is_dir():
        return model
    return replace(model, place=found.repo, revision=found.commit())


def stated_models(
    names: Sequence[str],
    *,
    engine: Literal["torch", "vllm"] = "torch",
    pooling: Literal["mean", "cls", "last"] | None = None,
    normalise: bool | None = None,
) -> list[EncoderModel]:
    """The encoders of a command line; pooling and normalisation are those of the plain ones."""
    models = [encoder_model(EncoderModel(place=name, engine=engine)) for name in names]
    plain = [not has_modules(Path(model.folder())) for model in models]
    if (pooling is not None or normalise is not None) and not any(plain):
        models = [replace(models[0], pooling=pooling, normalise=normalise)]
        check_stated(models[0], Path(models[0].folder()))
    return [
        replace(model, pooling=pooling, normalise=normalise) if silent else model
        for model, silent in zip(models, plain, strict=True)
    ]


def inspect_encoder(encoder: str | EncoderModel) -> EncoderInfo:
    """Read and check an encoder without loading it; UserError when it cannot be used."""
    model = encoder_model(encoder)
    folder = Path(model.folder())
    refuse_unsafe(folder)
    check_stated(model, folder)
    config = read_json(folder / "config_sentence_transformers.json")
    stated: dict[str, Any] = {
        "engine": "" if model.engine == "torch" else model.engine,
        "pooling": model.pooling,
        "normalise": model.normalise,
        "options": [list(option) for option in sorted(model.options)],
    }
    stated = {name: value for name, value in stated.items() if value not in ("", None, [])}
    digest = _digest(folder)
    if stated:
        decides = json.dumps({"folder": digest, **stated}, sort_keys=True)
        digest = hashlib.sha256(decides.encode()).hexdigest()
    prompts = dict(config.get("prompts") or {})
    return EncoderInfo(digest=digest, prompts=prompts, unit=model.normalise is not False)


def inspect_unit_encoder(encoder: str | EncoderModel) -> EncoderInfo:
    """As `inspect_encoder`, for those who compare vectors by their cosine."""
    info = inspect_encoder(encoder)
    if not info.unit:
        raise UserError(
            found=f"{encoder}",
            expected="an encoder with vectors of unit length: scores are cosines",
            do="state normalise=True, or choose another encoder",
            exit_status=2,
        )
    return info


def has_modules(folder: Path) -> bool:
    """Whether a folder is a Sentence Transformers model, which says itself how it pools."""
    return (folder / _MODULES).is_file()


def check_stated(model: EncoderModel, folder: Path) -> None:
    """UserError unless pooling and normalisation are stated where the folder is silent, and only
    there."""
    stated = (model.pooling is not None, model.normalise is not None)
    if has_modules(folder) and any(stated):
        raise UserError(
            found=f"pooling {model.pooling}, normalise {model.normalise} for {model.place}, "
            f"which has a {_MODULES} of its own",
            expected="them for a plain transformers model only",
            do="leave them out",
            exit_status=2,
        )
    if not has_modules(folder) and not all(stated):
        raise UserError(
            found=f"{model.place} has no {_MODULES}: nothing in it says how its tokens become one "
            "vector",
            expected=f"pooling ({', '.join(POOLINGS)}) and normalise (true or false) as its makers "
            "trained it",
            do="state both: datagen mine --pooling mean --normalise, in Python "
            "EncoderModel(place=..., pooling=..., normalise=...)",
            exit_status=2,
        )


def refuse_unsafe(folder: Path) -> None:
    """UserError unless this is a model folder that runs no code and has safetensors."""
    if not any((folder / name).is_file() for name in (_MODULES, "config.json")):
        raise UserError(
            found=f"{folder} has no {_MODULES} or config.json"
            if folder.is_dir()
            else f"no model folder {folder}",
            expected="a Sentence Transformers or transformers model folder, or a Hub id",
            do="check the path of the encoder",
            exit_status=2,
        )
    modules = read_json(folder / _MODULES) or []
    foreign = [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]
    if foreign:
        raise UserError(
            found=f"{folder} asks to run code of its own: {', '.join(foreign)}",
            expected="modules of sentence_transformers only",
            do="choose a model that needs no remote code",
        )
    for place in sorted(p.parent for p in folder.rglob("pytorch_model*.bin")):
        if not any(place.glob("*.safetensors")):
            raise UserError(
                found=f"{place} has pickled weights only",
                expected="*.safetensors",
                do="convert the model to safetensors, or choose another",
            )


def read_json(path: Path) -> Any:
    """The content of a file of a model folder, {} when it is not there."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            found=f"{path} is not JSON: {error}",
            expected="the file of a model folder",
            do="copy the model folder again",
        ) from error


def _digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.suffix in _DECISIVE and p.is_file())
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return whole.hexdigest()
