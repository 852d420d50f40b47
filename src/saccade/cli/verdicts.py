"""What a kept verdict says of what it was measured on, whether that is still what the bundle holds, and both in words."""
from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from saccade.bundle import Bundle
from saccade.contract import ALL_ROLES
from saccade.counted import counted
from saccade.engines.engine import default_device
from saccade.engines.store import Receipt

PARITY, VERIFY = "parity", "verify"  # the commands that judge, as "command" of what they keep
DATA_NAMES = {"positions": "the position table", "image": "the normalisation", "golden": "golden.npz"}


def measured_on(bundle: Bundle, receipt: Receipt, device: str | None) -> dict[str, Any]:
    """Return what a verdict must say of its engine and its data, so that it can be told later whether it still holds."""
    return {
        "engine": receipt.engine,
        "engine_version": receipt.conditions.get("version", ""),
        "precision": receipt.precision,
        "device": default_device(receipt.engine) if device is None else device,
        "key": receipt.key,
        "graphs": graphs_of(receipt),
        "data": _data_of(bundle),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _data_of(bundle: Bundle) -> dict[str, Any]:
    """Return what changes outputs beside the graphs, and what a self-test compares with."""
    manifest = bundle.manifest
    golden = manifest.golden.sha256 if manifest.golden else None
    image = msgspec.json.decode(msgspec.json.encode(manifest.image))  # as it is read back: lists, no tuples
    return {"positions": manifest.positions.sha256, "image": image, "golden": golden}


def title_of(verdict: Mapping[str, Any]) -> str:
    """Return the engine, precision and form that a verdict speaks of, in words."""
    static = "" if verdict.get("static_k") is None else f" static k={verdict['static_k']}"
    return f"{verdict.get('engine')} {verdict.get('precision')}{static}{' cls-only' if verdict.get('cls_only') else ''}"


def command_of(verdict: Mapping[str, Any]) -> str:
    """Return the command that a verdict is of; that of an export, and an older saccade's, count as parity's."""
    return str(verdict.get("command", PARITY))


def line_of(bundle: Bundle, verdict: Mapping[str, Any]) -> str:
    """Return a verdict in words: what was found on which engine, version and device, when, and whether it still holds."""
    precision = verdict.get("precision")
    same = "equal to PyTorch" if precision == "fp32" else f"within the {precision} bounds of PyTorch"
    word = same if verdict.get("passed") else "DIFFERENT from PyTorch"
    version = verdict.get("engine_version") or verdict.get("version") or "of unknown version"
    when = str(verdict.get("when") or "at an unknown time").replace("T", " ").replace("+00:00", " UTC")
    where = f"({version}, device {verdict.get('device', 'unknown')}, {when})"
    found = f"{title_of(verdict)} {word} on {counted(verdict.get('images', 0), 'image')}"
    return f"{command_of(verdict)}: {found} {where}; {state_of(bundle, verdict)}"


def state_of(bundle: Bundle, verdict: Mapping[str, Any]) -> str:
    """Return "current", "stale: why", or "unknown: why" for a verdict that an older saccade has kept."""
    again = f"run 'saccade {command_of(verdict)}' again"
    graphs = verdict.get("graphs")
    if not isinstance(graphs, dict):
        return f"unknown: it does not say which graphs it was measured on; {again}"
    change = change_since(bundle, verdict)
    return f"stale: {change}; {again}" if change else "current"


def change_since(bundle: Bundle, verdict: Mapping[str, Any]) -> str | None:
    """Say what a verdict depends on and the bundle no longer holds; None where all is as it was."""
    return changed_graphs(bundle, verdict["graphs"]) or _changed_data(bundle, verdict)


def _changed_data(bundle: Bundle, verdict: Mapping[str, Any]) -> str | None:
    """Say what else a verdict depends on and is another by now; parity has a reference of its own for golden.npz."""
    recorded = verdict.get("data")
    if not isinstance(recorded, dict):
        return None
    now = _data_of(bundle)
    judged = [name for name in now if name != "golden" or command_of(verdict) == VERIFY]
    changed = [DATA_NAMES[name] for name in judged if name in recorded and recorded[name] != now[name]]
    return f"{' and '.join(changed)} changed since" if changed else None


def unjudged(bundle: Bundle) -> list[str]:
    """Return the converted precisions of a bundle that no engine has been judged in as the graphs are now."""
    held = {variant.removesuffix("-fp16") for graphs in bundle.manifest.graphs.values() for variant in graphs}
    judged = [each.get("precision") for each in bundle.manifest.parity if state_of(bundle, each) == "current"]
    return sorted(precision for precision in held - {"fp32"} if precision not in judged)


def changed_graphs(bundle: Bundle, recorded: Mapping[str, Any]) -> str | None:
    """Say which graphs recorded by role and SHA-256 are no longer in the bundle in any precision; None where all are."""
    graphs = bundle.manifest.graphs
    changed = sorted(
        role
        for role in graphs.keys() | recorded.keys()
        if recorded.get(role) not in [graph.sha256 for graph in graphs.get(role, {}).values()]
    )
    return f"{' and '.join(changed)} changed since" if changed else None


def graphs_of(receipt: Receipt) -> dict[str, str]:
    """Return the SHA-256 of the graphs that an engine was built from, by role."""
    return {role: sha256 for role in ALL_ROLES if (sha256 := receipt.conditions.get(f"{role}_sha256"))}
