"""Speed of what the course has so far, for people: `make bench`. Asserts nothing absolute.

Run it on an idle machine. Each figure stands beside the limit that bandwidth sets.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

PROMPT = "Why is the sky blue?"


def main() -> None:
    """Load the model, generate with and without a cache, and print both against the limit."""
    options = _options()
    import torch

    from llmcourse.decode.generate import generate_cached, generate_plain
    from llmcourse.measure.memory import tensor_bytes
    from llmcourse.measure.results import plain
    from llmcourse.measure.roofline import achieved_gb_per_s, bandwidth, summary
    from llmcourse.measure.timing import TokenTimes, compare
    from llmcourse.models import load_model

    if options.threads:
        torch.set_num_threads(options.threads)
    load_model()  # the first call may fetch and convert
    loading = compare({"load": lambda: _drop(load_model())}, repeat=3, warmup=0)
    if not options.json:
        print(f"Model load (median of 3): {loading.median_s('load'):.2f} s\n", flush=True)
    model, tokenizer = load_model()
    prompt = tokenizer.chat(PROMPT)

    def generate(with_what: Any) -> Any:
        return with_what(model, prompt, max_tokens=options.tokens)

    found = compare(
        {"no cache": lambda: generate(generate_plain), "cache": lambda: generate(generate_cached)},
        repeat=options.repeat,
    )
    times = TokenTimes.from_stream(generate(generate_cached))
    speed, weights = bandwidth(), tensor_bytes(model)
    if options.json:
        parts = {"load": loading, "generate": found, "decode": times, "bandwidth": speed}
        print(json.dumps(plain(parts), indent=2))
        return
    print(found, end="\n\n")
    print(f"With the cache, {len(prompt)} tokens of prompt: {times}")
    print(f"{speed}\n{summary(speed, weights)}")
    used = achieved_gb_per_s(weights, times.tokens_per_s)
    print(f"The cache reaches {used:.1f} GB/s: {used / speed.read_gb_per_s:.0%} of it.")


def _drop(_: Any) -> None:
    """Let the loaded model go, so that one at a time is in memory."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate (default 32)")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--threads", type=int, help="threads (default: PyTorch's choice)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
