"""The lookup of vulnerabilities in `make lint`: it is skipped only where the database cannot be reached."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import audit
import pytest


@pytest.fixture
def database() -> Iterator[str]:
    """A server that answers every request with an error, as one for queries answers those for pages."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("code", [0, 1])
def test_the_command_decides_where_the_database_answers(database: str, code: int) -> None:
    assert audit.main([sys.executable, "-c", f"raise SystemExit({code})"], database) == code


def test_without_a_database_one_line_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        database = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert audit.main(["no such command"], database) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"pip-audit: skipped, because {database} cannot be reached (")
    assert "refused" in line
