"""An endpoint as its files describe it: config, tensor names, shapes, dtypes. No weights are loaded.

Works on a local folder and, through headers fetched by HTTP range, on a Hub repository.
safetensors files are untrusted: a header is bounded, its offsets are checked against the
file's size, and a shard index cannot point outside the folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dami_merge.checkpoints.model_ref import ModelRef
from dami_router.errors import CheckpointError
from dami_router.manifest.hub_errors import told

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint", "read_header"]

_MAX_HEADER = 100_000_000  # the safetensors format's own limit
_SINGLE = "model.safetensors"
_BESIDE = re.compile(r"consolidated|adapter_|optimizer|training_")
_MAX_JSON = 64 << 20
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64,
    "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a safetensors file: `start` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def floating(self) -> bool:
        """Whether it can be interpolated: bf16, fp16, fp32 or fp64."""
        return self.dtype in ("BF16", "F16", "F32", "F64")


@dataclass(frozen=True)
class Checkpoint:
    """What an endpoint's files say. `folder` is None for a repository on the Hub."""

    ref: ModelRef
    folder: Path | None
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    commit: str | None = None
    file_hashes: Mapping[str, str] | None = None
    """Content hashes of files, where the Hub tells them without a download."""

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def tied(self) -> bool:
        """Whether the config ties the head to the embeddings, as Transformers reads it."""
        from dami_merge.checkpoints.tying import ties

        return ties(self.config)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a small JSON file of the endpoint (tokenizer_config.json, …), or None where it has none."""
        path = _hub_file(self.ref, name, self.commit) if self.folder is None else self.folder / name
        return _json(path, str(self.ref)) if path is not None and path.is_file() else None

    def read_text(self, name: str) -> str | None:
        """Return a small text file of the endpoint, or None where it has none."""
        path = _hub_file(self.ref, name, self.commit) if self.folder is None else self.folder / name
        if path is None or not path.is_file() or path.stat().st_size > _MAX_JSON:
            return None
        return path.read_text(encoding="utf-8", errors="replace")


def open_checkpoint(ref: ModelRef) -> Checkpoint:
    """Open a local folder if there is one by that path, else the Hub repository of that id.

    Raises CheckpointError where something is missing or damaged, FailureError where the Hub is out of reach.
    """
    path = Path(ref.path).expanduser()
    if path.is_dir():
        return _open_folder(ref, path)
    if path.exists():
        raise CheckpointError(f"{ref}: is a file; expected the folder of a checkpoint")
    if _looks_local(ref.path):
        raise CheckpointError(
            f"{ref}: no such folder", hint="relative paths start in the folder where the command is run"
        )
    return _open_hub(ref)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of a safetensors file: tensor name → TensorInfo."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise CheckpointError(
                    f"{path}: not a whole safetensors file: the header should take {length} bytes, the file has {size}",
                    hint="download or copy it again",
                )
            raw = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the safetensors header is not valid JSON") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return _header_tensors(path, raw, data=8 + length, size=size)


def _header_tensors(path: Path, raw: object, *, data: int, size: int) -> dict[str, TensorInfo]:
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a JSON object")
    tensors = {}
    for name, entry in raw.items():
        if name == "__metadata__":
            continue
        try:
            start, end = (int(value) for value in entry["data_offsets"])
            shape = tuple(int(value) for value in entry["shape"])
            dtype = str(entry["dtype"])
            expected = math.prod(shape) * _BITS[dtype] // 8
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{path}: tensor `{name}` has an invalid header entry") from None
        if min(shape, default=0) < 0 or start < 0 or end - start != expected:
            raise CheckpointError(
                f"{path}: tensor `{name}` says {dtype} {list(shape)}, {expected} bytes, but spans {end - start}"
            )
        if data + end > size:
            raise CheckpointError(
                f"{path}: tensor `{name}` ends at byte {data + end}, the file at {size}: truncated",
                hint="download or copy it again",
            )
        tensors[name] = TensorInfo(dtype, shape, path.name, data + start, data + end)
    return tensors


def _looks_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1 or (os.sep != "/" and os.sep in path)


def _open_folder(ref: ModelRef, folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{ref}: no config.json in {folder}; expected the folder of a checkpoint")
    config = _json(config_path, str(ref))
    tensors: dict[str, TensorInfo] = {}
    for name in _weight_files(ref, folder):
        for tensor, info in read_header(folder / name).items():
            if tensor in tensors:
                raise CheckpointError(f"{ref}: tensor `{tensor}` is in {tensors[tensor].file} and in {name}")
            tensors[tensor] = info
    return Checkpoint(ref, folder, config, tensors)


def _weight_files(ref: ModelRef, folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = _indexed_files(ref, _json(index, str(ref)))
        if _SINGLE not in files and (folder / _SINGLE).is_file():
            return [_SINGLE]  # as Transformers does, which looks for it first
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{ref}: {len(missing)} of {len(files)} weight files missing, first {missing[0]}",
                hint="finish the download",
            )
        return files
    if (folder / _SINGLE).is_file():
        return [_SINGLE]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    # Without these the folder is a whole model in Mistral's names, or an adapter, as its own error tells.
    found = [name for name in found if not _BESIDE.match(name)] or found
    if not found:
        pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
        raise CheckpointError(
            f"{ref}: no .safetensors file in {folder}" + (f", only {pickled[0].name}" if pickled else ""),
            hint="pickled checkpoints can run code and are not read; convert them to safetensors first",
        )
    return found


def _indexed_files(ref: ModelRef, index: Mapping[str, Any]) -> list[str]:
    weights = index.get("weight_map")
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{ref}: model.safetensors.index.json has no weight_map")
    files = sorted({str(name) for name in weights.values()})
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{ref}: the shard index points at `{name}`; expected a file of the folder")
    return files


def _json(path: Path, who: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{who}: {path.name} is larger than {_MAX_JSON >> 20} MiB")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{who}: {path.name} is not valid JSON") from None
    except OSError as error:
        raise CheckpointError(f"{who}: {path.name} cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{who}: {path.name} is not a JSON object")
    return data


def _open_hub(ref: ModelRef) -> Checkpoint:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, NotASafetensorsRepoError

    try:
        api = HfApi()
        info = api.model_info(ref.path, revision=ref.revision, files_metadata=True)
        metadata = api.get_safetensors_metadata(ref.path, revision=info.sha)
    except NotASafetensorsRepoError:
        raise CheckpointError(f"{ref}: the repository has no safetensors weights") from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(*_hub_problem(ref, error)) from None
    except Exception as error:  # network libraries raise many kinds; each means "out of reach"
        raise CheckpointError(
            f"{ref}: no such folder here, and the Hub cannot be reached ({type(error).__name__})",
            hint="check the path, or the network and HF_ENDPOINT",
        ) from None
    tensors = {
        name: TensorInfo(str(t.dtype), tuple(t.shape), file, *t.data_offsets)
        for file, part in metadata.files_metadata.items()
        for name, t in part.tensors.items()
    }
    config = _hub_file(ref, "config.json", info.sha)
    if config is None:
        raise CheckpointError(f"{ref}: the repository has no config.json")
    hashes = {s.rfilename: (s.lfs.sha256 if s.lfs else s.blob_id) for s in info.siblings or ()}
    return Checkpoint(ref, None, _json(config, str(ref)), tensors, info.sha, {k: v for k, v in hashes.items() if v})


def _hub_problem(ref: ModelRef, error: Exception) -> tuple[str]:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = {
        401: "the Hub knows no such public repository; private ones need `hf auth login`",
        403: "access denied; accept its terms on its page, then `hf auth login`",
        404: "no such repository or revision on the Hub, and no such folder here",
    }.get(status or 0, f"the Hub answers {status}" if status else "not a valid Hub id, and no such folder here")
    return (f"{ref}: {reason}",)


def _hub_file(ref: ModelRef, name: str, commit: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(ref.path, name, revision=commit or ref.revision))
    except Exception as error:  # network libraries raise many kinds
        # A lost connection is a LocalEntryNotFoundError too: the file is not in the cache, and may be on the Hub.
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise told(error, f"{ref}: {name}") from None
