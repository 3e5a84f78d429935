"""What the real Hub refuses, as far as it is documented; each rule names its source."""

from __future__ import annotations

import codecs
import re
from typing import Any

import yaml

from dami_merge.card.licence_ids import LICENCE_IDS

# https://huggingface.co/docs/hub/storage-limits: 500 GB through Xet. Without Xet, as here:
# huggingface_hub 2.4, `HfApi.upload_file`: "Upload a local file (up to 50 GB)".
MAX_FILE = 50 * 10**9
# The same page's history and `huggingface_hub/_commit_api.py`: larger files go through LFS.
MAX_REGULAR = 10 << 20
# https://huggingface.co/docs/hub/rate-limits, a free user: requests in five minutes.
API_LIMIT, RESOLVER_LIMIT, WINDOW = 1000, 5000, 300
# huggingface_hub/utils/_pagination.py follows `Link: <…>; rel="next"`.
PAGE = 100

_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


def name_error(name: str) -> str | None:
    """Say what is wrong with a repository's name.

    huggingface_hub/utils/_validators.py, which mirrors the Hub's own `Names.ts`: 96 characters of
    letters, digits, `-`, `_`, `.`; not at either end; no `--` or `..`; no `.git`. `.ipynb` is
    refused by the Hub alone.
    """
    if not re.fullmatch(r"\w(?:[\w.-]{0,94}\w)?", name, re.ASCII) or "--" in name or ".." in name:
        return f"Invalid repo name: {name}"
    if name.lower().endswith((".git", ".ipynb")):
        return f"Invalid repo name: {name} - repo name cannot end with .git or .ipynb"
    return None


def path_error(path: str) -> str | None:
    """Say what is wrong with a file's path: huggingface_hub/_commit_api.py, `_validate_path_in_repo`."""
    bad = path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.split("/"))
    return f"Invalid path: {path}" if bad else None


def card_data(content: str) -> Any:
    """Return a card's metadata; None where it has none. Raises yaml.YAMLError."""
    match = _FRONT.match(content)
    return yaml.safe_load(match[1]) if match else None


def card_errors(data: dict[str, Any]) -> list[str]:
    """Return what `/api/validate-yaml`, and a commit, say of a card's metadata.

    https://huggingface.co/docs/hub/model-cards and github.com/huggingface/hub-docs, modelcard.md;
    the licences are a closed list: https://huggingface.co/docs/hub/repositories-licenses.
    """
    errors = []
    licences = data.get("license", [])
    for licence in [licences] if isinstance(licences, str) else licences if isinstance(licences, list) else [licences]:
        if licence not in LICENCE_IDS:
            errors.append('"license" must be one of [apache-2.0, mit, …]')
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", str(base)):
            errors.append(f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.')
    if data.get("base_model_relation") not in (None, "merge", "finetune", "adapter", "quantized"):
        errors.append('"base_model_relation" is not valid')
    # github.com/ostris/ai-toolkit/issues/260 shows this form of message: "widget" must be an array
    errors += [f'"{key}" must be an array' for key in ("tags", "widget") if not isinstance(data.get(key, []), list)]
    return errors


def eval_error(content: str) -> str | None:
    """Say what is wrong with an `.eval_results` file: github.com/huggingface/hub-docs, eval_results.yaml."""
    data = yaml.safe_load(content)
    for entry in data if isinstance(data, list) else [None]:
        dataset = entry.get("dataset") if isinstance(entry, dict) else None
        if not isinstance(dataset, dict) or not {"id", "task_id"} <= set(dataset) or "value" not in entry:
            return "eval results: dataset.id, dataset.task_id and value are required"
    return None


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file must go through LFS: .gitattributes of a new repository, its size, binary content."""
    if path.endswith((".safetensors", ".bin")) or size > MAX_REGULAR:
        return True
    try:
        # A sample may end inside a character, which this decoder waits for.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return b"\0" in sample
