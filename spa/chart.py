"""Small charts of drift against size: dots on a logarithmic line as text, and an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, isfinite, log10

LEAST = 1e-9  # what is smaller is drawn here
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 20, 50


@dataclass(frozen=True)
class Point:
    """size: the share kept. drift: 0 or more. name: of the line it lies on. plain: dashed."""

    size: float
    drift: float
    name: str
    plain: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}, plain" if self.plain else self.name

    @property
    def power(self) -> float:
        """The drift as a power of ten."""
        return log10(max(self.drift, LEAST))


def _decades(points: Sequence[Point]) -> tuple[int, int]:
    low, high = floor(min(p.power for p in points)), ceil(max(p.power for p in points))
    return low, max(high, low + 1)


def _drawn(points: Sequence[Point]) -> list[Point]:
    return [p for p in points if isfinite(p.drift)]


def dots(points: Sequence[Point], width: int = 48) -> list[str]:
    """A line for every point, largest size first, and the axis below; drift grows to the right."""
    points = sorted(_drawn(points), key=lambda p: (-p.size, p.drift))
    if not points:
        return []
    low, high = _decades(points)
    wide = max(len(p.label) for p in points)
    lines = []
    for p in points:
        at = round((p.power - low) / (high - low) * (width - 1))
        mark = "○" if p.plain else "●"
        track = "·" * at + mark + " " * (width - 1 - at)
        lines.append(f"{p.size:6.1%} {p.label:<{wide}} │{track}│ {p.drift:.2g}")
    start, end = f"1e{low:+d}", f"1e{high:+d}"
    lines.append(" " * (wide + 9) + start + end.rjust(width - len(start)))
    return lines


def svg(points: Sequence[Point], across: str = "share of MACs kept") -> str:
    """A picture with a line for every name, over the share that is kept."""
    points = _drawn(points)
    frame = _Frame(points)
    names = list(dict.fromkeys(p.name for p in points))
    points = sorted(points, key=lambda p: (names.index(p.name), p.plain, p.size))
    body = frame.axes(across)
    for row, (_, line) in enumerate(groupby(points, key=lambda p: (p.name, p.plain))):
        some = list(line)
        body += frame.line(some, COLOURS[names.index(some[0].name) % len(COLOURS)], row)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    head += 'font-family="sans-serif" font-size="12">'
    white = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return "\n".join([head, white, *body, "</svg>\n"])


class _Frame:
    """Where points lie in the picture."""

    def __init__(self, points: Sequence[Point]) -> None:
        sizes = [p.size for p in points] or [0.0, 1.0]
        self.low, self.high = _decades(points) if points else (-1, 0)
        self.least = floor(min(sizes) * 10) / 10
        self.most = max(ceil(max(sizes) * 10) / 10, self.least + 0.1)

    def x(self, size: float) -> float:
        return LEFT + (size - self.least) / (self.most - self.least) * (WIDTH - LEFT - RIGHT)

    def y(self, power: float) -> float:
        return (
            HEIGHT - BOTTOM - (power - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)
        )

    def axes(self, across: str) -> list[str]:
        found = []
        for power in range(self.low, self.high + 1):
            y = self.y(power)
            found.append(_stroke(LEFT, y, WIDTH - RIGHT, y, "#ddd"))
            found.append(_text(LEFT - 8, y + 4, f"1e{power:+d}", "end"))
        steps = round((self.most - self.least) * 10)
        for k in range(steps + 1):
            size = self.least + k / 10
            found.append(_stroke(self.x(size), HEIGHT - BOTTOM, self.x(size), TOP, "#eee"))
            found.append(_text(self.x(size), HEIGHT - BOTTOM + 18, f"{size:.0%}", "middle"))
        middle = (LEFT + WIDTH - RIGHT) / 2
        found.append(_text(middle, HEIGHT - 12, across, "middle"))
        found.append(_text(8, 14, "drift"))
        return found

    def line(self, points: Sequence[Point], colour: str, row: int) -> list[str]:
        dash = ' stroke-dasharray="5 4"' if points[0].plain else ""
        fill = "white" if points[0].plain else colour
        path = " ".join(f"{self.x(p.size):.1f},{self.y(p.power):.1f}" for p in points)
        found = [f'<polyline points="{path}" fill="none" stroke="{colour}"{dash}/>']
        places = [(self.x(p.size), self.y(p.power)) for p in points]
        at = TOP + 10 + 18 * row
        found += [_circle(x, y, colour, fill) for x, y in (*places, (WIDTH - RIGHT + 20, at))]
        found.append(_text(WIDTH - RIGHT + 32, at + 4, points[0].label))
        return found


def _circle(x: float, y: float, colour: str, fill: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="{colour}" fill="{fill}"/>'


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
