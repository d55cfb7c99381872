"""report.html: one run on one page, in one file, readable offline."""

import base64
import html
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from afterimage.chart import Points, line_chart, number
from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import printable

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #23272f;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 920px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.7rem; margin: 0 0 2px; letter-spacing: -0.01em; }
h2 { font-size: 1.1rem; margin: 0 0 12px; }
.lead { color: #5c6470; margin: 0 0 24px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #e3e6ea; border-radius: 10px;
  padding: 20px; margin: 0 0 20px; overflow-x: auto; }
.cards { display: grid; gap: 12px; margin: 0 0 20px;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.card { background: #fff; border: 1px solid #e3e6ea; border-radius: 10px;
  padding: 12px 16px; }
.card b { display: block; font-size: 1.35rem; font-weight: 600; }
.card span { color: #5c6470; font-size: 0.85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid #eceef1;
  vertical-align: top; }
th { color: #5c6470; font-weight: 600; font-size: 0.85rem; }
td.number, th.number { text-align: right; }
td { overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
.best { font-weight: 700; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 0 0 8px; }
figcaption, .note { color: #5c6470; font-size: 0.85rem; margin: 6px 0 0; }
svg { max-width: 100%; height: auto; display: block; }
details summary { cursor: pointer; font-weight: 600; }
"""


def write_report(
    path: str | pathlib.Path,
    *,
    title: str,
    lead: str,
    headline: Mapping[str, str],
    curves: Mapping[str, Mapping[str, Points]],
    logarithmic: Collection[str] = (),
    pictures: Mapping[str, tuple[str, pathlib.Path]] = {},
    probes: Mapping[str, Mapping[str, float]] = {},
    probe_note: str = "",
    grids: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]] = {},
    tables: Mapping[str, Mapping[str, Any]],
) -> pathlib.Path:
    """Write the page; everything is inside it: no network, no script, no other file.

    `headline`: figure by label, shown large. `curves`: for each chart its named
    series of (step, value); those in `logarithmic` may have a log axis. `pictures`:
    (caption, PNG file) by heading. `probes`: a row for each kind of features,
    accuracies in [0, 1] by column. `grids`: (header, rows) by heading; rows begin with
    their label, numbers stand right. `tables`: two-column tables by heading, folded.
    What is empty is left out.
    """
    parts = [f"<h1>{_text(title)}</h1>", f'<p class="lead">{_text(lead)}</p>']
    if headline:
        parts.append(_cards(headline))
    for name, (caption, file) in pictures.items():
        parts.append(_section(name, _figure(caption, file)))
    for name, series in curves.items():
        if any(series.values()):
            chart = line_chart(series, name, logarithmic=name in logarithmic)
            parts.append(_section(name, chart))
    if probes:
        note = f'<p class="note">{_text(probe_note)}</p>'
        parts.append(_section("What the features are worth", _probes(probes) + note))
    for name, (header, rows) in grids.items():
        parts.append(_section(name, _grid(header, rows)))
    for name, rows in tables.items():
        parts.append(_folded(name, rows))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    return replace_file(pathlib.Path(path), page.encode())


def logged(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the lines of metrics.jsonl that have this key."""
    found = ((row["step"], row.get(key)) for row in rows)
    return [(s, v) for s, v in found if isinstance(v, int | float)]


def _cards(headline: Mapping[str, str]) -> str:
    cards = "".join(
        f'<div class="card"><b>{_text(value)}</b><span>{_text(label)}</span></div>'
        for label, value in headline.items()
    )
    return f'<div class="cards">{cards}</div>'


def _folded(name: str, rows: Mapping[str, Any]) -> str:
    body = "".join(
        f"<tr><td>{_text(key)}</td><td>{_text(_plain(value))}</td></tr>"
        for key, value in rows.items()
    )
    return (
        f"<section><details><summary>{_text(name)}</summary><table>{body}</table>"
        "</details></section>"
    )


def _probes(rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    best = {
        name: max(row[name] for row in rows.values() if name in row) for name in columns
    }
    head = "".join(f'<th class="number">{_text(name)}</th>' for name in columns)
    body = ""
    for label, row in rows.items():
        cells = ""
        for name in columns:
            if name not in row:
                cells += '<td class="number">–</td>'
                continue
            kind = "number best" if row[name] == best[name] else "number"
            cells += f'<td class="{kind}">{100 * row[name]:.1f} %</td>'
        body += f"<tr><td>{_text(label)}</td>{cells}</tr>"
    return f"<table><tr><th>features</th>{head}</tr>{body}</table>"


def _grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any, tag: str, number: bool) -> str:
        kind = ' class="number"' if number else ""
        return f"<{tag}{kind}>{_text(_plain(value))}</{tag}>"

    lines = [[cell(name, "th", i > 0) for i, name in enumerate(header)]]
    lines += [[cell(v, "td", i > 0) for i, v in enumerate(row)] for row in rows]
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return f"<table>{body}</table>"


def _figure(caption: str, file: pathlib.Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}"/>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _section(name: str, body: str) -> str:
    return f"<section><h2>{_text(name)}</h2>{body}</section>"


def _text(value: str) -> str:
    return html.escape(printable(value), quote=True)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) or "–"
    return str(value)
