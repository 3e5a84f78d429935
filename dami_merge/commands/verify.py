"""`dami verify`: proof that a built family is what its manifest says."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from dami_router.cli import command
from dami_router.output import Output, table

_TELLING = 0.05


@command(
    "verify",
    examples=("dami verify out", "dami verify out --deep", "dami verify out --json"),
    help="Verify a built family against its manifest and endpoints: hashes, tensor names, shapes, dtypes, finite "
    "numbers, λ recovered from the weights of each layer, the head, chat templates, and settings that TGI's "
    "Transformers 4.51 would misread. --deep recomputes every tensor from the endpoints and compares the bits. "
    "Exit code 0: sound; 1: problems found; 2: no family.",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Recompute every tensor from the endpoints.")
def verify(output: Output, folder: Path, deep: bool) -> int:
    """Verify a family."""
    from dami_merge.commands.byte_bar import byte_bar
    from dami_merge.importing import import_torch

    import_torch()
    from dami_merge.verify import verify_family

    report = verify_family(folder, deep=deep, progress=partial(byte_bar, "verify"))
    problems = report.all_problems
    rows = [_row(variant) for variant in report.variants]
    text = table(("λ", "variant", "λ read back", "within", "problems"), rows)
    verdict = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}" if problems else "sound"
    output.result(
        "\n".join([text, *map(str, problems), verdict]),
        {
            "ok": not problems, "name": report.name, "folder": str(folder), "deep": deep,
            "problems": [p.as_dict() for p in problems], "notes": report.notes,
            "variants": [_data(variant) for variant in report.variants],
        },
    )  # fmt: skip
    for note in report.notes:
        output.warning(note)
    return 1 if problems else 0


def _row(variant: Any) -> tuple[str, ...]:
    known = [layer.recovered for layer in variant.layers if layer.recovered is not None]
    # A lone norm has few elements and a wide bound; the table shows the layers that tell something.
    known = [found for found in known if found.bound <= _TELLING] or known
    if not known:
        return f"{variant.lambda_:g}", variant.id, "-", "-", str(len(variant.problems))
    low, high = min(r.lambda_ for r in known), max(r.lambda_ for r in known)
    read = f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f}…{high:.3f}"
    bound = f"±{max(r.bound for r in known):.4f}"
    return f"{variant.lambda_:g}", variant.id, read, bound, str(len(variant.problems))


def _data(variant: Any) -> dict[str, Any]:
    layers = [
        {
            "where": layer.where, "expected": layer.expected,
            "recovered": layer.recovered.lambda_ if layer.recovered else None,
            "bound": layer.recovered.bound if layer.recovered else None,
        }
        for layer in variant.layers
    ]  # fmt: skip
    return {"id": variant.id, "lambda": variant.lambda_, "ok": not variant.problems, "layers": layers}
