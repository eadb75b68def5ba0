"""Triton's interpreter, without work that changes nothing.

- When a kernel starts, it puts its own functions into `triton.language`, and takes them out at the end. It also puts
  them in at each call of another jitted function, and looks through all of `triton.language` for that, which takes
  longer than most functions do. They are there already if a function of the same module has been called.
- It computes whether sums and products of integers overflow, and looks at the answer only if `debug` is set.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from triton.runtime import interpreter


@contextmanager
def quick_interpreter() -> Iterator[None]:
    """Inside, the interpreter leaves that out; results are the same."""
    builder = interpreter.interpreter_builder
    options = builder.options if builder.options.debug else replace(builder.options, sanitize_overflow=False)
    with (
        mock.patch.object(builder, "options", options),
        mock.patch.object(interpreter, "_patch_lang", _Once(interpreter._patch_lang)),
    ):
        yield


class _Once:
    """Puts the interpreter's functions in, if they are not."""

    def __init__(self, patch: Callable[[Any], Any]) -> None:
        self.patch = patch
        self.modules: set[int] = set()
        self.launch: Any = None

    def __call__(self, function: Any) -> "_Once":
        names = id(function.__globals__)
        if names not in self.modules:
            self.modules.add(names)
            scope = self.patch(function)
            if self.launch is None:
                self.launch = scope
        return self

    def restore(self) -> None:
        """At the end of a launch; scopes of functions are not taken back, as ever."""
        launch, self.launch = self.launch, None
        self.modules.clear()
        if launch is not None:
            launch.restore()
