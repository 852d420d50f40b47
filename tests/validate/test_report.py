"""The report stands alone: balanced HTML, the numbers in it, both selections as pictures, and every swap framed."""
from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.golden import Case, ReferenceOutput
from saccade.runtime.chain import Output
from saccade.validate.parity import CaseResult, Measure, ParityResult
from saccade.validate.report import MAX_PICTURES, SWAPPED_IN, SWAPPED_OUT, facts_of, write_report
from saccade.validate.selection import compare_selection

PATCH, GRID, K = 14, (8, 6), 12
TENSORS = {"selector.score_map": {"max_abs_error": 2.5e-6, "cosine": 0.9999995, "l2": 1e-4, "psnr_db": 131.25}}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects text, attributes, and tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def ranked(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=None, kind="stable")[:K].astype(np.int32)


def case_result(seed: int, images: int, nudge: float) -> CaseResult:
    """Return a measured case whose engine scores differ by `nudge`; images are grey, so that colours are marks."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((images, *GRID)).astype(np.float32)
    scores = (truth + nudge * rng.standard_normal(truth.shape)).astype(np.float32)
    kept, ours = (np.stack([ranked(each) for each in maps]) for maps in (truth, scores))
    grey = np.full((images, GRID[0] * PATCH, GRID[1] * PATCH, 3), 128, np.uint8)
    tokens = np.zeros((images, K, 4), np.float32)
    reference = ReferenceOutput(truth, truth, tokens[:, :1], kept, tokens, tokens[:, 0])
    output = Output(scores, tokens[:, :1], scores, {}, ours, tokens, tokens[:, 0])
    selections = tuple(compare_selection(truth[i], kept[i], scores[i], ours[i]) for i in range(images))
    return CaseResult(Case(grey, reference), output, output, selections, {}, 1e-5, 0.0625)


def page_of(path: Path, cases: list[CaseResult], facts: dict[str, str] | None = None, *, passed: bool = True) -> Page:
    measures = (Measure("score_error", 1.23e-6 if passed else 7.89e-2, 5e-4, "largest <difference> & more"),)
    write_report(path, ParityResult("fp32", tuple(cases), measures), facts or {"bundle": "b"}, TENSORS, PATCH)
    return Page(path.read_text(encoding="utf-8"))


def pictures(page: Page) -> list[np.ndarray]:
    """Return every embedded picture, decoded."""
    found = []
    for attributes in page.all("img"):
        kind, _, data = (attributes["src"] or "").partition(";base64,")
        assert kind == "data:image/jpeg"
        found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB"), np.int32))
    return found


def frame_colours(picture: np.ndarray) -> np.ndarray:
    """Return the mean colour of each cell's outermost ring of pixels, (rows, columns, 3)."""
    side = picture.shape[0] // GRID[0]
    cells = picture.reshape(GRID[0], side, GRID[1], side, 3).swapaxes(1, 2)
    ring = np.ones((side, side), bool)
    ring[2:-2, 2:-2] = False
    return cells[:, :, ring].mean(axis=2)


def test_the_page_is_balanced_html_that_loads_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path / "out.html", [case_result(0, 2, 0.3), case_result(1, 1, 0)])
    assert page.wrong == []
    assert page.open == []
    text = (tmp_path / "out.html").read_text()
    assert text.startswith("<!doctype html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r'src="data:[^"]*"', "", text))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    assert all((attributes["src"] or "").startswith("data:") for attributes in page.all("img"))
    assert all(attributes["alt"] for attributes in page.all("img"))


@pytest.mark.parametrize(
    ("passed", "words"), [(True, ("equal", "pass", "1.23e-06")), (False, ("different", "fail", "0.0789"))]
)
def test_the_page_says_the_verdict_and_holds_the_numbers(tmp_path: Path, passed: bool, words: tuple[str, ...]) -> None:
    text = page_of(tmp_path / "out.html", [case_result(0, 1, 0.3)], passed=passed).text
    for word in (*words, "0.0005", "score_error", "largest <difference> & more", "selector.score_map", "131.25", "2.5e-06"):
        assert word in text, word
    assert f"84 x 112 px, k = {K} of 48" in text


def test_names_with_html_in_them_are_escaped(tmp_path: Path) -> None:
    name = '<img src=x onerror="alert(1)">&amp;'
    page = page_of(tmp_path / "out.html", [case_result(0, 1, 0)], {"bundle": f"/tmp/{name}", f"<b>{name}": "x"})
    assert f"/tmp/{name}" in page.text
    assert f"<b>{name}" in page.text
    assert len(page.all("img")) == 2
    assert not page.all("b")


def test_swapped_patches_are_framed_in_their_colours_and_no_others(tmp_path: Path) -> None:
    result = case_result(0, 1, 0.3)
    theirs, ours = (set(indices[0].tolist()) for indices in (result.case.output.indices, result.output.indices))
    assert theirs - ours
    left, right = pictures(page_of(tmp_path / "out.html", [result]))
    for picture, colour, alone in ((left, SWAPPED_OUT, theirs - ours), (right, SWAPPED_IN, ours - theirs)):
        near = np.abs(frame_colours(picture) - colour).max(axis=2) < 40
        assert set(np.flatnonzero(near).tolist()) == alone


def test_without_swaps_nothing_is_framed_in_those_colours(tmp_path: Path) -> None:
    for picture in pictures(page_of(tmp_path / "out.html", [case_result(0, 1, 0)])):
        frames = frame_colours(picture)
        assert all(np.abs(frames - colour).max(axis=2).min() > 40 for colour in (SWAPPED_OUT, SWAPPED_IN))


def test_the_caption_counts_what_the_comparison_counted(tmp_path: Path) -> None:
    result = case_result(0, 1, 0.3)
    (selection,) = result.selections
    text = page_of(tmp_path / "out.html", [result]).text
    assert f"{len(selection.swaps)} patches kept by one side only, 0 of them unexplained" in text
    assert "moves the features by 6.25e-02" in text
    assert f"regret {selection.regret:.2e}" in text


def test_each_image_has_one_pair_of_its_own_shape(tmp_path: Path) -> None:
    found = pictures(page_of(tmp_path / "out.html", [case_result(0, 2, 0.3), case_result(1, 1, 0)]))
    assert len(found) == 6
    assert all(picture.shape[0] * GRID[1] == picture.shape[1] * GRID[0] for picture in found)


def test_a_page_shows_at_most_so_many_pairs_and_says_that_there_are_more(tmp_path: Path) -> None:
    exactly = page_of(tmp_path / "exactly.html", [case_result(seed, 3, 0) for seed in range(MAX_PICTURES // 3)])
    more = page_of(tmp_path / "more.html", [case_result(seed, 5, 0) for seed in range(3)])
    assert len(exactly.all("figure")) == len(more.all("figure")) == MAX_PICTURES
    note = "Further images were measured but are not shown."
    assert note in more.text
    assert note not in exactly.text
    assert more.wrong == more.open == []


def test_a_page_without_tensors_is_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "out.html", ParityResult("fp32", (case_result(0, 1, 0),), ()), {}, {}, PATCH)
    page = Page((tmp_path / "out.html").read_text())
    assert page.wrong == page.open == []


def test_facts_are_taken_from_what_the_command_said() -> None:
    said = {"bundle": "b", "engine_version": 2025.1, "images": 4, "checkpoint_sha256": "ab", "measures": {}, "passed": True}
    assert facts_of(said) == {"bundle": "b", "engine version": "2025.1", "checkpoint sha256": "ab", "images": "4"}
