"""Put a model on the Hub: refused first if it is not ours, uploaded, verified by digest.

The model goes to `main`; each checkpoint that the run kept (`trainer train --keep-steps`) goes to a
branch `step-N`, as a whole model. They are branches and not tags, since a tag would have to sit on
commits of `main`, where the weights of one step would stand on those of another; a branch begins at
the empty first commit, so it holds its step alone and is resumed alone. `main` comes last, its card
last of all: a repository whose upload was cut off does not speak of itself as complete. The same
command goes on where it was cut off.

Records of training go along without the folders of this machine.
"""

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from datagen.schema import UserError
from datagen.upload import check_repo, check_token, open_branch, open_repo, upload_folder
from trainer.card import META, README
from trainer.export import edit_json, kept_steps
from trainer.golden import GOLDEN, check_golden
from trainer.model_folder import refuse_cut

log = logging.getLogger("embedmix")

_NEEDED = (GOLDEN, "modules.json", "config.json", README)


def publish_model(
    model: str, repo: str, *, run: str | None = None, public: bool = False
) -> dict[str, Any]:
    """Put an exported model into the repository `repo` (org/name); gives where it is.

    The repository is private unless `public`. `run` is the output of a training run whose kept
    checkpoints go along. UserError for a folder that was not exported here, and when the Hub
    refuses.
    """
    check_repo(repo)
    steps = {f"step-{number}": folder for number, folder in _steps(run).items()}
    for folder in (model, *steps.values()):
        _refuse_other(folder)
        refuse_cut(folder)
    check_token(repo)
    check_golden(model)
    url = open_repo(repo, private=not public, kind="model")
    for branch, folder in steps.items():
        open_branch(repo, branch, kind="model")
        _upload(folder, repo, revision=branch, steps={})
    done = _upload(model, repo, revision="main", steps=steps)
    size = {"files": done.files, "bytes": done.size}
    return {"url": url, "commit": done.commit, **size, "revisions": list(steps)}


def _steps(run: str | None) -> dict[int, str]:
    found = kept_steps(run) if run else {}
    if run and not found:
        raise UserError(
            found=f"no checkpoints of {run}",
            expected="a run that was trained with --keep-steps",
            do="leave --run out, or train with it",
            exit_status=2,
        )
    return found


def _refuse_other(folder: str) -> None:
    place = Path(folder)
    missing = [name for name in _NEEDED if not (place / name).is_file()]
    missing += [] if any(place.glob("*.safetensors")) else ["*.safetensors"]
    if missing:
        raise UserError(
            found=f"{folder} without {', '.join(missing)}",
            expected="a model that was exported, trained or merged here",
            do=f"make one with: trainer export {folder} --output DIR",
            exit_status=2,
        )


def _upload(folder: str, repo: str, *, revision: str, steps: dict[str, str]) -> Any:
    """Upload what people may see of a folder: links to its files, records without our folders."""
    with tempfile.TemporaryDirectory() as temporary:
        for file in sorted(Path(folder).rglob("*")):
            link = Path(temporary) / file.relative_to(folder)
            if file.is_dir():
                link.mkdir()
            elif file.name == README and file.parent == Path(folder):
                link.write_text(_card(file.read_text("utf-8"), repo, revision, steps), "utf-8")
            elif file.name == META:
                link.write_text(file.read_text("utf-8"), "utf-8")
                edit_json(link, name=repo)
            elif file.suffix == ".json" and file.name in ("run.json", "merge.json", "prune.json"):
                record = _without_folders(json.loads(file.read_text("utf-8")))
                link.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
            else:
                link.symlink_to(file.resolve())
        message = f"Model {Path(folder).name}"
        return upload_folder(temporary, repo, message=message, kind="model", revision=revision)


def _without_folders(value: Any) -> Any:
    """The same JSON with the last part in place of a path."""
    if isinstance(value, dict):
        return {key: _without_folders(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return os.path.basename(value) if isinstance(value, str) and "/" in value else value


def _card(text: str, repo: str, revision: str, steps: dict[str, str]) -> str:
    """The card as it is, perhaps with its owner's words, under the name that the Hub has it by."""
    named = f'"{repo}"' if revision == "main" else f'"{repo}", revision="{revision}"'
    text = text.replace('SentenceTransformer(".")', f"SentenceTransformer({named})")
    listed = "\n".join(f"- `{name}`" for name in steps)
    about = f"\n## Revisions\n\nCheckpoints of the training, each a branch:\n\n{listed}\n"
    return text + (about if steps else "")
