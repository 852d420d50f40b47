"""The results of an evaluation as tables, for the terminal and for Markdown."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = tuple[str, ...]
Table = list[Row]
Result = Mapping[str, Any]


def tables(report: Result) -> list[Table]:
    """Return the scores, of a sweep one table for each engine, and the differences, one table for each other engine."""
    return [*_score_tables(report), *_difference_tables(report)]


def verdict(report: Result) -> str:
    """Return the line that says whether every other side is near enough, and which is not."""
    drop, unit = report["max_drop"], report["unit"]
    if unit == "%":  # of all, and not of the first side's own score
        unit = "percentage point" if drop == 1 else "percentage points"
    limit = f"at most {drop:g} {unit}".rstrip() + " below"
    failed = [each["second_side"] for each in report["differences"] if not each["passed"]]
    return f"FAIL: {limit}: {', '.join(failed)}" if failed else f"pass: {limit}"


def condition_lines(report: Result) -> list[str]:
    """Return two short lines: what each engine is, and what they ran with."""
    common, cpu = report["conditions"], report["conditions"]["cpu"]["name"]
    versions = {engine_and_kept(sides[0])[0]: _version(sides[0]) for sides in sides_by_engine(report)}
    device, threads = (common[name] or "the engine's choice" for name in ("device", "threads"))
    return [
        ", ".join(f"{engine}: version {version}" for engine, version in versions.items()) + f"; saccade {common['saccade']}",
        f"device {device}, threads {threads}, batch {common['batch']}, CPU {cpu}",
    ]


def markdown(report: Result) -> str:
    """Return a page of the tables, the verdict, the notes and the conditions."""
    parts = [f"# {report['task']} of {report['bundle']} on {report['data']}", *map(_markdown_table, tables(report))]
    if report["max_drop"] is not None:
        parts.append(verdict(report))
    if report["notes"]:
        parts.append("\n".join(f"- {note}" for note in report["notes"]))
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    return "\n\n".join([*parts, f"Settings: {settings}.", "## Conditions", _conditions(report)]) + "\n"


def sides_by_engine(report: Result) -> list[list[Result]]:
    """Return the sides of each engine, the main one first; of a sweep an engine has one for each k."""
    ks = len(report["sides"]) - len(report["differences"])  # every side but the main ones has its difference
    return [report["sides"][start : start + ks] for start in range(0, len(report["sides"]), ks)]


def engine_and_kept(side: Result) -> tuple[str, str]:
    """Return a label's two parts: "openvino fp32" and "k=4", which is empty for a network that sees all."""
    if "k" not in side and "k_ratio" not in side:
        return side["label"], ""
    engine, _, kept = side["label"].rpartition(" ")
    return engine, kept


def _version(side: Result) -> str:
    """Return the version of the library that ran a side; OpenVINO's without its build."""
    conditions = side["conditions"]
    return str(conditions.get("version") or conditions.get("torch")).partition("-")[0]


def _score_tables(report: Result) -> list[Table]:
    """Return a table of all sides; of a sweep one for each engine, since a terminal has no room for all."""
    engines = sides_by_engine(report)
    if len(engines[0]) == 1:
        return [_scores(report, report["task"], [side["label"] for side in report["sides"]], report["sides"])]
    found = []
    for sides in engines:
        title = f"{report['task']}, {engine_and_kept(sides[0])[0]}"
        found.append(_scores(report, title, [engine_and_kept(side)[1] for side in sides], sides))
    return found


def _scores(report: Result, title: str, labels: Sequence[str], sides: Sequence[Result]) -> Table:
    """Return the head, a row for every score with a column for each side, and the latencies."""
    names = list(dict.fromkeys(score["name"] for side in sides for score in side["scores"]))
    by_name = [{score["name"]: _score(score) for score in side["scores"]} for side in sides]
    latencies = ("-" if side["latency_ms"] is None else f"{side['latency_ms']:.1f}" for side in sides)
    shown = {name: f"{name} (headline)" if name == report["metric"] else name for name in names}
    return [
        (title, *labels),
        *((shown[name], *(scores.get(name, "-") for scores in by_name)) for name in names),
        ("ms per image, batch 1", *latencies),
    ]


def _difference_tables(report: Result) -> list[Table]:
    """Return a table for each other engine, with a row for every k: its headline less the main engine's."""
    main, *others = sides_by_engine(report)
    differences = iter(report["differences"])
    found = []
    for other in others:
        rows = [_difference(report, engine_and_kept(side)[1], next(differences)) for side in other]
        engines = (engine_and_kept(sides[0])[0] for sides in (main, other))
        confidence = f"{report['differences'][0]['confidence']:.0%} interval"
        gate = () if report["max_drop"] is None else (f"at most {report['max_drop']:g} below",)
        found.append([("headline", *engines, "difference", confidence, "", *gate), *rows])
    return found


def _difference(report: Result, kept: str, each: Result) -> Row:
    values = f"{each['first']:.2f}", f"{each['second']:.2f}", f"{each['difference']:+.2f}"
    interval, word = f"{each['low']:+.2f} to {each['high']:+.2f}", "no difference shown"
    if each["significant"]:
        word = "differs"
    if each["units"] == 1:
        interval, word = "none", "too few samples"
    gate = () if report["max_drop"] is None else ("pass" if each["passed"] else "FAIL",)
    name = f"{report['metric']}, {kept}".rstrip(", ")
    return name, *values, interval, word, *gate


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


def _score(score: Result) -> str:
    return f"{score['value']:.2f} {score['unit']}".rstrip()


def _markdown_table(table: Table) -> str:
    head, *body = table
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
