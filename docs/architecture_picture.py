"""Draw docs/images/architecture.svg: the weights above, the requests below, and how they meet.

    python docs/architecture_picture.py

Boxes bring their own background, and lines are of a middle grey, so that it reads on light and dark pages alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

TARGET = Path(__file__).parent / "images" / "architecture.svg"
WIDTH, HEIGHT = 900, 452
LINE, WEIGHTS, REQUESTS, OUTSIDE = "#7d8794", "#dbe9fb", "#fde9cf", "#eceff3"


@dataclass(frozen=True)
class Box:
    """A rounded box; the first line is its title."""

    x: int
    y: int
    width: int
    height: int
    fill: str
    lines: tuple[str, ...]

    def svg(self) -> Iterator[str]:
        """Yield the box and its centred text."""
        yield (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="8" '
            f'fill="{self.fill}" stroke="{LINE}"/>'
        )
        top = self.y + self.height / 2 - 9 * (len(self.lines) - 1) + 5
        for number, line in enumerate(self.lines):
            weight = ' font-weight="600"' if number == 0 else ""
            yield (
                f'<text x="{self.x + self.width / 2:g}" y="{top + 18 * number:g}" text-anchor="middle" '
                f'fill="#1c2430"{weight}>{escape(line)}</text>'
            )


BOXES = (
    Box(16, 60, 168, 74, OUTSIDE, ("Instruct + Thinking", "two checkpoints of", "one architecture")),
    Box(252, 24, 190, 56, WEIGHTS, ("mergekit-yaml", "one model at one λ")),
    Box(252, 108, 190, 56, WEIGHTS, ("dami build", "a family of variants")),
    Box(510, 24, 166, 56, OUTSIDE, ("checkpoint", "plain safetensors")),
    Box(510, 108, 166, 56, OUTSIDE, ("family", "variants + manifest")),
    Box(730, 108, 154, 56, OUTSIDE, ("Hugging Face Hub", "dami push · pull")),
    Box(510, 226, 374, 56, OUTSIDE, ("servers", "TGI · vLLM · OpenAI-compatible, one per variant")),
    Box(16, 226, 168, 74, WEIGHTS, ("dami live", "any λ, from both", "models in memory")),
    Box(16, 362, 168, 66, OUTSIDE, ("application", "OpenAI or TGI client")),
    Box(252, 362, 424, 66, REQUESTS, ("dami serve", "estimate λ(q) → choose a variant → send, fall back")),
    Box(744, 362, 140, 66, REQUESTS, ("estimators", "effort · confidence", "trained")),
)
ARROWS = (  # points, label, where the label stands
    ("184,84 252,56", "", (0, 0)),
    ("184,108 252,132", "", (0, 0)),
    ("442,52 510,52", "", (0, 0)),
    ("442,136 510,136", "", (0, 0)),
    ("676,136 730,136", "", (0, 0)),
    ("593,164 593,226", "serve each variant", (604, 200)),
    ("100,134 100,226", "load both", (110, 186)),
    ("184,395 252,395", "base_url", (218, 386)),
    ("593,362 593,282", "the variant for λ(q)", (604, 312)),
    ("400,362 400,263 184,263", "or exactly λ(q)", (292, 254)),
    ("744,395 676,395", "λ(q)", (710, 386)),
    ("814,282 814,362", "rollout · train · calibrate", (806, 350)),
)


def main() -> None:
    """Write the picture."""
    TARGET.write_text("\n".join(picture()) + "\n", encoding="utf-8")


def picture() -> Iterator[str]:
    """Yield the picture's lines."""
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13.5">'
    )
    yield "<title>dami-merge: weights above, requests below</title>"
    yield (
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>'
    )
    for points, label, place in ARROWS:
        yield f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#end)"/>'
        if label:
            yield from caption(label, place)
    for box in BOXES:
        yield from box.svg()
    yield "</svg>"


def caption(label: str, place: tuple[int, int]) -> Iterator[str]:
    """Yield an arrow's label: centred over horizontal arrows, beside vertical ones."""
    anchor = {604: "start", 110: "start", 806: "end"}.get(place[0], "middle")
    yield (
        f'<text x="{place[0]}" y="{place[1]}" text-anchor="{anchor}" fill="{LINE}" font-size="12.5">'
        f"{escape(label)}</text>"
    )


if __name__ == "__main__":
    main()
