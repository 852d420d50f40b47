"""Put what the demo's commands said into demo.json, and show it: `python -m saccade.validate.demo OUT.json NAME=FILE …`."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from saccade import atomic
from saccade.validate.doctor import diagnose


def main(arguments: list[str]) -> int:
    """Write {"versions": …, NAME: content of FILE, …}, or print the summary of `--show FILE`."""
    if arguments[0] == "--show":
        print("\n".join(summary(json.loads(Path(arguments[1]).read_text()), Path(arguments[1]).parent)))
        return 0
    output, *parts = arguments
    said = {name: json.loads(Path(file).read_text()) for name, _, file in (part.partition("=") for part in parts)}
    machine = diagnose()
    versions = {name: number for name, number in machine["packages"].items() if number}
    data = {"versions": {"saccade": machine["saccade"], "python": machine["python"]} | versions, "cpu": machine["cpu"]}
    atomic.write_bytes(Path(output), (json.dumps(data | said, indent=2) + "\n").encode())
    return 0


def summary(data: dict[str, Any], folder: Path) -> list[str]:
    """Return the few lines that end the demo."""
    run, parity, bench = data["run"], data["parity"], data["bench"]["sides"]
    times = ", ".join(f"{name} {value:.2f}" for name, value in run["ms_per_image"].items())
    lines = [
        f"features   {folder / 'features.npz'}: " + ", ".join(f"{k} {v}" for k, v in run["outputs"].items()),
        f"picture    {folder / 'overlay.png'}",
        f"proof      {folder / 'parity.html'}: {parity['engine']} {parity['precision']} "
        + ("equals PyTorch" if parity["passed"] else "DIFFERS from PyTorch"),
        f"first run  ms: {times}",
    ]
    lines += [f"speed      {side['name']}: {side['frame_ms']['p50']:.1f} ms" for side in bench]
    if data["tensorrt_rtx"]:
        for role, found in data["tensorrt_rtx"]["audit"].items():
            blocks = f"{found['fused_attention']} of {found['attention_blocks']} attention blocks fused"
            lines.append(f"tensorrt   {role}: {blocks}, {found['kernels']} kernels (fp32; built here, runs on an RTX GPU)")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
