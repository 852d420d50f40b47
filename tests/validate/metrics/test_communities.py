"""Clusters that lie side by side become one community; neighbours are counted as a loop over pixels counts them."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.errors import SaccadeError
from saccade.validate.metrics.communities import community_links, cooccurrence, detect_communities, neighbour_offsets

# (rows, columns) at distance 1, then at 2, for 0, 45, 90, 135, 180, 240 (upstream's slip for 225), 270 and 315 degrees.
OFFSETS = [
    (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1),
    (0, 2), (1, 1), (2, 0), (1, -1), (0, -2), (-2, -1), (-2, 0), (-1, 1),
]  # fmt: skip


def test_neighbours_are_those_that_the_official_angles_round_to() -> None:
    assert neighbour_offsets() == OFFSETS


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(2, 5), st.integers(0, 99))
def test_cooccurrence_equals_a_loop_over_pixels(images: int, height: int, width: int, count: int, seed: int) -> None:
    clusters = np.random.default_rng(seed).integers(0, count, (images, height, width))
    total, seen = np.zeros((count, count)), np.zeros(count)
    for image in clusters:
        pairs = np.zeros((count, count))
        for row, column in np.ndindex(height, width):
            for down, right in OFFSETS:
                there = row + down, column + right
                if 0 <= there[0] < height and 0 <= there[1] < width and image[there] != image[row, column]:
                    pairs[image[row, column], image[there]] += 1
        for cluster in range(count):
            if pairs[cluster].sum():
                total[cluster] += pairs[cluster] / pairs[cluster].sum()
                seen[cluster] += 1
    expected = np.divide(total, seen[:, None], out=np.zeros_like(total), where=seen[:, None] > 0)
    np.testing.assert_allclose(cooccurrence(clusters, count), expected, atol=1e-12)


def test_links_are_the_weaker_direction_where_both_reach_the_threshold() -> None:
    matrix = np.array([[0, 0.5, 0.02], [0.3, 0, 0.5], [0.9, 0.04, 0]])
    assert community_links(matrix, 0.03) == [(0, 1, 0.3), (1, 2, 0.04)]
    assert community_links(matrix, 0.3) == [(0, 1, 0.3)]


def two_rings(bridge: float) -> list[tuple[int, int, float]]:
    return [(0, 1, 0.5), (1, 2, 0.5), (0, 2, 0.5), (4, 5, 0.5), (5, 6, 0.5), (4, 6, 0.5), (2, 4, bridge)]


@pytest.mark.parametrize("seed", range(3))
def test_densely_linked_clusters_become_one_community_and_a_lone_one_none(seed: int) -> None:
    found = detect_communities(two_rings(0.01), 8, markov_time=1, seed=seed, modules=2)
    assert len(set(found[:3].tolist())) == len(set(found[4:7].tolist())) == 1
    assert found[0] != found[4]
    assert 0 not in (found[0], found[4])
    assert found[[3, 7]].tolist() == [0, 0]


def test_a_long_markov_time_merges_communities() -> None:
    found = detect_communities(two_rings(0.3), 7, markov_time=10, seed=0, modules=1)
    assert len(set(found[[0, 1, 2, 4, 5, 6]].tolist())) == 1


def test_parts_that_touch_in_images_are_joined_and_other_objects_are_not() -> None:
    image = np.zeros((2, 20, 20), int)
    image[:, 2:10, 2:5], image[:, 2:10, 5:8] = 1, 2  # two halves of one object
    image[:, 12:18, 12:15], image[:, 12:18, 15:18] = 3, 4  # and of another; 0 lies between them
    matrix = cooccurrence(image, 5)
    matrix[0] = matrix[:, 0] = 0  # the background touches everything
    found = detect_communities(community_links(matrix, 0.1), 5, markov_time=1, seed=0, modules=2)
    assert found[1] == found[2] != found[3] == found[4]


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(SaccadeError, match=r"clusters: 4 labels are out of range \(2\); give 0\.\.1"):
        cooccurrence(np.full((1, 2, 2), 2), 2)
    with pytest.raises(SaccadeError, match=r"clusters: shape \(2, 2\); expected \(any, any, any\)"):
        cooccurrence(np.zeros((2, 2), int), 2)
    with pytest.raises(SaccadeError, match="communities: a link weight of 0 would link everything; give one above 0"):
        community_links(np.zeros((2, 2)), 0)
    with pytest.raises(SaccadeError, match="communities: no two clusters are linked; lower the link weight"):
        detect_communities([], 3, 1, 0)
    cliques = [(4 * clique + a, 4 * clique + b, 0.5) for clique in range(6) for a in range(4) for b in range(a)]
    bridges = [(4 * clique, 4 * clique + 4, 0.001) for clique in range(5)]
    with pytest.raises(SaccadeError, match="communities: 3 were found, at most 2 can be matched; raise the Markov time"):
        detect_communities(cliques + bridges, 24, markov_time=0.05, seed=0, modules=2)
