"""Timing of several functions in turn, so that the machine's moods meet all of them alike."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any


def side_by_side(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each function over some rounds, in each of which all are called once."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in seconds.items()}
