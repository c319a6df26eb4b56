"""Two translators made of LSTMs: one hands over a single state, the other looks back at every token.

Both, and the Transformer beside them, answer to the same three calls: `model(source, target)` for
training, `start(source)` and `step(state, tokens)` for writing one token at a time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llmcourse.data.vocabulary import PAD
from llmcourse.models.attention import attend


@dataclass(frozen=True, slots=True)
class LSTMConfig:
    """Sizes: `width` of an embedding, `hidden` entries of a state, `layers` in each of the two LSTMs."""

    source_vocab: int
    target_vocab: int
    width: int = 192
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.3
    tied: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return asdict(self)


class LSTMState(NamedTuple):
    """What `step` needs of the past: (layers, B, hidden) twice, and what the encoder wrote, if kept."""

    h: Tensor
    c: Tensor
    memory: tuple[Tensor, Tensor, Tensor] | None = (
        None  # keys, values (B, 1, S, hidden), padding (B, S)
    )

    def select(self, rows: Tensor) -> LSTMState:
        """The same state for other rows of the batch: how a beam search moves its hypotheses."""
        memory = None if self.memory is None else tuple(part[rows] for part in self.memory)
        return LSTMState(self.h[:, rows], self.c[:, rows], memory)  # type: ignore[arg-type]


class LSTMTranslator(nn.Module):
    """Encoder–decoder: the decoder starts from the encoder's last state and sees nothing else of it.

    The source is read backwards: its first words are then the last read, and the first needed.
    Source: Sutskever, Vinyals, Le 2014, section 3.3 for the reversal.
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.config = config
        E, N, L = config.width, config.hidden, config.layers
        between = config.dropout if L > 1 else 0.0
        self.source_embedding = nn.Embedding(config.source_vocab, E, padding_idx=PAD)
        self.target_embedding = nn.Embedding(config.target_vocab, E, padding_idx=PAD)
        self.encoder = nn.LSTM(E, N, L, batch_first=True, dropout=between)
        self.decoder = nn.LSTM(E, N, L, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(N, E)
        self.head = nn.Linear(E, config.target_vocab, bias=False)
        for table in (self.source_embedding, self.target_embedding):
            nn.init.normal_(table.weight, std=E**-0.5)
        for lstm in (self.encoder, self.decoder):
            for layer in range(L):  # forget gates begin open (Jozefowicz et al. 2015)
                nn.init.ones_(getattr(lstm, f"bias_ih_l{layer}")[N : 2 * N])
        if config.tied:
            self.head.weight = self.target_embedding.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (B, T, V) for source ids (B, S) and target ids (B, T) that begin with BOS.

        Filling (PAD) may stand on either side of the source, and on the right of the target.
        """
        return self._write(self.start(source), target)[0]

    def start(self, source: Tensor) -> LSTMState:
        """Read the source."""
        h, c, _, _ = self._read(source)
        return LSTMState(h, c)

    def step(self, state: LSTMState, tokens: Tensor) -> tuple[Tensor, LSTMState]:
        """Logits (B, V) after one more target token for each row, tokens (B,)."""
        logits, state = self._write(state, tokens[:, None])
        return logits[:, 0], state

    def _read(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h and c (layers, B, hidden), all outputs (B, S, hidden), padding (B, S)."""
        source = backwards(source)
        padding = source == PAD
        x = self.dropout(self.source_embedding(source))  # (B, S, E)
        # Packed, so that h is the state after the last real token, not after the filling.
        lengths = (~padding).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        outputs, (h, c) = self.encoder(packed)
        outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.shape[1])
        return h, c, outputs, padding

    def _write(self, state: LSTMState, target: Tensor) -> tuple[Tensor, LSTMState]:
        x = self.dropout(self.target_embedding(target))  # (B, T, E)
        y, (h, c) = self.decoder(x, (state.h, state.c))  # (B, T, hidden)
        y = self._look_back(y, state)
        return self.head(self.dropout(self.project(y))), LSTMState(h, c, state.memory)

    def _look_back(self, y: Tensor, state: LSTMState) -> Tensor:
        return y  # nothing to look at: that is the bottleneck


class AttentiveLSTMTranslator(LSTMTranslator):
    """The same, and each target position also looks at all outputs of the encoder.

    Source: Luong, Pham, Manning 2015, eq. 5 and 8 ("general"): scores are not divided by √hidden.
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.key = nn.Linear(config.hidden, config.hidden, bias=False)
        self.combine = nn.Linear(2 * config.hidden, config.hidden, bias=False)

    def start(self, source: Tensor) -> LSTMState:
        """Read the source and keep every output."""
        h, c, outputs, padding = self._read(source)
        return LSTMState(h, c, (self.key(outputs)[:, None], outputs[:, None], padding))

    def _look_back(self, y: Tensor, state: LSTMState) -> Tensor:
        assert state.memory is not None
        keys, values, padding = state.memory
        # `attend` divides by √hidden and Luong does not. An LSTM's outputs are small (tanh of something
        # times a gate): divided, the weights would begin, and long stay, close to the plain mean.
        asked = y[:, None] * y.shape[-1] ** 0.5  # (B, 1, T, hidden)
        context = attend(asked, keys, values, causal=False, padding=padding)[:, 0]
        return torch.tanh(self.combine(torch.cat([context, y], -1)))  # (B, T, hidden)


def filling_last(ids: Tensor) -> Tensor:
    """The rows of (B, S) with every PAD moved behind the real tokens, whose order stays."""
    order = (ids == PAD).to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order)


def backwards(ids: Tensor) -> Tensor:
    """The rows of (B, S) with their real tokens in reverse order and every PAD behind them."""
    return filling_last(ids.flip(1))
