"""`ldznet cache list|show|verify|collect URL`: what a feature cache holds, whether it is sound, what may go."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from jobs import cache_text
from jobs.entry import exit_code_of
from jobs.progress import progress_bar
from ldznet.errors import UserError

if TYPE_CHECKING:
    from pipeline.cache.garbage import Drop
    from pipeline.object_store.store import ObjectStore

_DESCRIPTION = """\
Look after a feature cache. URL is a recipe's cache.url: s3://BUCKET/PREFIX, file:///FOLDER or a path. KEY is a numeric
specification's key, or as many of its first digits as tell it apart.

  ldznet cache list s3://bucket/cache
  ldznet cache show s3://bucket/cache 3f2a91 c07b
  ldznet cache verify s3://bucket/cache --share 0.05
  ldznet cache collect s3://bucket/cache"""

_VERIFY = """\
Check that a cache is as it was written: seals, indexes, receipts, and size and SHA-256 of every shard, or of a seeded
sample of them. Names each object that is bad. Exit code 1 where there are any: `ldznet precompute RECIPE --repair`
mends them. Exit code 0 where there are none, 2 for a mistake of yours."""

_COLLECT = """\
Remove what no manifest names: shards and receipts of runs that were given up, tars without a receipt, unfinished
manifests and uploads, requests that lead nowhere. Shows what and how much, and asks; without a terminal it removes
only with --yes. What a running job works on stays, and so does what is younger than --older-than.

A precompute that was stopped goes on from the shards that it has committed: collect them only when it is given up."""

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the cache's commands."""
    arguments = _parser().parse_args(argv)
    code = 0

    def act() -> None:
        nonlocal code
        code = arguments.act(arguments)

    return exit_code_of(act) or code


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="ldznet cache", description=_DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, act: Callable[..., int], summary: str, text: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=text or summary, formatter_class=raw)
        added.add_argument("url", metavar="URL", help="a recipe's cache.url")
        added.set_defaults(act=act)
        return added

    listing = command("list", _list, "one line a numeric specification: key, sets, sizes, age")
    show = command("show", _show, "one specification and its manifests; with OTHER, what differs between two")
    show.add_argument("key", metavar="KEY")
    show.add_argument("other", metavar="OTHER", nargs="?")
    verify = command("verify", _verify, "re-hash shards and name each bad one", _VERIFY)
    verify.add_argument("key", metavar="KEY", nargs="?", help="one specification (default: all)")
    verify.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="of each manifest's shards to check, such as 0.05 (default: 1)",
    )
    verify.add_argument("--seed", type=int, default=0, help="of their choice (default: 0)")
    verify.add_argument("--at-once", type=int, default=4, help="shards hashed at the same time (default: 4)")
    for one in (listing, show, verify):
        one.add_argument("--json", action="store_true", help="as JSON, for programs")
    collect = command("collect", _collect, "remove what no manifest names, after showing it", _COLLECT)
    collect.add_argument(
        "--older-than", default="24h", metavar="AGE", help="such as 90s, 30min, 24h, 7d (default: 24h)"
    )
    collect.add_argument("--yes", action="store_true", help="remove without asking")
    collect.add_argument(
        "--drop",
        metavar="KEY[/MANIFEST]",
        help="also remove a specification's manifests (or this one), and what only they named, however young",
    )
    return parser


def _open(url: str) -> "ObjectStore":
    from pipeline.object_store.files import FileStore
    from pipeline.object_store.opening import open_store

    store = open_store(url)
    if isinstance(store, FileStore) and not store.root.is_dir():
        raise UserError(f"there is no folder {store.root}: name a recipe's cache.url")
    return store


def _list(arguments: argparse.Namespace) -> int:
    from pipeline.cache.cache_keys import shorten
    from pipeline.cache.inventory import summarise

    summary = summarise(_open(arguments.url))
    if arguments.json:
        _print([summary.model_dump_json(indent=1)])
    else:
        _print(cache_text.list_lines(summary, shorten([one.cache_key for one in summary.specs])))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pipeline.cache.cache_keys import find_cache_key
    from pipeline.cache.comparison import compare
    from pipeline.cache.inventory import describe

    store = _open(arguments.url)
    key = find_cache_key(store, arguments.key)
    if arguments.other is None:
        details = describe(store, key)
        _print([details.model_dump_json(indent=1)] if arguments.json else cache_text.details_lines(details))
        return 0
    comparison = compare(store, key, find_cache_key(store, arguments.other))
    _print(
        [comparison.model_dump_json(indent=1)] if arguments.json else cache_text.comparison_lines(comparison)
    )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.cache.cache_keys import find_cache_key
    from pipeline.cache.verification import count_shards, verify

    if not 0 < arguments.share <= 1:
        raise UserError(f"--share {arguments.share:g} is out of range: give a share above 0 and up to 1")
    if arguments.at_once < 1:
        raise UserError(f"--at-once {arguments.at_once} is out of range: give 1 or more")
    store = _open(arguments.url)
    key = find_cache_key(store, arguments.key) if arguments.key else None
    total = count_shards(store, cache_key=key, share=arguments.share, seed=arguments.seed)
    with progress_bar("verify", total=total, unit="shards") as advance:
        found = verify(
            store,
            cache_key=key,
            share=arguments.share,
            seed=arguments.seed,
            at_once=arguments.at_once,
            progress=advance,
        )
    _print(
        [found.model_dump_json(indent=1)]
        if arguments.json
        else cache_text.verification_lines(found, store.url)
    )
    return 1 if found.faults else 0


def _collect(arguments: argparse.Namespace) -> int:
    from pipeline.cache.collection import collect, preview

    older_than_s = _seconds(arguments.older_than)
    store = _open(arguments.url)
    drop = _drop(store, arguments.drop) if arguments.drop else None
    shown = preview(store, older_than_s=older_than_s, drop=drop)
    _print(cache_text.findings_lines(shown, store.url))
    if not arguments.yes and not (shown.garbage and _agreed()):
        if shown.garbage:
            _print(["nothing was removed: add --yes to remove it"])
        return 0
    with progress_bar("collect", total=len(shown.garbage), unit="objects") as advance:
        done = collect(store, shown, older_than_s=older_than_s, drop=drop, progress=advance)
    _print([f"removed {len(done.removed):,} objects, {cache_text.size_text(done.size)}"])
    if done.kept:
        _print([f"{done.kept:,} were left after all: they are in use, changed or gone by now"])
    if done.unfinished is None:
        _print(["unfinished uploads were left, for a job is at work"])
    elif done.unfinished:
        _print([f"discarded {done.unfinished:,} unfinished uploads"])
    return 0


def _seconds(text: str) -> float:
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"--older-than {text!r} is no age: write it like 90s, 30min, 24h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def _drop(store: "ObjectStore", text: str) -> "Drop":
    from pipeline.cache.cache_keys import find_cache_key
    from pipeline.cache.garbage import Drop
    from pipeline.cache.inventory import list_manifest_ids

    key, slash, prefix = text.partition("/")
    cache_key = find_cache_key(store, key)
    if not slash:
        return Drop(cache_key=cache_key)
    if not prefix:
        raise UserError(
            f"--drop {text} names no manifest behind the slash: without the slash, it drops all of {key}"
        )
    there = list_manifest_ids(store, cache_key)
    found = [manifest_id for manifest_id in there if manifest_id.startswith(prefix.lower())]
    if len(found) != 1:
        what = "several start" if found else "none starts"
        raise UserError(
            f"of the manifests of {cache_key[:12]} {what} with {prefix!r}: there are {', '.join(there) or 'none'}"
        )
    return Drop(cache_key=cache_key, manifest_id=found[0])


def _agreed() -> bool:
    """Whether somebody at a terminal types `yes`."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input("Remove it? Type yes: ").strip() == "yes"
    except EOFError:  # Ctrl-D
        print()  # noqa: T201 - behind the question
        return False


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)  # noqa: T201 - the command's result


if __name__ == "__main__":
    sys.exit(main())
