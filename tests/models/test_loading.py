"""load_model: every source the same way, and one clear line for everything that can be wrong."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from prefheads.errors import ModelError
from prefheads.models.loading import load_model, load_skeleton

SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def save_tokenizer(folder: Path) -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1, "a": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<eos>"
    ).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny bfloat16 Llama with a tokenizer that has no padding token."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


def refuse(match: str, *args, **kwargs) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_model(*args, **kwargs)
    assert "\n" not in str(caught.value)
    # No second traceback above the one line.
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_loads_a_folder(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == "<eos>"
    stored = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model.model.norm.weight, stored.float())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_takes_dtypes_by_name_and_object(folder: Path, dtype: str | torch.dtype) -> None:
    assert load_model(folder, device="cpu", dtype=dtype)[0].dtype == torch.bfloat16


def test_keeps_the_checkpoints_dtype_off_the_cpu(folder: Path) -> None:
    assert load_model(folder, device="meta")[0].dtype == torch.bfloat16
    assert load_model(folder, device="meta", dtype="float32")[0].dtype == torch.float32


def test_takes_a_device_map(folder: Path) -> None:
    model, _ = load_model(folder, device_map={"": "cpu"})
    assert model.device.type == "cpu"
    assert model.dtype == torch.bfloat16  # the checkpoint's: what fits on several devices decides


def test_takes_the_attention(folder: Path) -> None:
    model, _ = load_model(folder, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    refuse("cannot load model", folder, attn_implementation="nonsense")


def test_refuses_bad_options(folder: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int7'; use one of float32"):
        load_model(folder, dtype="int7")
    with pytest.raises(ModelError, match="not both"):
        load_model(folder, device="cpu", device_map="auto")
    refuse("no such device", folder, device="toaster")


def test_refuses_a_gpu_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ModelError, match="no device 'cuda:1'"):
        load_model(folder, device="cuda:1")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nowhere/at-all", ""])
def test_refuses_a_missing_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no such model folder|holds no model"):
        load_model(name)


def test_refuses_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refuse("cannot get model 'nobody/no-such-model': no such folder", "nobody/no-such-model")


def test_refuses_a_file_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="is a file"):
        load_model(tmp_path / "file")


def test_refuses_other_kinds_of_models(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path / "t5")
    refuse("not a causal language model but t5", tmp_path / "t5")
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path / "masked")
    refuse("not a causal language model but bert", tmp_path / "masked")
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "encoder")
    refuse(r"damaged or not a causal language model: it misses \d+", tmp_path / "encoder")


def test_refuses_damaged_files(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refuse("cannot load model", folder)
    tensors = load_file(_rewritten(weights, whole))
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    refuse(r"misses 1 of the weights, such as model\.norm\.weight", folder)
    weights.unlink()
    refuse("cannot load model", folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "unheard-of"}
    (folder / "config.json").write_text(json.dumps(config))
    refuse(r"cannot read .*config\.json", folder)
    (folder / "config.json").write_text("{")
    refuse(r"cannot read .*config\.json", folder)


def _rewritten(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_never_reads_pickles(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refuse("cannot load model", folder)


def test_refuses_a_missing_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refuse("cannot load the tokenizer", folder)


def test_a_skeleton_says_what_the_model_says_without_its_weights(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    model.generation_config.eos_token_id = [1, 2]
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    skeleton, same = load_skeleton(folder)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert type(skeleton) is type(model) and skeleton.config.name_or_path == str(folder)
    assert skeleton.generation_config.eos_token_id == [1, 2]
    assert (same.get_vocab(), same.padding_side) == (tokenizer.get_vocab(), "left")
    (folder / "generation_config.json").unlink()
    assert load_skeleton(folder)[0].generation_config is not None
    with pytest.raises(ModelError, match="no such model folder"):
        load_skeleton(folder / "nowhere")
