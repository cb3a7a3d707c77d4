"""The table of an evaluation on the terminal."""

from __future__ import annotations

from muti_control.evaluation.results.results import Evaluation, Figure


def table(evaluation: Evaluation) -> str:
    """One line a method: rank-1 with its interval and rank-5 under each recogniser, in per cent."""
    names = [recogniser.name for recogniser in evaluation.recognisers]
    head = ["method", *(f"{name}: rank-1 [95 %]  rank-5" for name in names)]
    rows = [head]
    for method in evaluation.methods:
        cells = [method.label]
        for name in names:
            found = method.identification.get(name)
            cells.append("" if found is None else f"{_share(found.rank1)}  {100 * found.rank5.value:5.1f}")
        rows.append(cells)
    chance, five = (100 * min(k / evaluation.protocol.gallery_size, 1) for k in (1, 5))
    rows.append(["chance", *[f"{chance:5.1f}" + " " * 14 + f"{five:5.1f}"] * len(names)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _share(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{100 * figure.value:5.1f}" + " " * 11
    return f"{100 * figure.value:5.1f} [{100 * figure.low:3.0f}, {100 * figure.high:3.0f}]"
