"""Put what the demo's commands said together into demo.json: `python -m saccade.validate.demo OUT.json NAME=FILE …`."""
from __future__ import annotations

import json
import sys
from pathlib import Path

from saccade import atomic
from saccade.validate.doctor import diagnose


def main(arguments: list[str]) -> int:
    """Write {"machine": …, NAME: content of FILE, …}."""
    output, *parts = arguments
    said = {name: json.loads(Path(file).read_text()) for name, _, file in (part.partition("=") for part in parts)}
    machine = diagnose()
    versions = {name: number for name, number in machine["packages"].items() if number}
    data = {"versions": {"saccade": machine["saccade"], "python": machine["python"]} | versions, "cpu": machine["cpu"]}
    atomic.write_bytes(Path(output), (json.dumps(data | said, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
