"""A whole Llama packed for the native engine: one safetensors file in the cache, mapped into memory."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from llmcourse.data.fetch import lock, writing
from llmcourse.data.gguf import Gguf, half_split, hugging_face_name, llama_config, read_gguf
from llmcourse.errors import CourseError
from llmcourse.kernels.pack import GROUP, TILE, Codes, Plane, pack, pack8, round_to_groups
from llmcourse.paths import cache

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKER = 3  # raise it when the layout changes: files of an older one are made anew
_ALIGN = 4096


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed model: `config` as in config.json, `arrays` and `planes` by name, mapped from `path`.

    A matrix is `planes[name]`, and `planes[name + ".low"]` too if it has eight bits.
    """

    config: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    planes: dict[str, Plane]
    path: Path | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(
            a.nbytes for a in (*self.arrays.values(), *(p.blocks for p in self.planes.values()))
        )


def pack_gguf(gguf: Gguf, *, head_bits: int = 8) -> Packed:
    """A GGUF file of a Llama with matrices in Q4_1, Q4_0 or Q8_0, packed.

    `head_bits` = 4 leaves the low half of an 8-bit head out, which costs quality: for experiments.
    Raises CourseError for another architecture or format.
    """
    config = llama_config(gguf)
    names = {hugging_face_name(name, gguf.path): name for name in gguf.tensors}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def codes(name: str) -> Codes:
        found = _codes(gguf, names[name])
        count = heads.get(name.split(".")[-2])
        return {key: half_split(part, count) for key, part in found.items()} if count else found

    def floats(name: str) -> NDArray[np.float32]:
        return np.array(gguf.tensors[names[name]].data, dtype=np.float32)

    try:
        return _pack_model(config, codes, floats, head_bits)
    except KeyError as error:
        raise CourseError(
            f"{gguf.path.name} has no {error.args[0]}; choose another file."
        ) from error


def pack_llama(
    config: dict[str, Any],
    weights: Mapping[str, NDArray[np.float32]],
    *,
    bits: int = 4,
    group: int = GROUP,
    head_bits: int = 8,
) -> Packed:
    """Float weights under their Hugging Face names, rounded to nearest in groups, and packed.

    `config` is as in config.json. Raises CourseError for bits other than 4 or 8.
    """
    if not {bits, head_bits} <= {4, 8}:
        raise CourseError("The kernel has weights of 4 or 8 bits; choose one of them.")

    def codes(name: str) -> Codes:
        head = name in ("lm_head.weight", "model.embed_tokens.weight")
        return round_to_groups(weights[name], bits=8 if head else bits, group=group)

    return _pack_model(
        config, codes, lambda name: weights[name].astype(np.float32), head_bits, group
    )


def _pack_model(
    config: dict[str, Any],
    codes: Callable[[str], Codes],
    floats: Callable[[str], NDArray[np.float32]],
    head_bits: int,
    group: int = GROUP,
) -> Packed:
    """The parts of a Llama joined as the kernel wants them; a KeyError names a missing tensor."""
    arrays: dict[str, NDArray[Any]] = {}
    planes: dict[str, Plane] = {}

    def add(name: str, *tensors: str, join: Callable[..., Any] = np.concatenate) -> None:
        parts = [codes(tensor) for tensor in tensors]
        if len({tuple(part) for part in parts}) > 1:
            raise CourseError(f"{', '.join(tensors)} have different formats; choose another model.")
        joined = {key: join([part[key] for part in parts]) for key in parts[0]}
        if "wide" in joined:
            planes[name], low = pack8(joined["wide"], joined["scales"], group=group)
            if name != "head" or head_bits == 8:
                planes[f"{name}.low"] = low
        else:  # without minima it is Q4_0: w = scale * (code - 8)
            planes[name] = pack(
                joined["codes"], joined["scales"], joined.get("mins"), ratio=-8.0, group=group
            )

    for n in range(config["num_hidden_layers"]):
        here = f"model.layers.{n}"
        arrays[f"{n}.attention_norm"] = floats(f"{here}.input_layernorm.weight")
        arrays[f"{n}.ffn_norm"] = floats(f"{here}.post_attention_layernorm.weight")
        add(f"{n}.qkv", *(f"{here}.self_attn.{x}_proj.weight" for x in "qkv"))
        add(f"{n}.o", f"{here}.self_attn.o_proj.weight")
        gate_up = (f"{here}.mlp.{x}_proj.weight" for x in ("gate", "up"))
        add(f"{n}.gate_up", *gate_up, join=_in_turn)
        add(f"{n}.down", f"{here}.mlp.down_proj.weight")
    arrays["norm"] = floats("model.norm.weight")
    if config["tie_word_embeddings"]:
        add("head", "model.embed_tokens.weight")
    else:
        add("embedding", "model.embed_tokens.weight")
        add("head", "lm_head.weight")
    return Packed(config, arrays, planes)


def packed_model(gguf: str | Path, *, head_bits: int = 8) -> Packed:
    """The packed form of a GGUF file, from the cache or made now. Raises as `pack_gguf` does."""
    gguf = Path(gguf)
    facts = gguf.stat()
    name = f"{gguf.parent.name}-{facts.st_size:x}-{facts.st_mtime_ns:x}-{head_bits}-v{PACKER}"
    path = cache() / "packed" / f"{name}.safetensors"
    with writing(path, facts.st_size), lock(path, "The weights are being packed"):
        if path.is_file():
            with contextlib.suppress(CourseError):  # a damaged one is made anew
                return load(path)
        save(pack_gguf(read_gguf(gguf), head_bits=head_bits), path)
    return load(path)


def save(packed: Packed, path: Path) -> None:
    """Write a safetensors file whose tensors begin at cache lines; complete, or not there at all."""
    tensors = {**packed.arrays, **{k: p.blocks for k, p in packed.planes.items()}}
    kinds = {np.dtype(np.uint8): "U8", np.dtype(np.float32): "F32"}
    facts = {k: _facts(p) for k, p in packed.planes.items()}
    header: dict[str, Any] = {
        "__metadata__": {"config": json.dumps(packed.config), "planes": json.dumps(facts)}
    }
    at = 0
    fill: list[bytes] = []
    for key, tensor in tensors.items():
        gap = -tensor.nbytes % 64  # safetensors allow no gaps, so what fills one is a tensor too
        header[key] = _entry(kinds[tensor.dtype], tensor.shape, at, tensor.nbytes)
        at += tensor.nbytes
        if gap:
            header[f"{key}.gap"] = _entry("U8", (gap,), at, gap)
            at += gap
        fill.append(bytes(gap))
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    with writing(path, len(text) + at):
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for tensor, gap_bytes in zip(tensors.values(), fill, strict=True):
                    file.write(np.ascontiguousarray(tensor).data)
                    file.write(gap_bytes)
                _forget(file)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def load(path: Path) -> Packed:
    """Map a file that `save` wrote. Raises CourseError if it is damaged."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
        mapped = np.frombuffer(_map(path), np.uint8)
        meta = header.pop("__metadata__")
        planes_of, config = json.loads(meta["planes"]), json.loads(meta["config"])
        arrays, planes = {}, {}
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            kind = np.uint8 if entry["dtype"] == "U8" else np.float32
            tensor = mapped[start + begin : start + end].view(kind).reshape(entry["shape"])
            if key in planes_of:
                planes[key] = Plane(tensor, **planes_of[key])
            elif not key.endswith(".gap"):
                arrays[key] = tensor
    except (OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise CourseError(f"{path} is damaged; delete it, and it is made again.") from error
    return Packed(config, arrays, planes, path)


def _map(path: Path) -> mmap.mmap:
    """The file in memory, in pages of 2 MB where the system can: a core then looks up few addresses.

    Measured with four streams on a shared EPYC: a seventh faster than with pages of 4 KB.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them says EINVAL
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def _forget(file: IO[bytes]) -> None:
    """Let the system drop its copy of what was written, in small pages; reading makes large ones."""
    file.flush()
    if hasattr(os, "posix_fadvise"):
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _facts(plane: Plane) -> dict[str, Any]:
    return {k: v for k, v in ((f, getattr(plane, f)) for f in Plane.__slots__) if k != "blocks"}


def _entry(kind: str, shape: tuple[int, ...], at: int, size: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}


def _codes(gguf: Gguf, name: str) -> Codes:
    """Codes (rows, cols), scales and perhaps minima (rows, cols / 32) of a quantized tensor."""
    tensor = gguf.tensors[name]
    kind = tensor.tensor_type.name
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}.get(kind)
    if size is None:
        raise CourseError(
            f"{gguf.path.name} stores {name} as {kind}; the kernel reads Q4_0, Q4_1 and Q8_0."
        )
    rows = tensor.data.shape[0]
    blocks = np.ascontiguousarray(tensor.data).reshape(rows, -1, size)

    def halves(at: int) -> NDArray[np.float16]:
        return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0]

    if kind == "Q8_0":
        return {"wide": blocks[:, :, 2:].reshape(rows, -1).view(np.int8), "scales": halves(0)}
    nibbles = blocks[:, :, size - 16 :]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(rows, -1)
    found = {"codes": codes, "scales": halves(0)}
    return found | {"mins": halves(2)} if kind == "Q4_1" else found


def _in_turn(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Gate and up (F, cols), F filled up to 32: even tiles of gate, odd ones, then those of up."""
    rows, cols = parts[0].shape
    full = np.zeros((2, -(-rows // 32) * 32, cols), parts[0].dtype)
    for n, part in enumerate(parts):
        full[n, :rows] = part
    return full.reshape(2, -1, 2, TILE, cols).swapaxes(1, 2).reshape(-1, cols)
