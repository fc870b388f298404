"""`glassbox cache`: what the local cache of objects from stores holds, and how to clear it."""

from __future__ import annotations

import argparse
import shutil

from rich.table import Table

from pipelines.errors import ConfigError
from pipelines.text import print_lines
from service.commands.common import Subparsers, add_command, print_table


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Adds `cache` to the command line, with its own subcommands."""
    summary = "show or clear the local cache of files from object stores"
    parser = commands.add_parser("cache", help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_command(subcommands, "info", "print folder, budget and content of the cache", print_info)
    clear = add_command(subcommands, "clear", "remove files from the cache", clear_cache)
    clear.add_argument("location", nargs="?", metavar="URI", help="shard set whose files are removed")
    clear.add_argument(
        "--all", action="store_true", help="remove all shard sets, and the single files that were read"
    )


def print_info(options: argparse.Namespace) -> None:
    """Prints folder and budget of the cache, and for every shard set its size and who uses it."""
    from pipelines.remote.disk import open_cache
    from pipelines.remote.files import FOLDER as FILES
    from pipelines.remote.folder import find_cache_folder, format_gigabytes, measure_folder

    cache = open_cache()
    sets = cache.list_sets()
    total = cache.count_bytes()
    files = measure_folder(find_cache_folder() / FILES)
    print_lines(f"folder: {find_cache_folder()}")
    print_lines(f"shards: {format_gigabytes(total)} of at most {cache.budget}")
    print_lines(f"single files: {format_gigabytes(files)}")
    if not sets:
        return
    table = Table("shard set", "files", "size", "used by", box=None)
    for info in sets:
        users = ", ".join(sorted({str(user) for user in info.users}))
        table.add_row(info.location, str(info.files), format_gigabytes(info.bytes), users)
    print_table(table)


def clear_cache(options: argparse.Namespace) -> None:
    """Removes the files of one shard set or of all; copies of runs are not touched.

    Raises:
        ConfigError: Neither or both of a shard set and `--all` are specified, the cache has no such set, or a
            process uses it.
    """
    from pipelines.remote.disk import open_cache
    from pipelines.remote.files import FOLDER as FILES
    from pipelines.remote.folder import find_cache_folder, format_gigabytes, measure_folder
    from pipelines.remote.uri import parse_location

    if (options.location is None) != options.all:
        raise ConfigError(
            "either a shard set or --all",
            f"URI={options.location or 'none'}, --all={options.all}",
            "name the shard set ('glassbox cache info' lists them), or clear all with --all",
        )
    cache = open_cache()
    if options.all:
        removed = cache.clear(None)
        files = find_cache_folder() / FILES
        removed += measure_folder(files)
        shutil.rmtree(files, ignore_errors=True)
    else:
        location = str(parse_location(options.location))
        known = [info.location for info in cache.list_sets()]
        if location not in known:
            raise ConfigError(
                "a shard set in the cache", f"URI={location}", f"name one of {', '.join(known) or 'none'}"
            )
        removed = cache.clear(location)
    print_lines(f"removed {format_gigabytes(removed)}")
