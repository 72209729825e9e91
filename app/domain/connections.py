"""Find the policies that are connected by comparisons, and those between which a finite difference can be estimated."""

from collections.abc import Callable, Iterable, Mapping, Sequence

Arcs = Mapping[int, set[int]]


def reachable(start: int, arcs: Arcs) -> set[int]:
    """Return all nodes that arcs lead to from `start`, itself included."""
    found, waiting = {start}, [start]
    while waiting:
        new = arcs.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found


def both_ways(arcs: Arcs) -> dict[int, set[int]]:
    """Return the arcs together with their reverses."""
    found = {start: set(ends) for start, ends in arcs.items()}
    for start, end in pairs(arcs):
        found.setdefault(end, set()).add(start)
    return found


def reverse(arcs: Arcs) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for start, end in pairs(arcs):
        found.setdefault(end, set()).add(start)
    return found


def pairs(arcs: Arcs) -> Iterable[tuple[int, int]]:
    return ((start, end) for start, ends in arcs.items() for end in ends)


def components(nodes: Sequence[int], arcs: Arcs) -> list[set[int]]:
    """Return groups of nodes that arcs connect, whatever their direction, in the order of their first nodes."""
    either = both_ways(arcs)
    return _grouped(nodes, lambda node: reachable(node, either))


def strong_components(nodes: Sequence[int], arcs: Arcs) -> list[set[int]]:
    """Return groups of nodes in which arcs lead from every node to every other.

    If arcs run from winners to losers, and both ways for ties, then differences within a group have a finite maximum
    likelihood estimate. Between two groups, one side won everything (Ford 1957, Solution of a Ranking Problem from
    Binary Comparisons, The American Mathematical Monthly 64).
    """
    backwards = reverse(arcs)
    return _grouped(nodes, lambda node: reachable(node, arcs) & reachable(node, backwards))


def _grouped(nodes: Sequence[int], group_of: Callable[[int], set[int]]) -> list[set[int]]:
    found: list[set[int]] = []
    done: set[int] = set()
    for node in nodes:
        if node not in done:
            found.append(group_of(node))
            done |= found[-1]
    return found
