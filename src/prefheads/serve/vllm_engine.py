"""The engine on vLLM: jobs join and leave its batch at every step.

vLLM runs in processes of its own and steers by the plugin (:mod:`prefheads.vllm`); it gets tokens
and gives tokens. Text is made of them here, as for the other engine.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import multiprocessing
import os
import signal
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from prefheads.errors import ModelError, PrefheadsError
from prefheads.models.limits import context_length
from prefheads.serve.engine import CLOSING, FAILED, Engine, EngineFailure, Job, Overloaded, Piece
from prefheads.serve.text import Transcript
from prefheads.steerer.core import PreferenceSteerer
from prefheads.steering.generation import end_tokens
from prefheads.vllm import ARCHITECTURES, SERVER

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)
GIB = 2**30
CPU_CACHE_GIB = 4.0  # vLLM would take nearly all of a machine's memory
# As its operator says, and else: no statistics for its makers, its log brief and beside results.
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads
}


class VllmEngine(Engine):
    """Runs jobs of one event loop on vLLM.

    Args:
        steerer: The fitted steerer of the run; its model needs no weights.
        run: Its folder, which the plugin reads the maps from.
        rows: Jobs in the batch, at most; ``queue`` more may wait.
        memory: GiB for the cache of keys and values; None leaves it to vLLM, on a CPU takes 4.
        dtype: "float32", "bfloat16", "float16"; None takes the checkpoint's own, on a CPU float32.
        seed: Of jobs that have none.
        options: More arguments of vLLM's engine.
    """

    def __init__(
        self,
        steerer: PreferenceSteerer,
        run: Path,
        *,
        rows: int = 128,
        queue: int = 256,
        memory: float | None = None,
        dtype: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if reason := obstacle(steerer):
            raise ModelError(f"{reason}; use --engine transformers")
        config = steerer.model.config
        text = config.get_text_config()
        if not torch.cuda.is_available():
            memory, dtype = memory or CPU_CACHE_GIB, dtype or "float32"
        dtype = dtype or str(getattr(text, "dtype", None) or "auto").removeprefix("torch.")
        self._rows, self._queue = rows, queue
        self._tokenizer = copy.deepcopy(steerer.tokenizer)  # it serves one thread at a time
        self._ends = end_tokens(steerer.model)
        self._stop_ids = sorted(end for end in self._ends if end < text.vocab_size)
        self._maps = [f"{run.resolve().name}/{i}" for i in range(len(steerer.maps))]
        self._jobs = 0
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        os.environ.pop("PREFHEADS_FORK", None)  # where the run's maps begin
        os.environ |= {
            "PREFHEADS_MAPS": str(run.resolve()),
            "PREFHEADS_CONTRAST": "1",
            SERVER: str(os.getpid()),
            "VLLM_USE_V2_MODEL_RUNNER": "0",
            **{name: os.environ.get(name, value) for name, value in _DEFAULTS.items()},
        }
        arguments = {
            "model": config.name_or_path,
            "skip_tokenizer_init": True,
            "load_format": "safetensors",
            "generation_config": "vllm",
            "scheduler_cls": "prefheads.vllm.SteeringScheduler",
            "dtype": dtype,
            "max_model_len": context_length(steerer.model),
            "max_num_seqs": rows,
            "kv_cache_memory_bytes": None if memory is None else int(memory * GIB),
            "seed": seed,
            "enforce_eager": True,  # the form of steering that is tested
            "disable_log_stats": True,
        }
        self._llm = _start(arguments | options)

    @property
    def alive(self) -> bool:
        return not (self._closing or self._llm.errored)

    @property
    def waiting(self) -> int:
        return max(0, self._jobs - self._rows)

    async def generate(self, job: Job) -> AsyncGenerator[Piece, None]:
        if self._jobs >= self._rows + self._queue:
            raise Overloaded
        self._loop = asyncio.get_running_loop()
        self._jobs += 1
        try:
            async with aclosing(self._pieces(job)) as pieces:
                async for piece in pieces:
                    yield piece
        except Exception as error:
            if not self._closing:
                log.error("engine failed", exc_info=error)
            raise EngineFailure(CLOSING if self._closing else FAILED) from None
        finally:
            self._jobs -= 1

    async def _pieces(self, job: Job) -> AsyncGenerator[Piece, None]:
        transcript = Transcript(job.sampling, self._tokenizer, self._ends)
        prompt = {"prompt_token_ids": job.prompt.prompt_ids.tolist()}
        # Leaving the block before vLLM is done with the request aborts it.
        async with aclosing(self._llm.generate(prompt, self._params(job), uuid4().hex)) as outputs:
            async for output in outputs:
                for token in output.outputs[0].token_ids:
                    piece = transcript.add(token)
                    if piece is not None:
                        yield piece
                    if transcript.done:
                        return
        raise RuntimeError("vLLM gave a request up")

    def _params(self, job: Job) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling, setting, extra = job.sampling, job.setting, None
        if not setting.plain:
            shares = dict(zip(self._maps, job.clusters, strict=True))
            how = {"map": shares, "gamma": setting.gamma, "mode": setting.mode}
            extra = {"prefheads": how | {"suppression": setting.suppression}}
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=None if sampling.seed is None else sampling.seed % 2**63,  # -1 would be none
            stop_token_ids=self._stop_ids,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=extra,
        )

    def close(self) -> None:
        self._closing = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                failing = self._llm.output_processor.propagate_error
                self._loop.call_soon_threadsafe(failing, RuntimeError(CLOSING))
        self._llm.shutdown()
        # Its finaliser does so again, when the interpreter may be half gone.
        self._llm.shutdown = lambda: None


def installed() -> bool:
    """Whether there is vLLM here."""
    spec = find_spec("vllm")
    return spec is not None and spec.origin is not None  # a folder of this name is none


def obstacle(steerer: PreferenceSteerer, device: str = "auto") -> str | None:
    """Why vLLM cannot serve a fitted steerer on a device, in a line; None if it can."""
    config, form = steerer.model.config, steerer.form
    known = [f"{name}ForCausalLM" for name in ARCHITECTURES]
    architecture = (config.architectures or ["a model of no said architecture"])[0]
    here = "cuda" if torch.cuda.is_available() else "cpu"
    reasons = {
        "vLLM is not installed here": not installed(),
        f"vLLM cannot steer {architecture}": architecture not in known,
        "vLLM cannot steer capped logits": getattr(
            config.get_text_config(), "final_logit_softcapping", None
        ),
        f"vLLM cannot steer target {form.target}, which this run does": form.target != "head",
        f"vLLM cannot steer by {form.schedule}, as this run does": form.schedule != "constant",
        f"vLLM cannot steer scope {form.scope}, which this run does": form.scope != "response",
        f"vLLM runs on {here}, not {device}": device not in ("auto", here),
    }
    return next((reason for reason, found in reasons.items() if found), None)


def _start(arguments: dict[str, Any]) -> AsyncLLM:
    """vLLM, up and ready; its processes do not hear Ctrl-C.

    A terminal sends that to all processes; vLLM's would end the answers that the server is to
    finish. They inherit what is blocked in the thread that starts them, so that is not this one.
    """

    def start() -> AsyncLLM:
        resource_tracker.ensure_running()  # else the first process lets Ctrl-C through again
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(start).result()
        except PrefheadsError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ModelError(
                f"vLLM did not start ({reason}); its log says more, or use --engine transformers"
            ) from None
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()
            raise
