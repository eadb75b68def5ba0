"""In which order the diverged lanes of a warp run, so that they meet where a compiler lets them meet.

ptxas makes lanes wait for each other at the immediate post-dominator of the branch that parted them. The text of a
kernel does not tell where that is: a loop may be turned around, so that one side of a branch is far behind the other
and behind the place where both meet. So blocks get ranks: a block is behind all that lead to it, a loop is in one
piece, and behind its last block is the place where its lanes wait before they go around again. If the lanes of least
rank always run first, lanes have met at a post-dominator before they run it, in all code that does not enter a loop in
its middle. They may meet earlier than on hardware, so that a collective which is wrong only there is not found.
"""

from collections.abc import Mapping, Sequence, Set

Edges = Sequence[Sequence[int]]  # successors of each block


def ranks(successors: Edges) -> tuple[list[int], dict[int, int]]:
    """The rank of each block, and, for the heads of loops, that of lanes that come there from inside the loop.

    It is the weak topological order of Bourdoncle, "Efficient chaotic iteration strategies with widenings" (1993).
    """
    predecessors: list[list[int]] = [[] for _ in successors]
    for block, following in enumerate(successors):
        for each in following:
            predecessors[each].append(block)
    entered, again = [0] * len(successors), dict[int, int]()
    next_rank = 0

    def place(blocks: Set[int]) -> None:
        nonlocal next_rank
        for component in _components(blocks, successors):
            head = min(component)
            is_loop = len(component) > 1 or head in successors[head]
            if is_loop and 0 not in component:  # where the program begins is entered, whatever leads there
                head = min((each for each in component if not component.issuperset(predecessors[each])), default=head)
            entered[head] = next_rank
            next_rank += 1
            if is_loop:
                place(component - {head})
                again[head] = next_rank
                next_rank += 1

    place(frozenset(range(len(successors))))
    return entered, again


def rank_of_edge(source: int, target: int, entered: Sequence[int], again: Mapping[int, int]) -> int:
    """The rank of lanes that go from one block to another."""
    return again[target] if entered[target] <= entered[source] else entered[target]


def _components(blocks: Set[int], successors: Edges) -> list[set[int]]:
    """Strongly connected components of a part of the graph, each before those it leads to (Tarjan 1972)."""
    number, lowest = dict[int, int](), dict[int, int]()
    open_blocks: list[int] = []
    closed, components = set[int](), list[set[int]]()
    for root in sorted(blocks):
        path = [] if root in number else [(root, iter(successors[root]))]
        while path:
            block, following = path[-1]
            if block not in number:
                number[block] = lowest[block] = len(number)
                open_blocks.append(block)
            for each in following:
                if each not in blocks or each in closed:
                    continue
                if each not in number:
                    path.append((each, iter(successors[each])))
                    break
                lowest[block] = min(lowest[block], number[each])
            else:
                path.pop()
                if path:
                    parent = path[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[block])
                if lowest[block] == number[block]:
                    start = open_blocks.index(block)
                    components.append(set(open_blocks[start:]))
                    closed.update(open_blocks[start:])
                    del open_blocks[start:]
    return components[::-1]
