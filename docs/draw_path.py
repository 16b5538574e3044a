"""Draw docs/images/path.svg, the path from files to an API: `python docs/draw_path.py`.

The colours are readable on light and dark backgrounds, because an image cannot know which one it stands on.
"""

from pathlib import Path
from xml.sax.saxutils import escape

FILE = Path(__file__).parent / "images" / "path.svg"
STATIONS = [
    ("Files", ("text, tables, images,", "audio, SQL, Arrow"), "#57606a"),
    ("Dataset", ("cleaned, deduplicated,", "split, fingerprinted"), "#0969da"),
    ("Model version", ("Hugging Face layout,", "metrics and lineage"), "#8250df"),
    ("Endpoint", ("autoscaling, updated", "without downtime"), "#1a7f37"),
    ("Clients", ("OpenAI, Open Inference", "and plain JSON"), "#57606a"),
]
STEPS = [
    ("prepare", "Ray Data"),
    ("train", "Ray Train, DeepSpeed"),
    ("deploy", "Ray Serve"),
    ("ask", "HTTP, gRPC"),
]
CLUSTER = "one Ray cluster"

WIDTH, HEIGHT, GAP, MARGIN, TOP = 158, 84, 92, 8, 44
GREY = "#6e7781"
FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


def text(x: float, y: float, words: str, size: int, colour: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" font-weight="{weight}" '
        f'text-anchor="middle">{escape(words)}</text>'
    )


def station(index: int) -> list[str]:
    """A box: something that exists between two steps."""
    name, lines, colour = STATIONS[index]
    x = left(index)
    return [
        f'<rect x="{x}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{colour}"/>',
        text(x + WIDTH / 2, TOP + 30, name, 17, "#ffffff", "bold"),
        *(text(x + WIDTH / 2, TOP + 50 + 17 * number, line, 12, "#ffffff") for number, line in enumerate(lines)),
    ]


def step(index: int) -> list[str]:
    """An arrow: the command above it, and below it the library that does the work."""
    verb, library = STEPS[index]
    start, end, y = left(index) + WIDTH + 6, left(index + 1) - 6, TOP + HEIGHT / 2
    middle = (start + end) / 2
    words = library.split(", ")
    return [
        f'<path d="M{start} {y:g}H{end - 9}" stroke="{GREY}" stroke-width="2" fill="none"/>',
        f'<path d="M{end} {y:g}l-10 -5v10z" fill="{GREY}"/>',
        text(middle, y - 12, verb, 14, GREY, "bold"),
        *(text(middle, y + 20 + 15 * number, word, 12, GREY) for number, word in enumerate(words)),
    ]


def cluster() -> list[str]:
    """The frame around all that runs on the cluster."""
    x, right = left(0) + WIDTH + 4, left(3) + WIDTH + 14
    return [
        f'<rect x="{x}" y="10" width="{right - x}" height="{TOP + HEIGHT + 8}" rx="12" fill="none" '
        f'stroke="{GREY}" stroke-dasharray="5 5"/>',
        text((x + right) / 2, 31, CLUSTER, 13, GREY),
    ]


def left(index: int) -> int:
    return MARGIN + index * (WIDTH + GAP)


def draw() -> str:
    """The picture as SVG."""
    width, height = left(len(STATIONS)) - GAP + MARGIN, TOP + HEIGHT + 26
    parts = [
        *cluster(),
        *(part for index in range(len(STEPS)) for part in step(index)),
        *(part for index in range(len(STATIONS)) for part in station(index)),
    ]
    title = "Files, prepare, dataset, train, model version, deploy, endpoint, clients"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {FONT} role="img">',
            f"<title>{title}</title>",
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(draw(), encoding="utf-8")
    print(f"wrote {FILE}")
