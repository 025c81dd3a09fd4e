"""Looks after the folder of a background cache (`TRAINER.BGOBJLLAVA.CACHE.DIR`).

    python scripts/bgobj_cache.py stats cache/            # entries and bytes, by the model and settings they belong to
    python scripts/bgobj_cache.py verify cache/           # read every entry and check all of it; exit code 1 if one is damaged
    python scripts/bgobj_cache.py purge cache/ --damaged  # delete damaged entries
    python scripts/bgobj_cache.py purge cache/ --older-than 30
    python scripts/bgobj_cache.py purge cache/            # delete all entries

Only entries are ever deleted, and what writers that were killed left behind; other files are counted and stay. Run `purge`
while no run uses the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl_host import ensure_dassl  # noqa: E402

ensure_dassl()

from clip_ext.console import accept_any_text  # noqa: E402
from trainers.bgobj_llava.cache.disk import (  # noqa: E402
    DamagedEntry,
    ForeignFile,
    read_entry,
    read_facts,
    remove_stale_parts,
    visible_files,
)

DAY_S = 86_400


@dataclass
class Group:
    """Entries of one context."""

    entries: int = 0
    with_kv: int = 0
    patches: int = 0
    bytes: int = 0
    last_used: str = ""


@dataclass
class FolderStats:
    """What is in a folder; contexts are named by their first twelve digits."""

    entries: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    contexts: dict[str, Group] = field(default_factory=dict)


def judge(path: Path, *, thorough: bool) -> str:
    """Return `entry`, `damaged: ...` or `foreign` for a file.

    Args:
        path: The file.
        thorough: Read all of it, not only its header.
    """
    try:
        read_entry(path) if thorough else read_facts(path)
    except ForeignFile:
        return "foreign"
    except DamagedEntry as error:
        return f"damaged: {error}"
    return "entry"


def collect_stats(folder: Path) -> FolderStats:
    """Read all headers of a folder."""
    stats = FolderStats()
    for path in visible_files(folder):
        verdict = judge(path, thorough=False)
        if verdict != "entry":
            (stats.foreign if verdict == "foreign" else stats.damaged).append(path.name)
            continue
        facts, level = read_facts(path)
        group = stats.contexts.setdefault(facts.context[:12], Group())
        size, used = path.stat().st_size, time.localtime(path.stat().st_mtime)
        for each in (stats, group):
            each.entries += 1
            each.bytes += size
        group.with_kv += level == "kv"
        group.patches += facts.n_patches
        group.last_used = time.strftime("%Y-%m-%d %H:%M", used)  # the files come in this order
    return stats


def show_stats(folder: Path, stats: FolderStats) -> str:
    """Return the statistics as text."""
    lines = [f"{folder}: {stats.entries} entries, {stats.bytes / 2**20:.1f} MiB; {len(stats.damaged)} damaged and "
             f"{len(stats.foreign)} foreign files"]  # fmt: skip
    for context, group in stats.contexts.items():
        lines.append(
            f"  {context}: {group.entries} entries ({group.with_kv} with keys and values), {group.patches / group.entries:.0f} "
            f"patches on average, {group.bytes / 2**20:.1f} MiB, last used {group.last_used}"
        )
    return "\n".join(lines)


def verify(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, verdict) after reading each file wholly."""
    for path in visible_files(folder):
        yield path, judge(path, thorough=True)


def purge(folder: Path, *, damaged_only: bool, older_than_days: float | None) -> int:
    """Delete entries and return how many.

    Args:
        folder: Of the cache.
        damaged_only: Only those that are not what they say.
        older_than_days: Only those that were not used for so long; None = any.
    """
    count, limit = 0, time.time() - (older_than_days or 0) * DAY_S
    for path in visible_files(folder):
        verdict = judge(path, thorough=damaged_only)
        wanted = verdict.startswith("damaged") if damaged_only else verdict != "foreign"
        if wanted and (older_than_days is None or path.stat().st_mtime < limit):
            path.unlink()
            count += 1
    remove_stale_parts(folder)
    return count


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("stats", "count entries"), ("verify", "check entries"), ("purge", "delete entries")):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, help="CACHE.DIR")
        if name == "stats":
            command.add_argument("--json", action="store_true", help="print JSON")
        if name == "purge":
            command.add_argument("--damaged", action="store_true", help="only damaged entries")
            command.add_argument("--older-than", type=float, metavar="DAYS", help="only entries not used for so long")
    return parser


def main(argv: list[str] | None = None) -> int:
    accept_any_text()
    args = build_parser().parse_args(argv)
    if not args.folder.is_dir():
        print(f"{args.folder} is no folder", file=sys.stderr)
        return 2
    if args.command == "stats":
        stats = collect_stats(args.folder)
        print(json.dumps(asdict(stats), indent=2) if args.json else show_stats(args.folder, stats))
        return 0
    if args.command == "purge":
        print(f"{purge(args.folder, damaged_only=args.damaged, older_than_days=args.older_than)} entries deleted")
        return 0
    bad = 0
    for path, verdict in verify(args.folder):
        bad += verdict.startswith("damaged")
        print(f"{path.name}: {verdict}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
