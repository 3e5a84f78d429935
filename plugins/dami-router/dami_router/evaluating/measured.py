"""Writing of measured accuracy and cost from rollouts into a family's manifest."""

from __future__ import annotations

from pathlib import Path

from dami_router.errors import FailureError
from dami_router.manifest.family import MANIFEST, Family, Measured
from dami_router.rollouts.grid import Grid
from dami_router.shared.durable import write_atomically

__all__ = ["measured_family", "write_measured"]


def measured_family(family: Family, grid: Grid, benchmark: str) -> Family:
    """Return the family with each variant's accuracy, mean tokens and n on a benchmark; other benchmarks are kept."""
    variants = []
    for variant in family.variants:
        column = next((i for i, x in enumerate(grid.lambdas) if abs(x - variant.lambda_) < 1e-6), None)
        if column is not None:
            found = Measured(
                benchmark=benchmark, accuracy=float(grid.correct[:, column].mean()),
                mean_tokens=float(grid.tokens[:, column].mean()), n=len(grid.queries),
            )  # fmt: skip
            others = [m for m in variant.measured if m.benchmark != benchmark]
            variant = variant.model_copy(update={"measured": [*others, found]})
        variants.append(variant)
    return family.model_copy(update={"variants": variants})


def write_measured(family: Family, manifest: Path, grid: Grid, benchmark: str) -> None:
    """Replace the manifest by the measured family's, atomically; raises FailureError if that fails."""
    file = manifest / MANIFEST if manifest.is_dir() else manifest
    try:
        write_atomically(file, measured_family(family, grid, benchmark).text().encode())
    except OSError as error:
        raise FailureError(f"{file}: cannot be written: {error.strerror}") from None
