"""Prints what a client returned."""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def action(client: str, name: str) -> Iterator[dict[str, Any]]:
    """Yields a mapping to fill, and prints it; an exception in the block is printed with it.

    Args:
        client: The client's name.
        name: What is done with it.
    """
    result: dict[str, Any] = {"client": client, "action": name}
    try:
        yield result
    except Exception as error:
        result["failure"] = "".join(traceback.format_exception_only(error)).strip()
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
