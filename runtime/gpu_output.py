"""What the chain on a GPU gives for images that lie there: the CPU chain's results, as arrays on the device."""
from __future__ import annotations

from dataclasses import dataclass, field

from saccade.runtime.device_arrays import DeviceArray


@dataclass(kw_only=True)
class DeviceLook:
    """What the selector says; see `saccade.Look`. The next call of the same shapes overwrites the arrays."""

    score_map: DeviceArray
    prefix: DeviceArray
    raw_score_map: DeviceArray
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class DeviceOutput(DeviceLook):
    """What the chain gives; see `saccade.Output`. The next call of the same shapes overwrites the arrays."""

    indices: DeviceArray
    tokens: DeviceArray
    cls: DeviceArray | None = None
    logits: DeviceArray | None = None
    dense: DeviceArray | None = None

    def arrays(self) -> dict[str, DeviceArray]:
        """Return what is there by name."""
        names = ("indices", "score_map", "prefix", "cls", "logits", "tokens", "dense")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
