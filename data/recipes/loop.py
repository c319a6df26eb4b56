"""The training loop of every recipe: resumable, with a progress bar and a log.

A run lives in a folder: `state.safetensors` (weights and optimiser), `best.safetensors` (the weights that
scored best) and `log.jsonl` (one line an evaluation). Stopped at any moment, it goes on from the last
evaluation and ends with the very numbers it would have had: what is random in a step depends on the
step's number alone.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast: the rate rises over `warmup` steps and falls along a cosine to a tenth.

    `best` names the score of an evaluation that is to be largest; `seconds` ends a run early.
    """

    steps: int
    every: int
    best: str
    rate: float = 1e-3
    warmup: int = 400
    decay: float = 0.01
    clip: float = 1.0
    seconds: float = math.inf

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / self.steps))
        return self.rate * rise * fall


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    evaluate: Callable[[], dict[str, float]],
    plan: Plan,
    folder: Path,
    label: str,
) -> list[dict[str, Any]]:
    """Train `model` in place to its best weights; returns the log.

    `loss_of(step)` draws the batch of that step and gives its loss; `evaluate()` scores the model.
    `seconds` of the log count training alone, not the evaluations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # No decay for biases and gains: it would pull a norm's gain to 0.
    heavy = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    light = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": heavy, "weight_decay": plan.decay}, {"params": light, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=True)
    parameters = heavy + light
    log = _resume(model, adam, parameters, folder)
    begun, spent = time.perf_counter(), log[-1]["seconds"] if log else 0.0
    losses: list[Tensor] = []
    start = log[-1]["step"] if log else 0
    bar = tqdm(range(start, plan.steps), desc=label, initial=start, total=plan.steps, mininterval=5)
    for step in bar:
        torch.manual_seed(step)
        for group in adam.param_groups:
            group["lr"] = plan.rate_at(step)
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, plan.clip)
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if (step + 1) % plan.every and step + 1 < plan.steps:
            continue
        mean = torch.stack(losses).mean().item()  # waits for the device, so the clock is right
        spent += time.perf_counter() - begun
        model.eval()
        with torch.inference_mode():
            row = {"step": step + 1, "seconds": round(spent, 3), "loss": round(mean, 4)}
            row |= {name: round(value, 4) for name, value in evaluate().items()}
        model.train()
        log.append(row)
        if row[plan.best] >= max(one[plan.best] for one in log):
            _write(folder / "best.safetensors", dict(model.state_dict()))
        _save(model, adam, parameters, log, folder)
        bar.set_postfix({k: v for k, v in row.items() if k not in ("step", "seconds")})
        if spent >= plan.seconds:
            break
        losses.clear()
        begun = time.perf_counter()
    model.load_state_dict(
        load_file(folder / "best.safetensors", device=str(parameters[0].device)), strict=False
    )
    return log


def _save(
    model: nn.Module, adam: Any, parameters: list[Tensor], log: list[Any], folder: Path
) -> None:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, parameter in enumerate(parameters):
        for name, value in adam.state[parameter].items():
            state[f"adam.{number}.{name}"] = value
    _write(folder / "state.safetensors", state, {"log": json.dumps(log)})
    lines = "".join(json.dumps(row) + "\n" for row in log)
    (folder / "log.jsonl").write_text(lines, "utf-8")


def _resume(
    model: nn.Module, adam: Any, parameters: list[Tensor], folder: Path
) -> list[dict[str, Any]]:
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.exists():
        return []
    with safe_open(path, framework="pt") as file:
        log = json.loads(file.metadata()["log"])
    state = load_file(path, device=str(parameters[0].device))
    own = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    model.load_state_dict(own, strict=False)
    for number, parameter in enumerate(parameters):
        prefix = f"adam.{number}."
        adam.state[parameter] = {
            # The step count stays where AdamW keeps it.
            k.removeprefix(prefix): v
            for k, v in state.items()
            if k.startswith(prefix)
        }
    return log


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str] | None = None) -> None:
    """Write in one step, so that a crash leaves the old file; a tied tensor once."""
    once: dict[int, str] = {}
    for key, value in tensors.items():
        once.setdefault(value.data_ptr(), key)
    part = path.with_name(path.name + ".part")
    save_file({key: tensors[key].contiguous() for key in once.values()}, part, metadata=about)
    os.replace(part, path)
