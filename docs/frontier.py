"""Draw docs/images/frontier.svg: accuracy against mean tokens along λ, as published.

    python docs/frontier.py

The numbers are those of arXiv 2510.10977 ("Revisiting Model Interpolation"), tables 2 and 5:
Qwen3-4B-Instruct-2507 and Qwen3-4B-Thinking-2507 on AIME25, mean accuracy of 64 samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "images" / "frontier.svg"

SWEEP = (  # λ, accuracy in %, mean output tokens
    (0.0, 46.6, 15_097),
    (0.2, 52.2, 16_794),
    (0.4, 55.8, 12_448),
    (0.45, 58.5, 11_290),
    (0.5, 62.5, 11_189),
    (0.55, 67.6, 11_634),
    (0.6, 71.0, 12_681),
    (0.8, 80.5, 17_574),
    (1.0, 80.4, 22_813),
)


def on_frontier(accuracy: float, tokens: int) -> bool:
    """Whether no other λ is at least as accurate for fewer tokens."""
    return not any(a >= accuracy and t < tokens for _, a, t in SWEEP)


def main() -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("svg")
    # A fixed salt and no date: the same numbers give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dami", "font.size": 11})
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
    draw(axes)
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, metadata={"Date": None, "Title": "Accuracy against mean tokens along λ"})


def draw(axes: Any) -> None:
    """Draw the path along λ, its frontier and the two endpoints."""
    axes.plot([t / 1e3 for *_, t in SWEEP], [a for _, a, _ in SWEEP], color="#b9c0c9", linewidth=1.2, zorder=1)
    for lambda_, accuracy, tokens in SWEEP:
        offset = (-44, -4) if lambda_ == 0.45 else (8, -12)
        best = on_frontier(accuracy, tokens)
        axes.scatter(tokens / 1e3, accuracy, s=52, zorder=2, color="#1f5fa8" if best else "white", edgecolor="#1f5fa8")
        axes.annotate(label(lambda_), (tokens / 1e3, accuracy), xytext=offset, textcoords="offset points")
    axes.set(
        xlabel="mean tokens of an answer (thousands)", ylabel="accuracy on AIME25 (%)", xlim=(10, 25.5), ylim=(43, 85)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_title(
        "Qwen3-4B-2507, after arXiv 2510.10977. Filled: no other λ is as accurate for less", fontsize=11, loc="left"
    )


def label(lambda_: float) -> str:
    """Name a point: its λ, and which endpoint it is."""
    return f"λ={lambda_:g}" + {0.0: " Instruct", 1.0: " Thinking"}.get(lambda_, "")


if __name__ == "__main__":
    main()
