"""Drives the native code through all it does, for a build with sanitizers: see test_kernels_native.py.

Arguments: flags of the compiler. Odd sizes, so that every tile and group is only partly filled; every
length up to the context; threads that work, sleep and are told to stop.
"""

import ctypes
import sys
import threading
import time

import numpy as np

from llmcourse.kernels import cpu
from llmcourse.kernels.operators import Operators
from llmcourse.kernels.packed import pack_llama

flags = tuple(sys.argv[1:])
path = cpu.build_library(flags)
cpu.build_library = lambda: path

rng = np.random.default_rng(0)
C, F, V, L, H, G, D = 37, 45, 51, 2, 6, 2, 6
config = {
    "hidden_size": C, "intermediate_size": F, "vocab_size": V, "num_hidden_layers": L,
    "num_attention_heads": H, "num_key_value_heads": G, "head_dim": D, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "max_position_embeddings": 140, "tie_word_embeddings": False,
}  # fmt: skip


def weight(*shape):
    return rng.normal(size=shape).astype(np.float32) * 0.3


weights = {"model.embed_tokens.weight": weight(V, C), "lm_head.weight": weight(V, C)}
weights["model.norm.weight"] = weight(C)
for n in range(L):
    here = f"model.layers.{n}"
    for name, rows, cols in (
        ("self_attn.q_proj", H * D, C), ("self_attn.k_proj", G * D, C), ("self_attn.v_proj", G * D, C),
        ("self_attn.o_proj", C, H * D), ("mlp.gate_proj", F, C), ("mlp.up_proj", F, C),
        ("mlp.down_proj", C, F),
    ):  # fmt: skip
        weights[f"{here}.{name}.weight"] = weight(rows, cols)
    weights[f"{here}.input_layernorm.weight"] = weight(C)
    weights[f"{here}.post_attention_layernorm.weight"] = weight(C)

for isa in cpu.instruction_sets():
    ops = Operators(isa)
    for bits, group in ((4, 32), (8, 64)):
        packed = pack_llama(config, weights, bits=bits, group=group)
        ops.matmul(packed.planes, rng.normal(size=(7, C)).astype(np.float32), "0.qkv")
        for threads in (1, 3):
            engine = cpu.CpuEngine(packed, isa=isa, threads=threads)
            every = (threads, bits) == (3, 4)
            for length in (
                range(1, 141) if every else (1, 2, 3, 4, 5, 63, 64, 65, 127, 128, 129, 140)
            ):
                engine.rewind()
                engine.read_all([length % V] * length)
            engine.rewind()
            for token in range(140):  # and one by one
                (engine.best, engine.read)[token % 2]([token % V])
            assert len(engine.generate_all([1, 2, 3], max_tokens=137)) == 137
            time.sleep(0.01)  # the threads fall asleep, and are woken again
            engine.rewind()
            engine.best([1])
            engine.close()

# Two engines in two threads on the same weights.
engines = [cpu.CpuEngine(packed, threads=2) for _ in range(2)]
workers = [
    threading.Thread(target=engine.generate_all, args=([1, 2],), kwargs={"max_tokens": 100})
    for engine in engines
]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
for engine in engines:
    engine.close()
ctypes.CDLL(None)  # leave by the ordinary way, so that a sanitizer reports at exit
print("done")
