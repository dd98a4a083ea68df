"""For pyright: pyarrow generates its compute functions when it is imported, so their definitions are in no file."""

from typing import Any

def __getattr__(name: str) -> Any: ...
