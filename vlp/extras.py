"""Optional dependencies: a missing one is reported in one sentence that names the extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager

from vlp.errors import UserError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Guard the imports of optional packages, as in `with extra("capfilt"): import duckdb`.

    Args:
        name: the extra in pyproject.toml that declares the packages imported in the block.

    Raises:
        UserError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise UserError(f"{package} is not installed; install it with: pip install 'vlp[{name}]'.") from error
