"""Find, verify, convert and load a checkpoint: safetensors only, never a pickle.

The course's model is fetched once, converted once into the cache, and then opened by memory map.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcourse.data import sources
from llmcourse.data.fetch import downloads, fetch, lock, writing
from llmcourse.errors import CourseError
from llmcourse.paths import cache

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "smollm2-135m-instruct"
CONVERTER = 1  # raise it when the conversion changes: folders made by an older one are made anew
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_FILES = (
    "model.gguf",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "config.json",
)


def default_checkpoint(progress: bool = True) -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched and converted if this is the first time.

    It holds model.safetensors (float32, Hugging Face names, half-split rotary order), config.json,
    tokenizer.json, tokenizer_config.json and the original model.gguf. What was cut off before is
    continued. Raises CourseError as `fetch` does.
    """
    folder = _models() / DEFAULT
    if _is_complete(folder):
        return folder

    def place_gguf(target: Path) -> None:
        from llmcourse.data.archive import extract_member

        old = folder / "model.gguf"  # a damaged conversion needs no second download
        if old.is_file() and _sha256(old) == sources.SMOLLM2_GGUF_SHA256:
            shutil.copyfile(old, target)
            return
        extract_member(fetch(sources.SMOLLM2, progress=progress), sources.SMOLLM2_GGUF, target)
        if _sha256(target) != sources.SMOLLM2_GGUF_SHA256:
            raise CourseError(
                f"{sources.SMOLLM2.filename} holds another model than it should; delete "
                f"{downloads()} and try again."
            )

    return _convert(place_gguf, folder, sources.SMOLLM2_GGUF_SHA256, progress)


def resolve_checkpoint(name: str | Path | None = None, *, progress: bool = True) -> Path:
    """The folder for `name`: None (the course's model), a folder, a .gguf file or a hub id.

    A GGUF file is converted into the cache once; a hub id (`owner/name`) is fetched from the
    Hugging Face hub, safetensors and JSON only. Raises CourseError if there is no such model, or
    only a pickled one.
    """
    if name is None or str(name) == DEFAULT:
        return default_checkpoint(progress)
    path = Path(name).expanduser()
    if path.is_dir():
        return _check_folder(path)
    if path.suffix in _PICKLES:
        raise CourseError(
            f"{path.name} is a pickle, which can run any code when opened, so it is not loaded; "
            f"give the model as safetensors or GGUF."
        )
    if path.is_file():
        if path.suffix == ".safetensors":
            return _check_folder(path.parent)
        return _convert_own_gguf(path, progress)
    if path.suffix not in (".gguf", ".safetensors") and re.fullmatch(
        r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(name)
    ):
        return _from_hub(str(name))
    raise CourseError(
        f"There is no model {str(name)!r}; give a folder with model.safetensors, a .gguf file, or a "
        f"hub id like HuggingFaceTB/SmolLM2-360M-Instruct."
    )


def load_weights(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors file(s), mapped into memory: pages are read on use.

    Raises CourseError if a file is missing, cut short or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for path in _weight_files(Path(folder)):
        try:
            weights.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise CourseError(
                f"{path} is cut short or damaged; delete its folder and fetch the model again."
            ) from error
    return weights


def gguf_path(folder: str | Path) -> Path:
    """The original GGUF file beside a conversion. Raises CourseError if the folder has none."""
    path = Path(folder) / "model.gguf"
    if not path.is_file():
        raise CourseError(f"{folder} was not made from a GGUF file; use the course's own model.")
    return path


def describe(name: str | Path | None = None) -> dict[str, Any]:
    """Facts about a checkpoint that is already here, without fetching: for `llmcourse model`.

    `ready` is False if the course's model has still to be fetched. Sizes are in bytes.
    """
    if name is not None and str(name) != DEFAULT:
        folder = resolve_checkpoint(name)
        return {"name": str(name), "folder": str(folder), "ready": True, **_facts(folder)}
    folder, source = _models() / DEFAULT, sources.SMOLLM2
    ready = _is_complete(folder)
    return {
        "name": "SmolLM2-135M-Instruct",
        "folder": str(folder),
        "ready": ready,
        "licence": "Apache-2.0",
        "source": f"{source.package}=={source.version}",
        "download_bytes": source.size,
        "sha256": source.sha256,
        **(_facts(folder) if ready else {}),
    }


def _facts(folder: Path) -> dict[str, Any]:
    shapes: dict[str, list[int]] = {}
    for path in _weight_files(folder):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shapes |= {k: v["shape"] for k, v in header.items() if k != "__metadata__"}
    parameters = sum(_product(shape) for shape in shapes.values())
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    return {"parameters": parameters, "tensors": len(shapes), "files": files}


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _models() -> Path:
    return cache() / "models"


def _convert_own_gguf(path: Path, progress: bool) -> Path:
    """The conversion of a reader's file, under the hash of its content."""
    from llmcourse.data.gguf import llama_config, read_gguf

    digest = _sha256(path)
    folder = _models() / f"gguf-{digest[:16]}"
    if _is_complete(folder):
        return folder
    llama_config(read_gguf(path))  # refuse before a large file is copied

    def place_gguf(target: Path) -> None:
        shutil.copyfile(path, target)

    return _convert(place_gguf, folder, digest, progress)


def _convert(
    place_gguf: Callable[[Path], None], folder: Path, gguf_sha256: str, progress: bool
) -> Path:
    """Make `folder` file by file in a staging folder beside it, then rename: all or nothing.

    Each file appears under its name only when whole, so a conversion that was cut off goes on
    with the next file.
    """
    staging = folder.with_name(folder.name + ".partial")
    stamp = {
        "converter": CONVERTER,
        "gguf": importlib.metadata.version("gguf"),
        "sha256": gguf_sha256,
    }
    with (
        writing(folder, 700_000_000),
        lock(folder, f"{folder.name} is being converted"),
        _nothing_left_of_a_refused(staging),
    ):
        if _is_complete(folder):
            return folder
        if _read_json(staging / "making.json") != stamp:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            (staging / "making.json").write_text(json.dumps(stamp), "utf-8")
        _write(staging / "model.gguf", place_gguf)
        if progress:
            print(f"Converting {folder.name} (once).", file=sys.stderr)
        _write_conversion(staging)
        sizes = {name: (staging / name).stat().st_size for name in _FILES}
        _write(
            staging / "stamp.json",
            lambda target: target.write_text(
                json.dumps({**stamp, "sizes": sizes}, indent=1), "utf-8"
            ),
        )
        (staging / "making.json").unlink()
        shutil.rmtree(folder, ignore_errors=True)  # an older converter's, or a damaged one
        os.replace(staging, folder)
    return folder


@contextlib.contextmanager
def _nothing_left_of_a_refused(staging: Path) -> Iterator[None]:
    """Keep the staging folder when the work was cut off, not when the file cannot be used."""
    try:
        yield
    except CourseError:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _write_conversion(staging: Path) -> None:
    """Write what is missing of the converted files from staging's model.gguf."""
    from llmcourse.data.gguf import float_weights, llama_config, read_gguf
    from llmcourse.data.tokenizer import build_tokenizer

    gguf = read_gguf(staging / "model.gguf")
    config = llama_config(gguf)

    def save_weights(target: Path) -> None:
        from safetensors.numpy import save_file

        weights = float_weights(gguf, config)
        if shutil.disk_usage(staging).free < sum(values.nbytes for values in weights.values()):
            raise OSError(errno.ENOSPC, "no space left")  # save_file would hide it in its own error
        save_file(weights, target, metadata={"format": "pt"})

    def save_json(value: dict[str, Any]) -> Callable[[Path], object]:
        return lambda target: target.write_text(json.dumps(value, indent=1), "utf-8")

    _write(staging / "tokenizer.json", lambda t: build_tokenizer(gguf.metadata).save(str(t)))
    _write(staging / "tokenizer_config.json", save_json(_tokenizer_config(gguf.metadata)))
    _write(staging / "model.safetensors", save_weights)
    _write(staging / "config.json", save_json(config))


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' AutoTokenizer wants beside tokenizer.json, so that peers read the folder."""
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template"),
        **{name: tokens[i] for name, i in ids.items() if i is not None},
    }


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """Have `save(temporary)` write the file, put it on the disk, then give it its name."""
    if path.exists():
        return
    temporary = path.with_name(path.name + ".part")
    save(temporary)
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _is_complete(folder: Path) -> bool:
    """Was the folder made by this converter, and has every file still its size? (No hashing: fast.)"""
    stamp = _read_json(folder / "stamp.json")
    if stamp.get("converter") != CONVERTER or set(stamp.get("sizes", {})) != set(_FILES):
        return False
    try:
        return all((folder / n).stat().st_size == size for n, size in stamp["sizes"].items())
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _check_folder(folder: Path) -> Path:
    """A reader's own folder, if it holds what is needed; the sentence names what is missing."""
    _weight_files(folder)
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CourseError(f"{folder} has no {name}; it must lie beside the weights.")
    return folder


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors file of a folder, or its shards."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = _read_json(folder / "model.safetensors.index.json").get("weight_map", {})
    shards = [folder / Path(name).name for name in sorted(set(index.values()))]
    if shards and all(shard.is_file() for shard in shards):
        return shards
    pickled = any(p.suffix in _PICKLES for p in folder.iterdir()) if folder.is_dir() else False
    raise CourseError(
        f"{folder} has no model.safetensors"
        + ("; it holds a pickle, which is never loaded: " if pickled else "; ")
        + "get the model as safetensors or GGUF."
    )


def _from_hub(name: str) -> Path:
    """Fetch `owner/name` from the Hugging Face hub into the hub's own cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CourseError(
            "A hub id needs one more package: pip install huggingface_hub."
        ) from error
    try:
        folder = snapshot_download(
            name,
            allow_patterns=["*.safetensors", "*.json"],
            ignore_patterns=["*/*"],
            etag_timeout=10,
        )
    except Exception as error:  # the hub's own errors, those of its HTTP client, and OSError
        first = str(error).strip().split("\n")[0][:160]
        raise CourseError(
            f"{name} could not be had from the Hugging Face hub ({type(error).__name__}: {first}); "
            f"check the name and the network, or give a folder or a .gguf file."
        ) from error
    return _check_folder(Path(folder))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
