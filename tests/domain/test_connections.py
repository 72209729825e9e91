from app.domain.connections import components, reachable, strong_components

# 1 beat 2, 2 beat 3, 3 beat 1; 4 beat 1; 5 and 6 met once; 7 met nobody.
ARCS = {1: {2}, 2: {3}, 3: {1}, 4: {1}, 5: {6}}
NODES = [1, 2, 3, 4, 5, 6, 7]


def test_groups() -> None:
    assert components(NODES, ARCS) == [{1, 2, 3, 4}, {5, 6}, {7}]
    assert strong_components(NODES, ARCS) == [{1, 2, 3}, {4}, {5}, {6}, {7}]
    assert reachable(4, ARCS) == {1, 2, 3, 4}
    assert reachable(1, ARCS) == {1, 2, 3}
