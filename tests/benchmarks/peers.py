"""One engine, measured in a process of its own: `python -m tests.benchmarks.peers ENGINE FORMAT THREADS`.

Prints one line of JSON. Every engine reads the same prompt and makes the same number of greedy tokens.
Speeds are differences of two runs, so that reading the prompt is not counted.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from llmcourse.data.checkpoints import default_checkpoint, gguf_path
from llmcourse.data.tokenizer import Tokenizer
from llmcourse.paths import cache

PROMPT, TOKENS, LONG = "Why is the sky blue?", 128, 512
WINDOWS, WINDOW = 8, 512  # of perplexity
FORMATS = {"Q4_1": None, "Q8_0": 7, "Q4_0": 2}  # llama.cpp's numbers (llama_ftype)
Logits = "np.ndarray[Any, Any]"


class LlmCourse:
    """The course's own engine."""

    def __init__(self, kind: str, threads: int) -> None:
        from llmcourse.kernels.cpu import CpuEngine

        self.engine = CpuEngine.from_checkpoint(threads=threads)
        planes = self.engine.packed.planes
        self.bytes = sum(p.blocks.nbytes for name, p in planes.items() if name != "head.low")

    def generate(self, ids: list[int], count: int) -> list[int]:
        """`count` greedy tokens."""
        return self.engine.generate_all(ids, max_tokens=count)

    def logits(self, ids: list[int]) -> Logits:
        """(T, V), from an empty cache."""
        self.engine.rewind()
        return self.engine.read_all(ids)


class LlamaCpp:
    """llama.cpp by its C interface: no Python between decode and the greedy choice but NumPy's argmax."""

    def __init__(self, kind: str, threads: int) -> None:
        import llama_cpp

        self.lib = llama_cpp
        path = requantized(kind)
        self.bytes = path.stat().st_size
        self.model = llama_cpp.Llama(
            str(path), n_ctx=1024, n_batch=LONG, n_threads=threads, n_threads_batch=threads,
            verbose=False, logits_all=True,
        )  # fmt: skip

    def generate(self, ids: list[int], count: int) -> list[int]:
        """`count` greedy tokens."""
        lib, ctx, vocab = self.lib, self.model._ctx.ctx, self.model.n_vocab()
        lib.llama_memory_clear(lib.llama_get_memory(ctx), True)
        new, out = ids, []
        for _ in range(count):
            tokens = (lib.llama_token * len(new))(*new)
            assert lib.llama_decode(ctx, lib.llama_batch_get_one(tokens, len(new))) == 0
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(ctx, -1), shape=(vocab,))
            new = [int(logits.argmax())]
            out += new
        return out

    def logits(self, ids: list[int]) -> Logits:
        """(T, V), from an empty cache."""
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[: len(ids)])


class OpenVino:
    """OpenVINO GenAI, which reads the GGUF file itself; its cache of earlier prompts is off."""

    def __init__(self, kind: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self.ov, self.genai, self.threads = openvino, openvino_genai, threads
        source = requantized(kind)
        self.bytes = source.stat().st_size
        # A folder of its own, for the model that it makes is written beside the file.
        self.path = cache() / "bench" / f"openvino-{kind}" / source.name
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.path)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        self.pipe = openvino_genai.LLMPipeline(
            str(self.path), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads,
            PERFORMANCE_HINT="LATENCY",
        )  # fmt: skip

    def generate(self, ids: list[int], count: int) -> list[int]:
        """`count` greedy tokens."""
        config = self.genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        tokens = np.array([ids], np.int64)
        given = self.genai.TokenizedInputs(
            self.ov.Tensor(tokens), self.ov.Tensor(np.ones_like(tokens))
        )
        return list(self.pipe.generate(given, config).tokens[0])

    def logits(self, ids: list[int]) -> Logits:
        """(T, V), from an empty cache, of the model that the pipeline made."""
        if not hasattr(self, "request"):
            core = self.ov.Core()
            if not (self.path.parent / "openvino_model.xml").is_file():
                self.genai.LLMPipeline(str(self.path), "CPU", enable_save_ov_model=True)
            model = core.read_model(self.path.parent / "openvino_model.xml")
            self.request = core.compile_model(model, "CPU").create_infer_request()
        tokens = np.array([ids], np.int64)
        given = {
            "input_ids": tokens, "attention_mask": np.ones_like(tokens),
            "position_ids": np.arange(len(ids))[None], "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        self.request.reset_state()
        self.request.infer(given)
        return np.array(self.request.get_tensor("logits").data[0], dtype=np.float32)


class Transformers:
    """transformers' `generate`."""

    def __init__(self, kind: str, threads: int) -> None:
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
        self.model = LlamaForCausalLM.from_pretrained(default_checkpoint(), dtype=dtype).eval()
        self.bytes = sum(p.nbytes for p in self.model.parameters())

    def generate(self, ids: list[int], count: int) -> list[int]:
        """`count` greedy tokens."""
        out = self.model.generate(
            self.torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            attention_mask=self.torch.ones(1, len(ids)), pad_token_id=2,
        )  # fmt: skip
        return out[0, len(ids) :].tolist()

    def logits(self, ids: list[int]) -> Logits:
        """(T, V), from an empty cache."""
        with self.torch.inference_mode():
            return self.model(self.torch.tensor([ids])).logits[0].float().numpy()


ENGINES = {
    "llmcourse": LlmCourse,
    "llama.cpp": LlamaCpp,
    "OpenVINO GenAI": OpenVino,
    "transformers": Transformers,
}


def requantized(kind: str) -> Path:
    """The course's GGUF file in another format, made by llama.cpp once, without calibration."""
    source = gguf_path(default_checkpoint())
    number = FORMATS[kind]
    if number is None:
        return source
    target = cache() / "bench" / f"{source.parent.name}-{kind}.gguf"
    if not target.is_file():
        import ctypes

        import llama_cpp

        target.parent.mkdir(parents=True, exist_ok=True)
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize = number, True
        part = target.with_suffix(".part")
        failed = llama_cpp.llama_model_quantize(
            str(source).encode(), str(part).encode(), ctypes.byref(options)
        )
        assert not failed, f"llama.cpp could not make {kind}"
        part.replace(target)
    return target


def prompts(engine: Any) -> Iterator[tuple[list[int], list[int]]]:
    """The chat prompt, and 512 tokens of prose."""
    from llmcourse.data.datasets import held_out_text

    tokenizer = Tokenizer.from_file(default_checkpoint())
    yield tokenizer.chat(PROMPT), tokenizer.encode(held_out_text())[:LONG]


def seconds(work: Callable[[], Any], *, budget: float = 2.0) -> float:
    """The median time of up to five runs in about `budget` seconds, after one that does not count."""
    work()
    found: list[float] = []
    while len(found) < 5 and (not found or sum(found) < budget):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def speed(engine: Any) -> dict[str, Any]:
    """Tokens/s after the prompt, tokens/s of a prompt of 512, resident bytes of the process."""
    ((prompt, prose),) = prompts(engine)
    first = seconds(lambda: engine.generate(prompt, 1))
    whole = seconds(lambda: engine.generate(prompt, 1 + TOKENS))
    rate = TOKENS / (whole - first)
    resident = psutil.Process().memory_info().rss
    return {
        "tokens_per_s": rate,
        "gb_per_s": engine.bytes * rate / 1e9,
        "prefill_tokens_per_s": LONG / seconds(lambda: engine.generate(prose, 1)),
        "rss_bytes": resident,
    }


def perplexity(engine: Any) -> dict[str, Any]:
    """exp of the mean log-loss on 8 windows of 512 tokens of held-out prose; each starts afresh."""
    from llmcourse.data.datasets import held_out_text

    ids = Tokenizer.from_file(default_checkpoint()).encode(held_out_text())
    losses = []
    for n in range(WINDOWS):
        window = ids[n * WINDOW : (n + 1) * WINDOW]
        logits = engine.logits(window)[:-1].astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        right = logits[np.arange(WINDOW - 1), window[1:]]
        losses.append(np.log(np.exp(logits).sum(1)) - right)
    return {"perplexity": float(np.exp(np.concatenate(losses).mean()))}


if __name__ == "__main__":
    name, kind, threads, task = sys.argv[1:]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    found = {"speed": speed, "perplexity": perplexity}[task](ENGINES[name](kind, int(threads)))
    print("RESULT " + json.dumps(found))
