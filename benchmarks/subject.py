"""What is measured: a model, and texts of any length for it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prefheads import encode, load_examples, load_model
from prefheads.data.encoding import Encoded
from prefheads.evaluation.flops import LLAMA_3_8B
from prefheads.models.bundled import people_path

TINY = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)
# Speed does not depend on the values of the weights.
RANDOM = {"llama-3-8b": LLAMA_3_8B, "tiny": TINY}


class Subject:
    """A model on a device, as the cells of one run share it.

    Args:
        name: ``"bundled"``, a folder or hub id; or a randomly initialised one: ``"llama-3-8b"`` (in
            bfloat16 on a GPU), ``"tiny"``.
        threads: Of the CPU.
    """

    def __init__(self, name: str, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.tokenizer: Any = None
        if name in RANDOM:
            torch.manual_seed(0)
            dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
            with self.device:
                self.model: PreTrainedModel = LlamaForCausalLM._from_config(
                    RANDOM[name], dtype=dtype, attn_implementation="sdpa"
                )
            self.model.eval()
        else:
            self.model, self.tokenizer = load_model(name, device=device)
        self.model.generation_config.eos_token_id = None  # every text has the length asked for

    @property
    def hardware(self) -> dict[str, Any]:
        """The device and the versions that a result depends on."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def text(self, n_prompt: int, n_response: int, index: int) -> Encoded:
        """Exactly so many tokens: of the bundled people, or random where there is no tokenizer."""
        if self.tokenizer is None:
            generator = torch.Generator().manual_seed(index)
            ids = torch.randint(
                3, self.model.config.vocab_size, (n_prompt + n_response,), generator=generator
            )
            profile = torch.zeros(n_prompt, dtype=torch.bool)
            profile[n_prompt // 8 : n_prompt // 2] = True
            parts: Any = ids[:n_prompt], ids[n_prompt:], profile
            return Encoded(*parts, "", False, str(index), "random")
        people = load_examples(people_path())
        first = index % len(people)
        order = people[first:] + people[:first]
        own = order[0]
        posts = [post for person in order for post in person.profile]
        while len(encode(self.tokenizer, own, max_length=10**6).prompt_ids) < n_prompt:
            own = own.with_profile([*own.profile, *posts])
        whole = encode(self.tokenizer, own, max_length=10**6)
        texts = " ".join(person.output or "" for person in order)
        response = self.tokenizer(texts, add_special_tokens=False)["input_ids"][:n_response]
        ids, mask = whole.prompt_ids[-n_prompt:], whole.profile_mask[-n_prompt:]
        parts = ids, torch.tensor(response), mask
        return Encoded(*parts, "", False, str(index), own.user_id)

    def prompts(self, n: int, batch: int) -> Tensor:
        """Token ids ``(batch, n)``."""
        rows: list[Tensor] = [self.text(n, 1, i).prompt_ids for i in range(batch)]
        return torch.stack(rows).to(self.device)

    # -- measuring --

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds, and what the work returns."""
        self.wait()
        started = time.perf_counter()
        result = work()
        self.wait()
        return time.perf_counter() - started, result

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_of(self, work: Callable[[], Any]) -> dict[str, int]:
        """Bytes held before (the model) and at most meanwhile: on the GPU, or else by this process,
        which should be a fresh one: what it has freed may still be held."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            rest = torch.cuda.memory_allocated(self.device)
            work()
            return {"rest": rest, "peak": torch.cuda.max_memory_allocated(self.device)}
        statm, reset = Path("/proc/self/statm"), Path("/proc/self/clear_refs")
        if reset.exists():  # Linux
            reset.write_text("5")  # the peak of loading is not to count
            rest = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        else:
            rest = _most_resident()
        work()
        return {"rest": rest, "peak": _most_resident()}


def _most_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # Linux: unlike getrusage, what the parent process held does not count
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def spread(n: int, count: int, n_heads: int) -> list[int]:
    """``count`` of ``n`` heads, spread over the layers and over the heads of a layer."""
    return [min(n - 1, i * n // count + i % n_heads) for i in range(count)]
