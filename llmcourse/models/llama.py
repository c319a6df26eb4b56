"""A Llama in one sitting: embeddings, blocks of attention and feed-forward, a head.

Tensor names are those of the Hugging Face checkpoints without the leading "model.", so real
weights load with no table of names in between.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llmcourse.data.checkpoints import load_weights
from llmcourse.errors import CourseError
from llmcourse.models.attention import attend
from llmcourse.models.layers import RMSNorm, SwiGLU, rotary_angles, rotate


class Cache(Protocol):
    """What a model asks of a key/value cache; `llmcourse.decode.cache` has one."""

    length: int

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, G, T, D) behind what is there; return all of it, (B, G, S, D) each."""
        ...

    def advance(self, tokens: int) -> None:
        """Called once after the last layer: the new positions count from now on."""
        ...


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a Llama, under the names of the checkpoint's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LlamaConfig:
        """Read a config.json. Raises CourseError for a model this class would compute wrongly."""
        raw = dict(raw)
        if (kind := raw.get("model_type", "llama")) != "llama":
            raise CourseError(f"This is a {kind!r} model; the course's Llama reads only 'llama'.")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CourseError(
                "This model stretches its rotary positions; choose one that does not."
            )
        if raw.get("attention_bias") or raw.get("mlp_bias"):
            raise CourseError(
                "This model has biases, which the course's Llama does not; choose another."
            )
        if raw.get("hidden_act", "silu") != "silu":
            raise CourseError(
                f"This model's activation is {raw['hidden_act']!r}, not 'silu'; choose another."
            )
        raw["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
        raw.setdefault("num_key_value_heads", raw["num_attention_heads"])
        if raw.get("head_dim") is None:
            raw["head_dim"] = raw["hidden_size"] // raw["num_attention_heads"]
        return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        H, G = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.head_dim = layer, D
        self.q_proj = nn.Linear(C, H * D, bias=False)
        self.k_proj = nn.Linear(C, G * D, bias=False)
        self.v_proj = nn.Linear(C, G * D, bias=False)
        self.o_proj = nn.Linear(H * D, C, bias=False)

    def forward(
        self, x: Tensor, angles: Tensor, cache: Cache | None, padding: Tensor | None = None
    ) -> Tensor:  # (B, T, C)
        B, T, _ = x.shape
        q, k, v = (
            part(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, heads, T, D)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        # The keyword only where it is needed: chapter 01 puts attend(q, k, v) of its own here.
        y = attend(q, k, v) if padding is None else attend(q, k, v, padding=padding)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Tensor, angles: Tensor, cache: Cache | None, padding: Tensor | None = None
    ) -> Tensor:  # (B, T, C)
        x = x + self.self_attn(self.input_layernorm(x), angles, cache, padding)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A decoder-only Transformer of the Llama family.

    Source: Touvron et al. 2023 (LLaMA), section 2.2; grouping by Ainslie et al. 2023.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        V, C = config.vocab_size, config.hidden_size
        # Uniform with a deviation of 0.02. (Normal numbers on the "meta" device load a compiler: 1 s.)
        self.embed_tokens = nn.Embedding(V, C, _weight=torch.empty(V, C).uniform_(-0.035, 0.035))
        self.layers = nn.ModuleList(Block(config, n) for n in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(C, V, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, ids: Tensor, cache: Cache | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) for token ids (B, T), which follow whatever the cache already holds.

        `padding` (B, S) is True where one of the S positions, those in the cache first, is only
        filling: no query looks there, and its own logits mean nothing. It may stand on either
        side, as rotary scores know distances only; it counts towards the context.

        Raises CourseError for no tokens at all, and when the context would grow past what the
        model was trained for.
        """
        return self.lm_head(self.hidden(ids, cache, padding))

    def hidden(
        self, ids: Tensor, cache: Cache | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """The same up to the head: (B, T, C). Generation needs the head at the last token only."""
        B, T = ids.shape
        if not T:
            raise CourseError("There are no tokens to read; give at least one.")
        start = cache.length if cache is not None else 0
        end = start + T
        if end > self.config.max_position_embeddings:
            raise CourseError(
                f"{end:,} tokens do not fit in this model's context of "
                f"{self.config.max_position_embeddings:,}; shorten the text."
            )
        if padding is not None and padding.shape != (B, end):
            raise CourseError(
                f"The padding is of shape {tuple(padding.shape)}, and {(B, end)} is wanted: a row "
                f"for each text, a column for each position, those in the cache included."
            )
        positions = torch.arange(start, end, device=ids.device)
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        x = self.embed_tokens(ids)  # (B, T, C)
        for layer in self.layers:
            x = layer(x, angles, cache, padding)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Llama:
        """Read `config.json` and `model.safetensors` of a folder. Raises CourseError if they differ."""
        folder = Path(folder)
        config = LlamaConfig.from_dict(json.loads((folder / "config.json").read_text("utf-8")))
        weights = load_weights(folder)
        return cls._from_weights(config, weights).to(device=device, dtype=dtype).eval()

    @classmethod
    def from_transformers(cls, model: Any) -> Llama:
        """Share the weights of a transformers `LlamaForCausalLM` (nothing is copied)."""
        config = LlamaConfig.from_dict(model.config.to_dict())
        return cls._from_weights(config, model.state_dict()).eval()

    @classmethod
    def _from_weights(cls, config: LlamaConfig, weights: dict[str, Tensor]) -> Llama:
        with torch.device(
            "meta"
        ):  # no memory and no random numbers for values about to be replaced
            model = cls(config)
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["embed_tokens.weight"]
        try:
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            line = " ".join(str(error).split("\n")[1:2]).strip()
            raise CourseError(f"The weights do not fit their configuration: {line}") from error
        if config.tie_word_embeddings:
            model.lm_head.weight = model.embed_tokens.weight
        return model.requires_grad_(False)
