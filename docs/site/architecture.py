"""Draw docs/figures/architecture.svg from the order of imports in docs/design.md.

python docs/site/architecture.py > docs/figures/architecture.svg
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).parents[1]
SAID = {
    "errors": "what everything needs: errors, files, processes",
    "paths": "where things lie, how they are written and named",
    "machine": "this machine, and the pilot file",
    "roadmap": "which stages there are",
    "records": "what a run leaves: figures, tables, events",
    "load": "the load, the text, the model, ternary weights, money",
    "train": "three phases of training",
    "engine": "decoding with packed weights",
    "measure": "statistics, meters, the interleaved session",
    "hybrid": "precision of each layer, files for others, proof, serving",
    "report": "gates, verdict, cost, the page",
    "figures": "one file a notebook",
    "stages": "the seven stages, short scripts over all above",
    "runner": "a whole pilot",
    "sweep": "many pilots at once",
    "bench": "benchmarks",
    "study": "several trainings, compared",
    "widgets": "choices in notebooks",
    "notebook": "what a person calls",
}
"""First part of a step -> what the step is."""
WIDTH, ROW, BOX, LEFT = 1000, 42, 28, 20
STYLE = """
text { font: 14px sans-serif; fill: #1b2a41; } .part { font-family: monospace; }
.said { fill: #4a5568; } rect { fill: #e8eefb; stroke: #3f51b5; }
.kernel { fill: #fdf0df; stroke: #a35b00; }
path { stroke: #3f51b5; stroke-width: 2; fill: none; marker-end: url(#tip); }
@media (prefers-color-scheme: dark) { text { fill: #e6e9f2; } .said { fill: #b4bccf; }
rect { fill: #26304d; stroke: #9fa8da; }
.kernel { fill: #4a3718; stroke: #e0a95c; } }
""".strip()


def steps() -> list[list[str]]:
    """The parts of the workbench in the order of imports; those of a step are neighbours."""
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    order = re.search(r"^Imports go one way.*?\n\n(.*?)\n\n", text, re.S | re.M)
    if order is None:
        raise ValueError("docs/design.md gives no order of imports")
    return [re.findall(r"\w+", step) for step in " ".join(order[1].split()).split("->")]


def drawing() -> str:
    """The picture: a row a step, the arrow the way that imports may not go back."""
    rows = steps()
    height = ROW * (len(rows) + 1) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="Parts of the workbench, from errors to the command line; each imports only '
        'from the rows above it">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" '
        'style="marker-end:none;fill:#3f51b5"/></marker></defs>',
    ]
    for row, parts in enumerate(rows):
        top, left = 10 + row * ROW, LEFT + 20
        for part in parts:
            lines += _box(left, top, part)
            left += 9 * len(part) + 32
        lines.append(f'<text class="said" x="580" y="{top + 19}">{escape(SAID[parts[0]])}</text>')
    end = 10 + ROW * len(rows)
    lines.append(f'<path d="M{LEFT} 14V{end - 14}"/>')
    lines += _box(LEFT + 20, end + 6, "kernels/ternary_kernels", "kernel")
    said = "native code and Triton; knows nothing of the workbench"
    lines += [f'<text class="said" x="580" y="{end + 25}">{said}</text>', "</svg>", ""]
    return "\n".join(lines)


def _box(left: int, top: int, name: str, kind: str = "") -> list[str]:
    wide = 9 * len(name) + 22
    return [
        f'<rect class="{kind}" x="{left}" y="{top}" width="{wide}" height="{BOX}" rx="4"/>',
        f'<text class="part" x="{left + 11}" y="{top + 19}">{name}</text>',
    ]


if __name__ == "__main__":
    print(drawing(), end="")
