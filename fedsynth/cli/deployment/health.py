"""Whether a link answers, with status 1 and the reason where it does not: what compose.yaml asks from time to time.

``python -m fedsynth.cli.deployment.health LINK [CA]``, with a link folder, or ``HOST:PORT`` and its ``ca.crt``.
"""

from __future__ import annotations

import http.client
import ssl
import sys
from contextlib import closing
from pathlib import Path

from fedsynth.cli.deployment.link_folder import Connection, connection_to
from fedsynth.errors import UserError


def problem(connection: Connection, timeout: float = 5.0) -> str:
    """Return why a SuperLink, or the front before it, does not answer within ``timeout`` seconds; empty if it does."""
    try:
        context = ssl.create_default_context(cafile=connection.authority)
        with closing(http.client.HTTPSConnection(connection.address, timeout=timeout, context=context)) as asked:
            asked.request("GET", "/health")
            status = asked.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{connection.address}: {error}"
    return "" if status == http.HTTPStatus.OK else f"{connection.address}: status {status}"


def main(words: list[str]) -> int:
    """Print what is wrong, and return the exit status."""
    link, *authority = words
    try:
        said = problem(connection_to(link, Path(authority[0]) if authority else None))
    except UserError as error:
        said = str(error)
    print(said, end="\n" if said else "")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
