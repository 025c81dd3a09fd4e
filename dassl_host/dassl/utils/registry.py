"""Name -> object tables, the way trainers, data sets and evaluators are found by their config name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Registry"]


class Registry:
    """A table of classes or functions under their `__name__`.

    Example:
        >>> FRUIT_REGISTRY = Registry("FRUIT")
        >>> @FRUIT_REGISTRY.register()
        ... class Apple: ...
        >>> FRUIT_REGISTRY.get("Apple") is Apple
        True
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Callable[[Any], Any] | None:
        """Register `obj`, or return a decorator that does if `obj` is None.

        Raises:
            KeyError: If the name is taken and `force` is False.
        """
        if obj is None:
            return lambda decorated: self._add(decorated, force)
        self._add(obj, force)
        return None

    def _add(self, obj: Any, force: bool) -> Any:
        if obj.__name__ in self._obj_map and not force:
            raise KeyError(f"{obj.__name__!r} is already in the {self._name} registry; force=True replaces it")
        self._obj_map[obj.__name__] = obj
        return obj

    def get(self, name: str) -> Any:
        """Return the object registered as `name`.

        Raises:
            KeyError: If there is none.
        """
        if name not in self._obj_map:
            registered = ", ".join(self._obj_map) or "nothing"
            raise KeyError(f"{name!r} is not in the {self._name} registry; registered: {registered}")
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self._obj_map)
