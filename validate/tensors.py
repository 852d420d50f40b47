"""Tensor comparison through Polygraphy: our engines as its runners, reference outputs as its RunResults, its metrics.

What is written here is read by `polygraphy inspect data` and, metric by metric, by `polygraphy check accuracy FILE
--compare cosine_similarity --cosine-similarity-threshold X` (without --compare it checks nothing, and passes).
"""
from __future__ import annotations

import contextlib
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade import atomic
from saccade.engines.engine import Engine
from saccade.errors import SaccadeError
from saccade.golden import Case
from saccade.runtime import kernels
from saccade.runtime.chain import Pipeline

try:
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator import (
        Comparator,
        CosineSimilarityCompareFunc,
        L2CompareFunc,
        PsnrCompareFunc,
        RunResults,
        SimpleCompareFunc,
    )
    from polygraphy.logger import G_LOGGER
except ImportError as error:  # it has no dependencies, so nothing but its absence explains this
    raise SaccadeError("polygraphy cannot be imported; pip install '.[polygraphy]' in the clone") from error

if TYPE_CHECKING:
    from saccade.validate.parity import CaseResult

REFERENCE = "pytorch-fp32"
Feeds = dict[str, list[dict[str, np.ndarray]]]


class EngineRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no types
    """One loaded engine as a Polygraphy runner: OpenVINO has none of its own there."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(name=name)
        self._engine = engine

    def get_input_metadata_impl(self) -> Any:
        """Return names, dtypes and shapes; None stands for a dynamic dimension."""
        metadata = TensorMetadata()
        for spec in self._engine.inputs.values():
            shape = [extent if isinstance(extent, int) else None for extent in spec.shape]
            metadata.add(spec.name, spec.host_type, shape)
        return metadata

    def infer_impl(self, feed_dict: dict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Run once; the outputs are copies, since an engine reuses its own."""
        start = time.perf_counter()
        outputs = self._engine.run(feed_dict)
        self.inference_time = time.perf_counter() - start
        return OrderedDict((name, array.copy()) for name, array in outputs.items())


def reference_feeds(pipeline: Pipeline, cases: Sequence[Case]) -> Feeds:
    """Return the inputs of both graphs by role, one per case: the reference's own selection and prefix."""
    model, image = pipeline.bundle.model, pipeline.bundle.manifest.image
    pixels = kernels.normalization_table(image.mean, image.std)
    feeds: Feeds = {"selector": [], "extractor": []}
    for case in cases:
        lowres = [kernels.lowres_from_image(picture, pixels, model.selector_size) for picture in case.images]
        feeds["selector"].append({"lowres": np.stack(lowres)})
        patches, positions = pipeline.gather(list(case.images), case.output.indices)
        prefix = np.ascontiguousarray(case.output.prefix)  # torch's outputs are views of larger arrays
        feeds["extractor"].append({"patches": patches, "positions": positions, "prefix": prefix})
    return feeds


def reference_results(cases: Sequence[Case], outputs: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the reference's outputs as RunResults by role; `outputs` names each graph's outputs."""
    found = {}
    for role, names in outputs.items():
        results = RunResults()
        results.add([{name: _reference_output(case, name) for name in names} for case in cases], runner_name=REFERENCE)
        found[role] = results
    return found


def _reference_output(case: Case, name: str) -> np.ndarray:
    by_name = {"score_map": case.output.raw_score_map, "prefix": case.output.prefix, "tokens": case.output.tokens}
    return np.ascontiguousarray(by_name.get(name, case.output.pooled))  # cls or logits; Polygraphy takes no views


def compare_tensors(
    pipeline: Pipeline, results: Sequence[CaseResult], folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Run both graphs on the reference's feeds and return Polygraphy's numbers per output, the worst over the cases.

    With `folder`, also write <role>.inputs.json, <role>.outputs.json (reference and engine) and <role>.accuracy.json.
    """
    cases = [result.case for result in results]
    feeds = reference_feeds(pipeline, cases)
    references = reference_results(cases, {role: tuple(engine.outputs) for role, engine in pipeline.engines.items()})
    name = f"{pipeline.receipt.engine}-{pipeline.receipt.precision}"
    numbers: dict[str, dict[str, float]] = {}
    with _quiet():
        for role, engine in pipeline.engines.items():
            runs = Comparator.run([EngineRunner(engine, name)], data_loader=feeds[role])
            both = references[role]
            both.extend(runs)
            accuracy = Comparator.compare_accuracy(both, compare_func=_metrics())
            numbers |= {f"{role}.{output}": values for output, values in _worst(accuracy).items()}
            if folder is not None:
                _save(folder, role, feeds[role], both, accuracy)
    return numbers


def _metrics() -> list[Any]:
    metrics = (CosineSimilarityCompareFunc(), L2CompareFunc(), PsnrCompareFunc())
    return [SimpleCompareFunc(check_error_stat="max"), *metrics]


def _worst(accuracy: Any) -> dict[str, dict[str, float]]:
    """Return max_abs_error, cosine, l2 and psnr per output: the largest error, the smallest likeness, NaN if any is."""
    readings: list[tuple[str, str, Callable[[float, float], float]]] = [
        ("max_abs_error", "max_absdiff", np.maximum),
        ("cosine", "cosine_similarity", np.minimum),
        ("l2", "l2_norm", np.maximum),
        ("psnr_db", "psnr", np.minimum),
    ]
    worst: dict[str, dict[str, float]] = {}
    for result, (name, attribute, pick) in zip(accuracy, readings, strict=True):
        for iterations in result.values():
            for iteration in iterations:
                for output, match in iteration.items():
                    value = float(getattr(match, attribute))
                    seen = worst.setdefault(output, {})
                    seen[name] = float(pick(seen.get(name, value), value))
    return worst


def _save(folder: Path, role: str, feeds: list[dict[str, np.ndarray]], results: Any, accuracy: Any) -> None:
    from polygraphy.json import save_json

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.write_error(folder, error) from error
    with atomic.pending_file(folder / f"{role}.inputs.json") as pending:
        save_json(feeds, str(pending), description="inputs")
    for name, content in (("outputs", results), ("accuracy", accuracy)):
        with atomic.pending_file(folder / f"{role}.{name}.json") as pending:
            content.save(str(pending))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Polygraphy's log, and what it prints past its log, off stdout, where results go."""
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), contextlib.redirect_stdout(sys.stderr):
        yield
