"""One decode step on a GPU, eager and as one captured CUDA graph: `python -m tests.benchmarks.gpu_decode`.

SmolLM2-135M's shape with random weights: speed does not depend on their values. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from datetime import date

import torch

from llmcourse.decode.generate import generate_cached
from llmcourse.models.attention import attend
from llmcourse.models.layers import rotary_angles, rotate
from llmcourse.models.llama import Llama, LlamaConfig

SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    rope_theta=100000.0,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)


class StaticDecoder:
    """A greedy step whose shapes never change, so that a CUDA graph can hold it.

    Keys and values have room for all `length` positions from the start; those not yet written are
    hidden like filling. Token and position live on the device: nothing waits for the CPU.
    """

    def __init__(self, model: Llama, length: int) -> None:
        weight = model.embed_tokens.weight
        c, kind = model.config, {"device": weight.device, "dtype": weight.dtype}
        shape = (c.num_hidden_layers, 1, c.num_key_value_heads, length, c.head_dim)
        self.model, self.k, self.v = model, torch.zeros(shape, **kind), torch.zeros(shape, **kind)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
        self.position = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.places = torch.arange(length, device=weight.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self) -> None:
        """Read `token` at `position`; leave the likeliest next token and its position in their place."""
        c = self.model.config
        angles = rotary_angles(self.position, c.head_dim, c.rope_theta)
        empty = (self.places > self.position)[None]  # (1, S)
        x = self.model.embed_tokens(self.token)  # (1, 1, C)
        for number, layer in enumerate(self.model.layers):
            y = layer.input_layernorm(x)
            q, k, v = (
                part(y).view(1, 1, -1, c.head_dim).transpose(1, 2)
                for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            self.k[number].index_copy_(2, self.position, rotate(k, angles))
            self.v[number].index_copy_(2, self.position, v)
            y = attend(
                rotate(q, angles), self.k[number], self.v[number], causal=False, padding=empty
            )
            x = x + layer.self_attn.o_proj(y.transpose(1, 2).reshape(1, 1, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self.token.copy_(self.model.lm_head(self.model.norm(x)).argmax(-1))
        self.position.add_(1)

    def capture(self) -> None:
        """Record the step once; `run` then replays it with one launch."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def run(self, first: int, steps: int) -> list[int]:
        """Greedy tokens after `first`, from an empty context."""
        self.token.fill_(first)
        self.position.zero_()
        out = torch.empty(steps, dtype=torch.long, device=self.token.device)
        for i in range(steps):
            self.graph.replay() if self.graph else self.step()
            out[i : i + 1].copy_(self.token[0])
        return out.tolist()  # waits for the device


def read_gb_per_s() -> float:
    """GB/s of reading 4 GB: a sum over bf16, which writes nothing."""
    x = torch.ones(2_000_000_000, dtype=torch.bfloat16, device="cuda")
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        x.view(torch.int32).max()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return x.nbytes / statistics.median(times) / 1e9


@torch.inference_mode()
def measure(dtype: torch.dtype, tokens: int, repeats: int) -> dict[str, object]:
    """Tokens/s of the three ways, interleaved, and whether they wrote the same."""
    torch.manual_seed(0)
    model = Llama(SMOLLM2).to(device="cuda", dtype=dtype).eval()
    eager, graph = StaticDecoder(model, tokens), StaticDecoder(model, tokens)
    graph.capture()
    ways = {
        "eager, growing cache": lambda: list(generate_cached(model, [1], max_tokens=tokens)),
        "eager, static cache": lambda: eager.run(1, tokens),
        "CUDA graph": lambda: graph.run(1, tokens),
    }
    written = {name: way() for name, way in ways.items()}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            torch.cuda.synchronize()
            begun = time.perf_counter()
            way()
            torch.cuda.synchronize()
            took[name].append(time.perf_counter() - begun)
    bytes_read = sum(p.nbytes for p in model.parameters())
    rows = {}
    for name, times in took.items():
        speeds = sorted(tokens / one for one in times)
        speed = statistics.median(speeds)
        rows[name] = {
            "tokens_per_s": round(speed, 1),
            "spread": [round(speeds[0], 1), round(speeds[-1], 1)],
            "weight_gb_per_s": round(speed * bytes_read / 1e9, 1),
            "same_tokens_as_first": sum(
                a == b for a, b in zip(written[name], written["eager, growing cache"], strict=True)
            ),
        }
    return {"dtype": str(dtype), "tokens": tokens, "weight_bytes": bytes_read, "rows": rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; nothing was measured.")
    torch.backends.cuda.matmul.allow_tf32 = False
    print(
        json.dumps(
            {
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "date": date.today().isoformat(),
                "command": "python -m tests.benchmarks.gpu_decode",
                "read_gb_per_s": round(read_gb_per_s(), 1),
                "runs": [
                    measure(dtype, options.tokens, options.repeats)
                    for dtype in (torch.float32, torch.bfloat16)
                ],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
