"""Which graphs and which engine a kept verdict speaks of, and whether the bundle still holds those graphs."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saccade.bundle import Bundle
from saccade.contract import ALL_ROLES
from saccade.engines.engine import default_device
from saccade.engines.store import Receipt


def measured_on(receipt: Receipt, device: str | None) -> dict[str, Any]:
    """Return what a verdict must say of its engine, so that it can be told later whether it still holds."""
    return {
        "engine": receipt.engine,
        "engine_version": receipt.conditions.get("version", ""),
        "precision": receipt.precision,
        "device": default_device(receipt.engine) if device is None else device,
        "key": receipt.key,
        "graphs": graphs_of(receipt),
    }


def title_of(verdict: Mapping[str, Any]) -> str:
    """Return the engine, precision and form that a verdict speaks of, in words."""
    static = "" if verdict.get("static_k") is None else f" static k={verdict['static_k']}"
    return f"{verdict.get('engine')} {verdict.get('precision')}{static}{' cls-only' if verdict.get('cls_only') else ''}"


def state_of(bundle: Bundle, verdict: Mapping[str, Any]) -> str:
    """Return "current", "stale: why", or "unknown: why" for a verdict that an older saccade has kept."""
    graphs = verdict.get("graphs")
    if not isinstance(graphs, dict):
        return "unknown: it does not say which graphs it was measured on; run 'saccade parity' again"
    change = changed_graphs(bundle, graphs)
    return f"stale: {change}; run 'saccade parity' again" if change else "current"


def changed_graphs(bundle: Bundle, recorded: Mapping[str, Any]) -> str | None:
    """Say which graphs recorded by role and SHA-256 are no longer in the bundle in any precision; None where all are."""
    graphs = bundle.manifest.graphs
    changed = sorted(
        role
        for role in graphs.keys() | recorded.keys()
        if recorded.get(role) not in {graph.sha256 for graph in graphs.get(role, {}).values()}
    )
    return f"{' and '.join(changed)} changed since" if changed else None


def graphs_of(receipt: Receipt) -> dict[str, str]:
    """Return the SHA-256 of the graphs that an engine was built from, by role."""
    return {role: sha256 for role in ALL_ROLES if (sha256 := receipt.conditions.get(f"{role}_sha256"))}
