"""Batches are cut into pieces that fit, whole groups at a time."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from whelp.engines.batching import pieces, response_index


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=30), st.integers(1, 120))
def test_pieces(rows, budget):
    lengths, group = [length for length, _ in rows], [name for _, name in rows]
    found = pieces(lengths, group, budget)
    assert sorted(row for piece in found for row in piece) == list(range(len(rows)))
    for piece in found:
        names = {group[row] for row in piece}
        assert all(row in piece for row in range(len(rows)) if group[row] in names)
        assert len(names) == 1 or len(piece) * max(lengths[row] for row in piece) <= budget


def test_pieces_of_equal_length_are_filled():
    assert sorted(len(piece) for piece in pieces([10] * 10, range(10), 40)) == [2, 4, 4]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=9), st.integers(100, 2000), st.sampled_from([0, 96, 8192]))
def test_no_other_cut_of_the_sorted_rows_is_cheaper(lengths, budget, piece_price):
    def price(cut):
        return sum(len(piece) * max(piece) + piece_price for piece in cut)

    ordered = sorted(lengths)
    every_cut = []
    for borders in product([False, True], repeat=len(ordered) - 1):
        cut = [[ordered[0]]]
        for border, length in zip(borders, ordered[1:], strict=True):
            if border:
                cut.append([length])
            else:
                cut[-1].append(length)
        if all(len(piece) == 1 or len(piece) * max(piece) <= budget for piece in cut):
            every_cut.append(price(cut))
    found = [[lengths[row] for row in piece] for piece in pieces(lengths, range(len(lengths)), budget, piece_price)]
    assert price(found) == min(every_cut)


def test_response_index():
    rows, positions, table = response_index([(False, True, True), (False, False), (False, True, False, True)])
    assert list(zip(rows.tolist(), positions.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 1), (2, 3)]
    assert table.tolist() == [[True, True], [False, False], [True, True]]
