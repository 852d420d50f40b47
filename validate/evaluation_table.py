"""The results of an evaluation as tables, for the terminal and for Markdown."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = tuple[str, ...]
Result = Mapping[str, Any]


def rows(report: Result) -> list[Row]:
    """Return the head, a row for every score with a column for each side, and the latencies."""
    sides = report["sides"]
    names = list(dict.fromkeys(score["name"] for side in sides for score in side["scores"]))
    by_name = [{score["name"]: _score(score) for score in side["scores"]} for side in sides]
    latencies = ("-" if side["latency_ms"] is None else f"{side['latency_ms']:.1f}" for side in sides)
    return [
        (report["task"], *(side["label"] for side in sides)),
        *((name, *(scores.get(name, "-") for scores in by_name)) for name in names),
        ("ms per image, batch 1", *latencies),
    ]


def difference_rows(report: Result) -> list[Row]:
    """Return the head and a row for every pair of sides: the second's metric less the first's."""
    first, second = _halves(report)
    confidence = f"{report['differences'][0]['confidence']:.0%} interval"
    found: list[Row] = [(report["metric"], "first", "second", "difference", confidence, "")]
    for ours, theirs, each in zip(first, second, report["differences"], strict=True):
        interval = f"{each['low']:+.2f} to {each['high']:+.2f}"
        values = f"{each['first']:.2f}", f"{each['second']:.2f}", f"{each['difference']:+.2f}"
        word = "differs" if each["significant"] else "no difference shown"
        found.append((f"{theirs['label']} against {ours['label']}", *values, interval, word))
    return found


def markdown(report: Result) -> str:
    """Return a page of both tables and the notes."""
    parts = [f"# {report['task']} of {report['bundle']} on {report['data']}", _markdown_table(rows(report))]
    if report["differences"]:
        parts.append(_markdown_table(difference_rows(report)))
    if report["notes"]:
        parts.append("\n".join(f"- {note}" for note in report["notes"]))
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    return "\n\n".join([*parts, f"Settings: {settings}.", "## Conditions", _conditions(report)]) + "\n"


def _conditions(report: Result) -> str:
    """Return a list of what the run depends on, and then of what each side does."""
    common = {**report["conditions"], "cpu": report["conditions"]["cpu"]["name"]}
    interval = common.pop("interval")
    common["interval"] = f"{interval['resamples']} paired draws from seed {interval['seed']}"
    common |= {name: "the engine's choice" for name in ("device", "threads") if not common[name]}
    sides = [(side["label"], side["conditions"]) for side in report["sides"]]
    return "\n".join(f"- {label}: {_listed(values)}" for label, values in [("all", common), *sides])


def _listed(values: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _halves(report: Result) -> tuple[list[Result], list[Result]]:
    count = len(report["differences"])
    return report["sides"][:count], report["sides"][count:]


def _score(score: Result) -> str:
    return f"{score['value']:.2f} {score['unit']}".rstrip()


def _markdown_table(table: list[Row]) -> str:
    head, *body = table
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
