"""Charts of what flows from whom to whom, drawn as Mermaid for Markdown and as SVG for everything else."""

from __future__ import annotations

import html
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import Literal

Kind = Literal["input", "agent", "output", "live", "recorded", "edited", "failed"]


@dataclass(frozen=True, slots=True)
class Node:
    """One box of a picture."""

    label: str
    kind: Kind
    """An `input`, `agent` or `output` of a graph; or a step of a run, by where its answer came from."""
    note: str = ""
    """The role of an agent, or the outputs of a step."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One arrow of a picture."""

    source: int
    """Index into `FlowChart.nodes`, as is `target`."""
    target: int
    label: str
    """The field that flows; `written -> read` where its name changes on the way."""


@dataclass(frozen=True, slots=True)
class FlowChart:
    """What flows from whom to whom, without a cycle."""

    nodes: tuple[Node, ...]
    flows: tuple[Flow, ...]


# Mermaid


def to_mermaid(chart: FlowChart) -> str:
    """Write a chart as a Mermaid flowchart, which GitHub and notebooks show.

    References:
        https://mermaid.js.org/syntax/flowchart.html, with its entity codes (`#34;`) for all but plain characters.
    """
    lines = ["flowchart TD"]
    for index, node in enumerate(chart.nodes):
        opening, closing = ("([", "])") if node.kind in ("input", "output") else ("[", "]")
        text = _mermaid(node.label) + (f"<br/>{_mermaid(node.note)}" if node.kind == "agent" and node.note else "")
        lines.append(f'    n{index}{opening}"{text}"{closing}')
    for (source, target), label in _merge_flows(chart).items():
        lines.append(f'    n{source} -->|"{_mermaid(label)}"| n{target}')
    for kind, (fill, stroke) in _COLOURS.items():
        if members := [f"n{index}" for index, node in enumerate(chart.nodes) if node.kind == kind]:
            lines.append(f"    style {','.join(members)} fill:{fill},stroke:{stroke}")
    return "\n".join(lines) + "\n"


def _mermaid(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 _.,:()+*/-]", lambda match: f"#{ord(match.group())};", text)


def _merge_flows(chart: FlowChart) -> dict[tuple[int, int], str]:
    """Return one arrow per pair of nodes, with the labels of all flows along it."""
    labels: dict[tuple[int, int], list[str]] = defaultdict(list)
    for flow in chart.flows:
        if flow.label not in labels[flow.source, flow.target]:
            labels[flow.source, flow.target].append(flow.label)
    return {pair: ", ".join(items) for pair, items in labels.items()}


# SVG

_COLOURS: Mapping[Kind, tuple[str, str]] = {
    "input": ("#eef2f7", "#64748b"),
    "agent": ("#e8f1fd", "#2563eb"),
    "output": ("#eef2f7", "#64748b"),
    "live": ("#e8f1fd", "#2563eb"),
    "recorded": ("#f4f4f5", "#71717a"),
    "edited": ("#fef6dc", "#ca8a04"),
    "failed": ("#fdeaea", "#dc2626"),
}
"""Kind to fill and outline."""

_CHARACTER, _HEIGHT, _GAP, _LEVEL, _MARGIN = 7.5, 34.0, 36.0, 112.0, 24.0
"""Pixels: width of a character at 13 pixels, height of a box, between boxes, between levels, around all."""

_LONGEST_LABEL = 40
"""Characters in a box; the rest is in its tooltip."""

Point = tuple[float, float]
"""Pixels from the left and from the top."""

Place = tuple[int, int, int]
"""What stands on a level: a node as (index, index, level), or a bend of an arrow as (source, target, level)."""


def to_svg(chart: FlowChart, title: str = "Data flow") -> str:
    """Draw a chart as a self-contained SVG image; notes are tooltips.

    Levels go from top to bottom, every arrow down by at least one. An arrow over several levels bends at each of them,
    so that it passes between the boxes.

    References:
        Sugiyama, Tagawa, Toda (1981), Methods for visual understanding of hierarchical system structures, IEEE
        Transactions on Systems, Man, and Cybernetics 11: levels, bends, barycentres.
    """
    labels = _merge_flows(chart)
    rows = _rows(len(chart.nodes), labels)
    slot = max([_width(node) for node in chart.nodes], default=0.0) + _GAP
    width = max([len(row) for row in rows], default=0) * slot + 2 * _MARGIN
    height = max(len(rows) - 1, 0) * _LEVEL + _HEIGHT + 2 * _MARGIN
    points = _points(rows, slot, width)
    levels = {place[0]: place[2] for row in rows for place in row if place[0] == place[1]}
    body = [_arrow([points[place] for place in _path(*pair, levels)]) for pair in labels]
    for pair, share in _label_shares(labels).items():
        upper, lower = _path(*pair, levels)[-2:]
        body.append(_arrow_label(points[upper], points[lower], share, labels[pair]))
    body += [_box(node, points[index, index, levels[index]]) for index, node in enumerate(chart.nodes)]
    return "\n".join([*_head(title, width, height), *body, "</svg>"]) + "\n"


def _points(rows: Sequence[Sequence[Place]], slot: float, width: float) -> dict[Place, Point]:
    """Return the centre of each place; each row is in the middle of the image."""
    return {
        place: ((width - len(row) * slot) / 2 + (number + 0.5) * slot, _MARGIN + _HEIGHT / 2 + level * _LEVEL)
        for level, row in enumerate(rows)
        for number, place in enumerate(row)
    }


def _rows(num_nodes: int, pairs: Collection[tuple[int, int]]) -> list[list[Place]]:
    """Return the places of each level from left to right, each under the middle of what points to it."""
    levels = _levels(num_nodes, pairs)
    rows: list[list[Place]] = [[] for _ in range(max(levels, default=-1) + 1)]
    for index in range(num_nodes):
        rows[levels[index]].append((index, index, levels[index]))
    above: dict[Place, list[Place]] = defaultdict(list)
    for source, target in pairs:
        path = _path(source, target, levels)
        for upper, lower in pairwise(path):
            above[lower].append(upper)
        for bend in path[1:-1]:
            rows[bend[2]].append(bend)
    for upper_row, row in pairwise(rows):
        _sort_row(row, upper_row, above)
    return rows


def _sort_row(row: list[Place], upper_row: list[Place], above: Mapping[Place, Sequence[Place]]) -> None:
    """Sort the places of a level by the middle of what points to them; without an arrow, they come first."""
    column = {place: number for number, place in enumerate(upper_row)}

    def middle(place: Place) -> float:
        uppers = above.get(place, ())
        return sum(column[upper] for upper in uppers) / len(uppers) if uppers else 0.0

    row.sort(key=middle)


def _levels(num_nodes: int, pairs: Collection[tuple[int, int]]) -> list[int]:
    """Return the level of each node: the length of the longest path down to it."""
    sources: dict[int, set[int]] = {index: set() for index in range(num_nodes)}
    for source, target in pairs:
        sources[target].add(source)
    levels = [0] * num_nodes
    for index in TopologicalSorter(sources).static_order():
        levels[index] = max((levels[source] + 1 for source in sources[index]), default=0)
    return levels


def _path(source: int, target: int, levels: Sequence[int] | Mapping[int, int]) -> list[Place]:
    bends = [(source, target, level) for level in range(levels[source] + 1, levels[target])]
    return [(source, source, levels[source]), *bends, (target, target, levels[target])]


def _head(title: str, width: float, height: float) -> Iterator[str]:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13" role="img">'
    yield f"<title>{_xml(title)}</title>"
    yield f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    yield (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#475569"/></marker></defs>'
    )


def _box(node: Node, centre: Point) -> str:
    x, y = centre
    fill, stroke = _COLOURS[node.kind]
    width, rounding = _width(node), _HEIGHT / 2 if node.kind in ("input", "output") else 5
    return (
        f"<g><title>{_xml(_tooltip(node))}</title>"
        f'<rect x="{x - width / 2:.1f}" y="{y - _HEIGHT / 2:.1f}" width="{width:.1f}" height="{_HEIGHT:.1f}" '
        f'rx="{rounding:.1f}" fill="{fill}" stroke="{stroke}"/>'
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle">{_xml(_cut(node.label))}</text></g>'
    )


def _arrow(stops: list[Point]) -> str:
    (x, y), (last_x, last_y) = stops[0], stops[-1]
    stops = [(x, y + _HEIGHT / 2), *stops[1:-1], (last_x, last_y - _HEIGHT / 2)]
    curve = f"M{x:.1f},{y + _HEIGHT / 2:.1f}"
    for (x0, y0), (x1, y1) in pairwise(stops):
        middle = (y0 + y1) / 2
        curve += f" C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return f'<path d="{curve}" fill="none" stroke="#475569" marker-end="url(#tip)"/>'


def _label_shares(pairs: Collection[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Return how far down its last stretch each arrow has its label: where fewer arrows meet, at different heights."""
    leaving = Counter(source for source, _ in pairs)
    arriving = Counter(target for _, target in pairs)
    placed: Counter[int] = Counter()
    shares = {}
    for source, target in pairs:
        placed[target] += 1
        start = 0.5 if leaving[source] > arriving[target] else 0.2
        shares[source, target] = start + 0.3 * placed[target] / (arriving[target] + 1)
    return shares


def _arrow_label(upper: Point, lower: Point, share: float, label: str) -> str:
    """Return the label on the last stretch of an arrow."""
    (x0, y0), (x1, y1) = upper, lower
    eased = share * share * (3 - 2 * share)  # how far sideways the curve is at this share of its way
    x, y = x0 + (x1 - x0) * eased, y0 + _HEIGHT / 2 + (y1 - y0 - _HEIGHT) * share
    return (
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="11" fill="#334155" stroke="#ffffff" '
        f'stroke-width="4" paint-order="stroke">{_xml(_cut(label))}</text>'
    )


def _width(node: Node) -> float:
    return max(len(_cut(node.label)), 8) * _CHARACTER + 20


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "\u2026"


def _tooltip(node: Node) -> str:
    return f"{node.label} ({node.kind})" + (f"\n{node.note}" if node.note else "")


def _xml(text: str) -> str:
    """Escape a text, and replace the characters that XML 1.0 does not allow."""
    return html.escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))
