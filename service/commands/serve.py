"""`glassbox serve`: a web server for the reports below a directory."""

from __future__ import annotations

import argparse

from pipelines.errors import ConfigError
from service.commands.common import Subparsers, add_command

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `serve` to the command line."""
    parser = add_command(commands, "serve", "serve the reports of runs over HTTP, and nothing else", run)
    parser.add_argument(
        "directory", metavar="DIR", help="the directory of 'glassbox report --all', on a disk"
    )
    parser.add_argument(
        "--host",
        default=DEFAULT_HOST,
        metavar="ADDRESS",
        help=f"address to listen on (default: {DEFAULT_HOST})",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        metavar="PORT",
        help=f"port to listen on; 0 for any that is free (default: {DEFAULT_PORT})",
    )


def run(options: argparse.Namespace) -> None:
    """Serves until interrupted.

    Raises:
        ConfigError: There is no such directory on a disk, or the address cannot be used.
    """
    from pipelines.remote.uri import Uri, parse_location
    from service.report.server import serve_reports

    root = parse_location(options.directory)
    if isinstance(root, Uri):
        raise ConfigError("a directory on a disk", f"DIR={root}", "let the store serve the reports itself")
    serve_reports(root, options.host, options.port)
