"""Charts as SVG: lines with a band around them, axes with round numbers. No script, no font, no
colour of their own: the page's style has those, by class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 212
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 8, 36
"""Margins of a chart, in its own units; a phone shows it about 1 to 1."""
MOST_POINTS = 240
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line of a chart: what it is called, its class, (x, y), and (x, low, high) around it."""

    label: str
    style: str
    points: Points
    band: Sequence[tuple[float, float, float]] = ()
    marked: bool = False
    """Each point is marked, with its interval as a whisker."""


def window_of(series: Points) -> int:
    """How many values a point of a smoothed line is the mean of: a twentieth of them."""
    return max(len(series) // 20, 1)


def smoothed(label: str, style: str, series: Points) -> Line:
    """The mean of a window around each step, and the middle four fifths of the values in it."""
    window = window_of(series)
    xs = [x for x, _ in series]
    every = max(len(series) // MOST_POINTS, 1)
    points, band = [], []
    for index in [*range(0, len(series) - 1, every), len(series) - 1]:
        low, high = max(index - window // 2, 0), min(index + window // 2 + 1, len(series))
        values = sorted(y for _, y in series[low:high] if math.isfinite(y))
        if values:
            points.append((xs[index], sum(values) / len(values)))
            ends = _quantile(values, 0.1), _quantile(values, 0.9)
            band.append((xs[index], *ends))
    return Line(label, style, points, band if window > 4 else ())


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    at: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Lines over one pair of axes. `at`: a height that is marked across; `low`, `high`: what the
    vertical axis must reach."""  # fmt: skip
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    ys += [y for line in lines for _, *ends in line.band for y in ends]
    ys += [each for each in (at, low, high) if each is not None]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 5)
    axes = Axes(min(xs), max(xs), min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *(_horizontal(axes, y, "grid", _number(y, y_ticks)) for y in y_ticks),
        *(_tick(axes, x, _number(x, x_ticks)) for x in x_ticks),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, "label", x_label),
    ]
    if at is not None:
        parts.append(_horizontal(axes, at, "mark", ""))
    parts += [_drawn(axes, line) for line in lines]
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True)
class Axes:
    """From values to places."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + _share(value, self.x_low, self.x_high) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = _share(value, self.y_low, self.y_high)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _drawn(axes: Axes, line: Line) -> str:
    places = [(axes.x(x), axes.y(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<g class="{line.style}"><title>{escape(line.label)}</title>']
    if line.band and not line.marked:
        upper = [(axes.x(x), axes.y(high)) for x, _, high in line.band]
        lower = [(axes.x(x), axes.y(low)) for x, low, _ in reversed(line.band)]
        around = " ".join(f"{x:.1f},{y:.1f}" for x, y in upper + lower)
        parts.append(f'<polygon class="band" points="{around}"/>')
    parts.append(f'<polyline points="{path}"/>')
    if line.marked:
        for x, low, high in line.band:
            parts.append(
                f'<line x1="{axes.x(x):.1f}" x2="{axes.x(x):.1f}" y1="{axes.y(low):.1f}" '
                f'y2="{axes.y(high):.1f}"/>'
            )
    if line.marked or len(places) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    return "".join([*parts, "</g>"])


def _horizontal(axes: Axes, value: float, kind: str, label: str) -> str:
    y = axes.y(value)
    rule = f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return rule + (_text(LEFT - 7, y + 4, "end", label) if label else "")


def _tick(axes: Axes, value: float, label: str) -> str:
    return _text(axes.x(value), HEIGHT - BOTTOM + 16, "tick", label)


def _text(x: float, y: float, kind: str, words: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def ticks(low: float, high: float, number: int) -> list[float]:
    """Round numbers that lie in a range, about so many; its ends where it is a point."""
    if not high > low:
        return [low]
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, among: Sequence[float]) -> str:
    """With as few digits as all the ticks need; small and large ones with a power of ten."""
    largest = max(map(abs, among))
    if largest >= 10_000 or 0 < largest < 0.001:
        return f"{value:.3g}"
    digits = next((n for n in range(6) if all(abs(round(x, n) - x) < 1e-9 for x in among)), 6)
    return f"{value:.{digits}f}"
