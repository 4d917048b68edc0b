"""What the scripts share that write figures into a page of docs/: blocks between markers, plots as SVG."""

import html
import math
from pathlib import Path


def fill(page: str, blocks: dict[str, str], script: str) -> str:
    """Puts each block between its markers.

    Args:
        page: Markdown with `<!-- begin NAME: benchmarks/SCRIPT -->` and the same with `end`.
        blocks: text by name.
        script: file name of the script that writes them.

    Raises:
        ValueError: the page lacks a marker.
    """
    for name, text in blocks.items():
        begin, end = (f"<!-- {word} {name}: benchmarks/{script} -->" for word in ("begin", "end"))
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            message = f"the page has no block {name!r}"
            raise ValueError(message)
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


def update(wanted: dict[Path, str], check: bool) -> int:
    """Writes the files that are not as wanted; with `check` only names them. 1 if one was not and `check`, else 0."""
    stale = [
        path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(f"{path} {'is not current' if check else 'written'}")
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if stale and check else 0


class Canvas:
    """Lines and text, in pixels from the upper left corner; `x` and `y` make pixels of data."""

    WIDTH, HEIGHT = 760, 430
    LEFT, RIGHT, TOP, BOTTOM = 64, 28, 40, 56

    def __init__(self) -> None:
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        """Pixels of a value on the horizontal axis."""
        raise NotImplementedError

    def y(self, value: float) -> float:
        """Pixels of a value on the vertical axis."""
        raise NotImplementedError

    def line(self, values: list[tuple[float, float]], color: str, *, dashed: bool = False) -> None:
        """A line through points of the data."""
        path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in values)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')

    def point(self, a: float, b: float, color: str, label: str) -> None:
        """A measured value, with a label that browsers show as a tooltip."""
        self.parts.append(
            f'<circle cx="{self.x(a):.1f}" cy="{self.y(b):.1f}" r="4.5" fill="{color}" '
            f'stroke="white" stroke-width="1.5"><title>{html.escape(label)}</title></circle>'
        )

    def stroke(self, x1: float, y1: float, x2: float, y2: float, color: str, more: str = "") -> None:
        """A straight line between pixels."""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{more}/>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> None:
        """Text at a pixel."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{html.escape(text)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, color: str, title: str = "") -> None:
        """A filled rectangle, in pixels from its upper left corner; the title is a tooltip."""
        end = f"><title>{html.escape(title)}</title></rect>" if title else "/>"
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"{end}'
        )

    def bar(self, x: float, width: float, value: float, color: str, label: str) -> None:
        """A bar from 1 up or down to a value of the data, which stands at its end."""
        top, bottom = self.y(max(value, 1)), self.y(min(value, 1))
        self.box(x, top, width, max(1.0, bottom - top), color, f"{label}: {value:.2f}")
        self.text(x + width / 2, top - 5 if value >= 1 else bottom + 14, f"{value:.2f}", anchor="middle")

    def svg(self) -> str:
        """The whole file."""
        size = f'width="{self.WIDTH}" height="{self.HEIGHT}" viewBox="0 0 {self.WIDTH} {self.HEIGHT}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="#222">'
        return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *self.parts, "</svg>", ""])


def workload_title(workload: str, sizes: list[int]) -> str:
    """A workload of `workloads.py` in words.

    Args:
        workload: its name.
        sizes: requests, tokens in, tokens out.
    """
    requests, tokens_in, tokens_out = sizes
    kind = workload.split()[0]
    if kind == "ttft":
        return f"time to first token, {tokens_in:,} tokens"
    if kind == "decode":
        return f"decode, {requests} at once"
    return f"{kind}, {requests} x {tokens_in:,} in, {tokens_out:,} out"


def share(value: float, low: float, high: float) -> float:
    """Where a value stands between two others on a logarithmic scale, 0 to 1."""
    return math.log(value / low) / math.log(high / low)
