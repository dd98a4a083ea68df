"""What the experiments of this folder share: how a script ends with an error."""

import sys
from collections.abc import Callable

from vlp.errors import UserError, WorkError


def run_script(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line; errors that tell what to change end the process without a traceback."""
    try:
        main(sys.argv[1:])
    except (UserError, WorkError) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
