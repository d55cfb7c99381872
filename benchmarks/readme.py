"""Fills the tables of README.md from benchmarks/results/*.json.

`python -m benchmarks.readme` rewrites what stands between `<!-- NAME table -->` and
`<!-- end -->`; `--check` only compares, as a test does.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import results

README = pathlib.Path(__file__).parent.parent / "README.md"
Rows = Sequence[Mapping[str, Any]]
WHAT_LEARNS = {
    "probe": "a new head on the frozen encoder",
    "partial": "the last stage and the head",
    "two-phase": "the head, then everything",
    "full": "everything at once",
    "scratch": "everything, from random weights",
}


def _value(entry: Mapping[str, Any], digits: int) -> str:
    spread = f" ± {entry['std']:.{digits}f}" if entry["std"] is not None else ""
    return f"{entry['mean']:.{digits}f}{spread}"


def _source(rows: Rows) -> str:
    """How, where and when, once for every command."""
    said = dict.fromkeys(
        f"`{entry['command']}`, {entry['device']}, {entry['date']}" for entry in rows
    )
    return "; ".join(said) + "."


def demo_table(rows: Rows) -> str:
    """Test accuracy of each mode."""
    lines = ["| mode | what learns | test accuracy, % |", "|---|---|---|"]
    lines += [
        f"| {entry['row']} | {WHAT_LEARNS[entry['row']]} | {_value(entry, 1)} |"
        for entry in rows
    ]
    return "\n".join(lines) + f"\n\nMean ± std of {rows[0]['n']} seeds. {_source(rows)}"


def speed_table(rows: Rows) -> str:
    """Milliseconds a step, and both ratios, of each model and batch size."""
    cases: dict[str, dict[str, Mapping[str, Any]]] = {}
    for entry in rows:
        cases.setdefault(entry["row"], {})[entry["metric"]] = entry
    lines = [
        "| model, image, batch | ms a step | time against the best PyTorch "
        "| faster than plain Flax |",
        "|---|---|---|---|",
    ]
    for name, case in cases.items():
        ours = _value(case["afterimage ms per step"], 0)
        torch = _value(case["time_ratio_to_best_torch"], 2)
        flax = _value(case["speedup_over_plain_flax"], 2)
        lines.append(f"| {name} | {ours} | {torch} | {flax} |")
    return "\n".join(lines) + f"\n\nMean ± std of rounds. {_source(rows)}"


TABLES: dict[str, Callable[[Rows], str]] = {"demo": demo_table, "speed": speed_table}


def filled(text: str) -> str:
    """README.md with every table as the results have it."""
    for name, make in TABLES.items():
        table = make(results.read_results(name))
        marks = re.compile(f"<!-- {name} table -->.*?<!-- end -->", re.DOTALL)
        whole = f"<!-- {name} table -->\n\n{table}\n\n<!-- end -->"
        text, count = marks.subn(lambda _, whole=whole: whole, text)
        if count != 1:
            sys.exit(f"README.md has {count} places for the {name} table, not one")
    return text


def main() -> None:
    """Rewrite README.md, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    text = README.read_text()
    new = filled(text)
    if parser.parse_args().check:
        sys.exit(
            None if new == text else "README.md differs: python -m benchmarks.readme"
        )
    README.write_text(new)


if __name__ == "__main__":
    main()
