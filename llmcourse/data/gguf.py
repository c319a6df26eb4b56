"""Read a GGUF file of the Llama architecture into the names and the layout of Hugging Face.

Source: the GGUF specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcourse.errors import CourseError

if TYPE_CHECKING:
    import numpy as np
    from gguf import ReaderTensor

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Gguf:
    """An open GGUF file: `metadata` as Python values, `tensors` as views into the mapped file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: dict[str, ReaderTensor]


class _Metadata(Mapping[str, Any]):
    """Values are taken out when asked for: the lists of tokens alone need seconds."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields, self._read = fields, functools.cache(lambda key: fields[key].contents())

    def __getitem__(self, key: str) -> Any:
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def read_gguf(path: str | Path) -> Gguf:
    """Open a GGUF file. Raises CourseError if it is none, or is cut short or damaged."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CourseError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
    if magic != b"GGUF":
        raise CourseError(f"{path.name} is not a GGUF file; give a .gguf file of a Llama model.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = _Metadata(reader.fields)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # the reader trusts the file, so damage shows as any exception
        raise CourseError(
            f"{path.name} is cut short or damaged; fetch it again from where it came."
        ) from error
    return Gguf(path, metadata, tensors)


def llama_config(gguf: Gguf) -> dict[str, Any]:
    """The file's metadata under the keys of a Hugging Face config.json.

    Raises CourseError if the file holds another architecture, or stretched rotary positions.
    """
    meta = gguf.metadata
    if (kind := meta.get("general.architecture")) != "llama":
        raise CourseError(
            f"{gguf.path.name} holds a {kind!r} model; the course reads only 'llama'."
        )
    if meta.get("llama.expert_count") or meta.get("llama.rope.scaling.type", "none") != "none":
        raise CourseError(
            f"{gguf.path.name} has experts or stretched positions, which the course's Llama does "
            f"not compute; choose a plain Llama."
        )
    try:
        hidden, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
        head_dim = meta.get("llama.attention.key_length") or hidden // heads
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": int(gguf.tensors["token_embd.weight"].shape[1]),
            "hidden_size": hidden,
            "intermediate_size": meta["llama.feed_forward_length"],
            "num_hidden_layers": meta["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": meta["llama.context_length"],
            "rms_norm_eps": _short(meta["llama.attention.layer_norm_rms_epsilon"]),
            "rope_theta": _short(meta.get("llama.rope.freq_base", 10000.0)),
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": "output.weight" not in gguf.tensors,
            "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
            "dtype": "float32",
        }
    except KeyError as error:
        raise CourseError(
            f"{gguf.path.name} does not say its {error.args[0]}; choose another file."
        ) from error
    if meta.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise CourseError(f"{gguf.path.name} turns only a part of each head; choose a plain Llama.")
    return config


def float_weights(gguf: Gguf, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """All weights as float32 under their Hugging Face names, rotary pairs in half-split order.

    Raises CourseError for a tensor that the course's Llama has no place for.
    """
    import numpy as np
    from gguf import dequantize

    weights = {}
    for name, tensor in gguf.tensors.items():
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise CourseError(
                f"{gguf.path.name} stores {name} as {tensor.tensor_type.name}, which cannot be read."
            ) from error
        values = np.asarray(values, dtype=np.float32)
        if name.endswith("attn_q.weight"):
            values = half_split(values, config["num_attention_heads"])
        elif name.endswith("attn_k.weight"):
            values = half_split(values, config["num_key_value_heads"])
        weights[hugging_face_name(name, gguf.path)] = np.ascontiguousarray(values)
    return weights


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads * D, C) of a Q or K matrix from interleaved to half-split rotary order.

    GGUF keeps the two rows that turn together side by side (0, 1), (2, 3), …; transformers turns
    row i with row i + D/2. *Subtle*: the wrong order gives fluent nonsense, not an error.
    Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py, undone.
    """
    HD, C = rows.shape
    return rows.reshape(heads, HD // heads // 2, 2, C).swapaxes(1, 2).reshape(HD, C)


def hugging_face_name(name: str, path: Path) -> str:
    """What Hugging Face calls a tensor of a GGUF file. Raises CourseError for one it does not have."""
    if name in _WHOLE:
        return _WHOLE[name]
    if (m := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)) and m[2] in _IN_LAYER:
        return f"model.layers.{m[1]}.{_IN_LAYER[m[2]]}.weight"
    raise CourseError(f"{path.name} holds {name}, for which the course's Llama has no place.")


def _short(value: float) -> float:
    """The decimal number a float32 was written for: 9.99999974e-06 is 1e-05."""
    return float(f"{value:.6g}")
