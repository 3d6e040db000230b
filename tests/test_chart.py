"""Charts of drift against size."""

from __future__ import annotations

from math import inf
from xml.etree import ElementTree

from spa.chart import Point, dots, svg

POINTS = [
    Point(0.7, 0.01, "a"),
    Point(0.7, 1.0, "a", True),
    Point(0.5, 0.1, "b<&"),
    Point(0.5, inf, "b<&", True),
    Point(0.5, 0.0, "c"),
]


def test_a_line_for_every_point_and_an_axis() -> None:
    lines = dots(POINTS[:3], width=21)
    assert len(lines) == 4
    assert lines[0].startswith(" 70.0% a ")
    assert lines[0].index("●") < lines[1].index("○")
    assert "1e-2" in lines[-1]
    assert lines[2].endswith("│ 0.1")
    assert len({line.index("│") for line in lines[:3]}) == 1


def test_middle_of_a_logarithmic_line() -> None:
    (_, middle, _, _) = dots([*POINTS[:2], Point(0.7, 0.1, "a")], width=21)
    assert middle.index("●") - middle.index("│") == 11


def test_what_is_not_finite_is_left_out() -> None:
    assert len(dots(POINTS)) == len(POINTS) - 1 + 1
    assert dots([]) == dots(POINTS[3:4]) == []


def test_svg_is_well_formed() -> None:
    root = ElementTree.fromstring(svg(POINTS))
    name = "{http://www.w3.org/2000/svg}"
    drawn = [p for p in POINTS if p.drift < inf]
    lines = {(p.name, p.plain) for p in drawn}
    assert len(root.findall(f"{name}polyline")) == len(lines)
    assert len(root.findall(f"{name}circle")) == len(drawn) + len(lines)
    assert {"a", "a, plain", "b<&", "c"} <= {t.text for t in root.findall(f"{name}text")}
    ElementTree.fromstring(svg([]))
