"""The Transformer that translates: an encoder that sees both ways, a decoder that sees the past and the source."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcourse.data.vocabulary import PAD
from llmcourse.errors import CourseError
from llmcourse.models.attention import attend
from llmcourse.models.seq2seq import filling_last

KeyValue = tuple[Tensor, Tensor]  # (B, H, S, D) each


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Sizes: `width` C, `heads` H, `hidden` F, and how many blocks on each side."""

    source_vocab: int
    target_vocab: int
    width: int = 192
    heads: int = 4
    hidden: int = 384
    encoder_layers: int = 3
    decoder_layers: int = 3
    dropout: float = 0.3
    max_tokens: int = 128
    tied: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return asdict(self)


def sinusoids(tokens: int, width: int) -> Tensor:
    """Positions as (T, C): sines in the even columns, cosines in the odd ones.

    Source: Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(tokens, dtype=torch.float32)[:, None]
    angle = position * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # (T, C)


class MultiHead(nn.Module):
    """Multi-head attention: queries from one sequence, keys and values from the same or another one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def keys_values(self, source: Tensor) -> KeyValue:
        """(B, S, C) -> keys and values, (B, H, S, D) each."""
        return self._split(self.k_proj(source)), self._split(self.v_proj(source))

    def forward(
        self, x: Tensor, kv: KeyValue, *, causal: bool = False, padding: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) asks, `kv` answers; `padding` (B, S) marks keys that are only filling."""
        y = attend(self._split(self.q_proj(x)), *kv, causal=causal, padding=padding)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)


class FeedForward(nn.Sequential):
    """down(relu(up(x))), the same at every position."""

    def __init__(self, config: TransformerConfig) -> None:
        C, hidden = config.width, config.hidden
        super().__init__(
            nn.Linear(C, hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(hidden, C)
        )


class EncoderBlock(nn.Module):
    """Self-attention in both directions, then feed-forward, each on a normed copy and added back."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_self, self.norm_ff = (nn.LayerNorm(config.width) for _ in range(2))
        self.self_attention = MultiHead(config.width, config.heads)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:  # (B, S, C)
        y = self.norm_self(x)
        y = self.self_attention(y, self.self_attention.keys_values(y), padding=padding)
        x = x + self.dropout(y)
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to the source, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_ff = (
            nn.LayerNorm(config.width) for _ in range(3)
        )
        self.self_attention = MultiHead(config.width, config.heads)
        self.cross_attention = MultiHead(config.width, config.heads)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, source: Tensor) -> KeyValue:
        """Keys and values of the encoder's output (B, S, C), which stay the same for every step."""
        return self.cross_attention.keys_values(source)

    def forward(
        self, x: Tensor, past: KeyValue | None, memory: KeyValue, padding: Tensor
    ) -> tuple[Tensor, KeyValue]:
        """(B, T, C) behind `past`; returns the result, and past with the new keys and values."""
        y = self.norm_self(x)
        kv = self.self_attention.keys_values(y)
        if past is not None:
            kv = torch.cat([past[0], kv[0]], 2), torch.cat([past[1], kv[1]], 2)
        x = x + self.dropout(self.self_attention(y, kv, causal=True))
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), memory, padding=padding))
        return x + self.dropout(self.feed_forward(self.norm_ff(x))), kv


class TransformerState(NamedTuple):
    """What `step` needs of the past: keys and values of the source and of what was written, by layer."""

    memory: tuple[KeyValue, ...]
    padding: Tensor  # (B, S)
    past: tuple[KeyValue, ...] | None = None

    def select(self, rows: Tensor) -> TransformerState:
        """The same state for other rows of the batch: how a beam search moves its hypotheses."""

        def pick(pairs: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
            return tuple((k[rows], v[rows]) for k, v in pairs)

        past = None if self.past is None else pick(self.past)
        return TransformerState(pick(self.memory), self.padding[rows], past)


class Transformer(nn.Module):
    """Encoder–decoder for translation.

    Source: Vaswani et al. 2017; the norm stands before each part, not after it (Xiong et al. 2020).
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        C = config.width
        self.source_embedding = nn.Embedding(config.source_vocab, C, padding_idx=PAD)
        self.target_embedding = nn.Embedding(config.target_vocab, C, padding_idx=PAD)
        self.register_buffer("positions", sinusoids(config.max_tokens, C), persistent=False)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(C), nn.LayerNorm(C)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(C, config.target_vocab, bias=False)
        for table in (self.source_embedding, self.target_embedding):
            nn.init.normal_(table.weight, std=C**-0.5)
        if config.tied:
            self.head.weight = self.target_embedding.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (B, T, V) for source ids (B, S) and target ids (B, T) that begin with BOS.

        Filling (PAD) may stand on either side of the source, and on the right of the target.
        Raises CourseError for more than `max_tokens` on either side.
        """
        return self._write(self.start(source), target)[0]

    def encode(self, source: Tensor) -> Tensor:
        """One vector for each source token: (B, S) -> (B, S, C). Filling belongs on the right."""
        x = self._embed(self.source_embedding, source, 0)
        for block in self.encoder:
            x = block(x, source == PAD)
        return self.encoder_norm(x)

    def start(self, source: Tensor) -> TransformerState:
        """Read the source, and compute the keys and values of it that every step will ask."""
        source = filling_last(source)
        encoded = self.encode(source)
        memory = tuple(cast(DecoderBlock, block).read(encoded) for block in self.decoder)
        return TransformerState(memory, source == PAD)

    def step(self, state: TransformerState, tokens: Tensor) -> tuple[Tensor, TransformerState]:
        """Logits (B, V) after one more target token for each row, tokens (B,)."""
        logits, state = self._write(state, tokens[:, None])
        return logits[:, 0], state

    def _write(self, state: TransformerState, target: Tensor) -> tuple[Tensor, TransformerState]:
        start = 0 if state.past is None else state.past[0][0].shape[2]
        x = self._embed(self.target_embedding, target, start)  # (B, T, C)
        past = []
        for number, block in enumerate(self.decoder):
            before = None if state.past is None else state.past[number]
            x, kv = block(x, before, state.memory[number], state.padding)
            past.append(kv)
        logits = self.head(self.decoder_norm(x))  # (B, T, V)
        return logits, state._replace(past=tuple(past))

    def _embed(self, table: nn.Embedding, ids: Tensor, start: int) -> Tensor:
        end = start + ids.shape[1]
        if end > len(self.positions):
            raise CourseError(
                f"{end} tokens do not fit in this model's context of {len(self.positions)}; shorten the text."
            )
        # Rows of the table have length 1 at the start; √C lifts them to the size of the sinusoids.
        x = F.embedding(ids, table.weight, padding_idx=PAD) * self.config.width**0.5
        return self.dropout(x + self.positions[start:end])
