"""Which graphs and which engine a kept verdict speaks of, and whether the bundle still holds those graphs."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saccade.bundle import Bundle
from saccade.engines.engine import default_device
from saccade.engines.store import Receipt


def measured_on(bundle: Bundle, receipt: Receipt, device: str | None) -> dict[str, Any]:
    """Return what a verdict must say of its engine, so that it can be told later whether it still holds."""
    return {
        "engine": receipt.engine,
        "engine_version": receipt.conditions.get("version", ""),
        "precision": receipt.precision,
        "device": default_device(receipt.engine) if device is None else device,
        "key": receipt.key,
        "graphs": _graphs_of(bundle, receipt.precision),
    }


def state_of(bundle: Bundle, verdict: Mapping[str, Any]) -> str:
    """Return "current", "stale: why", or "unknown: why" for a verdict that an older saccade has kept."""
    graphs = verdict.get("graphs")
    if not isinstance(graphs, dict):
        return "unknown: it does not say which graphs it was measured on; run 'saccade parity' again"
    change = changed_graphs(bundle, str(verdict.get("precision")), graphs)
    return f"stale: {change}; run 'saccade parity' again" if change else "current"


def changed_graphs(bundle: Bundle, precision: str, recorded: Mapping[str, Any]) -> str | None:
    """Say which graphs are no longer those whose SHA-256 was recorded by role, or return None where all are."""
    now = _graphs_of(bundle, precision)
    changed = sorted(role for role in now.keys() | recorded.keys() if now.get(role) != recorded.get(role))
    return f"{' and '.join(changed)} changed since" if changed else None


def _graphs_of(bundle: Bundle, precision: str) -> dict[str, str]:
    """Return the SHA-256 of each graph of a precision by role."""
    return {
        role: graph.sha256
        for role, variants in bundle.manifest.graphs.items()
        for name, graph in variants.items()
        if name == precision
    }
