"""The parity report: one self-contained HTML page with the numbers and pictures of both sides.

Of LookWhere the pictures are both selections with the swaps marked, of a plain backbone both features as colours.
"""
from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from saccade import atomic
from saccade.counted import counted
from saccade.runtime.feature_pictures import pca_colours
from saccade.runtime.overlay import outline_cells, overlay
from saccade.validate.backbone_parity import BackboneCaseResult, BackboneResult
from saccade.validate.parity import CaseResult, Measure, ParityResult, cosine_distances

SWAPPED_OUT = np.array([70, 200, 255], dtype=np.uint8)  # kept by the reference only
SWAPPED_IN = np.array([255, 90, 200], dtype=np.uint8)  # kept by the engine only
MAX_PICTURES = 12  # a page of pictures stays below about 10 MB
JPEG_QUALITY = 88

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1a1a22;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;margin:.5rem 0}
th,td{padding:.25rem .8rem .25rem 0;text-align:left;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}
.pass{color:#11703b;font-weight:600}.fail{color:#b3121d;font-weight:600}figure{margin:1rem 0}
.pair{display:flex;gap:1rem;flex-wrap:wrap}.pair div{flex:1 1 20rem}.pair img{width:100%;height:auto}
figcaption,.note{color:#555;font-size:.9rem}.out{color:#0783b5}.in{color:#c2188b}
@media(prefers-color-scheme:dark){body{color:#e8e8ee;background:#16161c}th,td{border-color:#3a3a44}
figcaption,.note{color:#aaa}.pass{color:#5fd08f}.fail{color:#ff7b84}}
"""


Result: TypeAlias = ParityResult | BackboneResult


def write_report(
    path: Path, result: Result, facts: Mapping[str, str], tensors: Mapping[str, Mapping[str, float]], patch: int
) -> None:
    """Write the page; `facts` (bundle, engine, versions…) stand at its head, `tensors` are Polygraphy's numbers."""
    atomic.write_bytes(path, _page(result, facts, tensors, patch).encode())


def _page(result: Result, facts: Mapping[str, str], tensors: Mapping[str, Mapping[str, float]], patch: int) -> str:
    verdict = '<span class="pass">equal</span>' if result.passed else '<span class="fail">different</span>'
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>saccade parity</title><style>{_STYLE}</style>",
        f"<h1>Parity with PyTorch: {verdict}</h1>",
        _table([(html.escape(name), html.escape(value)) for name, value in facts.items()]),
        "<h2>The numbers</h2>",
        _table([_measure_row(measure) for measure in result.measures], ("number", "value", "bound", "", "meaning")),
        *(_selection_parts(result, tensors, patch) if isinstance(result, ParityResult) else _feature_parts(result, tensors)),
        "</html>",
    ]
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{cells}</tr>' if head else ''}{body}</table>"


def _measure_row(measure: Measure) -> tuple[str, ...]:
    word = '<span class="pass">pass</span>' if measure.passed else '<span class="fail">fail</span>'
    return (measure.name, f"{measure.value:.3g}", f"{measure.bound:.3g}", word, html.escape(measure.meaning))


def _tensor_table(tensors: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(tensors.values()), {}))
    rows = [(html.escape(output), *(f"{values[name]:.6g}" for name in names)) for output, values in tensors.items()]
    return _table(rows, ("output", *names))


def _selection_parts(
    result: ParityResult, tensors: Mapping[str, Mapping[str, float]], patch: int
) -> list[str]:
    return [
        "<h2>Tensors</h2><p class=note>Polygraphy's metrics under the reference's own selection, worst image.</p>",
        _tensor_table(tensors),
        "<h2>Where both looked</h2>",
        '<p class=note>Left the reference, right the engine. <span class="out">Blue</span>: kept by the reference only. '
        '<span class="in">Magenta</span>: kept by the engine only.</p>',
        *_shown(_figure(each, i, patch) for each in result.cases for i in range(len(each.case.images))),
    ]


def _feature_parts(result: BackboneResult, tensors: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        "<h2>Tensors</h2><p class=note>Polygraphy's metrics, worst image.</p>",
        _tensor_table(tensors),
        "<h2>What both saw</h2>",
        "<p class=note>The image; the reference's patch features; the engine's, in the same colours: the first three "
        "principal components of the reference's features of all images of one size.</p>",
        *_shown(figure for each in result.cases for figure in _feature_figures(each)),
    ]


def _shown(figures: Iterable[str]) -> list[str]:
    """Return as many figures as a page shows, and say so where there are more; none beyond them is drawn."""
    drawn = list(itertools.islice(figures, MAX_PICTURES + 1))
    note = ["<p class=note>Further images were measured but are not shown.</p>"]
    return drawn if len(drawn) <= MAX_PICTURES else drawn[:MAX_PICTURES] + note


def _feature_figures(result: BackboneCaseResult) -> Iterator[str]:
    """Yield a figure for each image of a case."""
    images, (rows, columns) = result.case.images, result.output.grid
    dense = result.output.dense
    truth = result.case.outputs["tokens"].transpose(0, 2, 1).reshape(dense.shape)
    colours = pca_colours(truth)
    sides = zip(images, colours(truth), colours(dense), strict=True)
    for i, (image, reference, engine) in enumerate(sides):
        distances = cosine_distances(result.output.tokens[i], result.case.outputs["tokens"][i])
        furthest = int(np.argmax(distances))
        side = image.shape[0] // rows
        enlarged = (each.repeat(side, axis=0).repeat(side, axis=1) for each in (reference, engine))
        named = zip(("image", "reference", "engine"), (image, *enlarged), strict=True)
        shown = "".join(f'<div><img alt="{name}" src="{_data_uri(picture)}"></div>' for name, picture in named)
        caption = (
            f"{image.shape[1]} x {image.shape[0]} px, {counted(rows * columns, 'patch', 'patches')}: "
            f"1 - cosine {distances.mean():.2e} on average and {distances[furthest]:.2e} at the worst, "
            f"in row {furthest // columns}, column {furthest % columns}"
        )
        yield f'<figure><div class="pair">{shown}</div><figcaption>{caption}</figcaption></figure>'


def _figure(result: CaseResult, i: int, patch: int) -> str:
    case, selection = result.case, result.selections[i]
    theirs, ours = case.output.indices[i], result.output.indices[i]
    left = _picture(case.images[i], case.output.score_map[i], theirs, ours, SWAPPED_OUT, patch)
    right = _picture(case.images[i], result.output.score_map[i], ours, theirs, SWAPPED_IN, patch)
    rows, columns = case.output.score_map.shape[1:]
    moved = f", which moves the features by {result.swap_effect:.2e}" if selection.swaps else ""
    caption = (
        f"{columns * patch} x {rows * patch} px, k = {len(theirs)} of {rows * columns}: "
        f"{counted(len(selection.swaps), 'patch', 'patches')} kept by one side only, "
        f"{selection.unexplained} of them unexplained{moved}; score error "
        f"{selection.score_error:.2e} of the map's deviation, regret {selection.regret:.2e}"
    )
    return (
        f'<figure><div class="pair"><div><img alt="reference" src="{left}"></div>'
        f'<div><img alt="engine" src="{right}"></div></div><figcaption>{caption}</figcaption></figure>'
    )


def _picture(
    image: np.ndarray, scores: np.ndarray, kept: np.ndarray, other: np.ndarray, colour: np.ndarray, patch: int
) -> str:
    """Return one overlay as a data URI, cells that only this side kept framed in `colour`."""
    picture = np.array(overlay(image, scores, kept, patch))
    alone = np.zeros(scores.size, bool)
    alone[np.setdiff1d(kept, other)] = True
    side = picture.shape[0] // scores.shape[0]
    outline_cells(picture, alone.reshape(scores.shape), side, colour, width=max(2, side // 7))
    return _data_uri(picture)


def _data_uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def facts_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the head of the page from a parity command's data."""
    names = (
        "bundle", "engine", "engine_version", "precision", "static_k", "cls_only", "device", "key", "checkpoint_sha256",
        "images", "saccade",
    )  # fmt: skip
    return {name.replace("_", " "): str(data[name]) for name in names if name in data}
