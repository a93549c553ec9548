"""What share of its lines the tests must reach, for each module: `dev.py coverage` compares.

    python -m tests.coverage_floors coverage.json            fails below a floor
    python -m tests.coverage_floors coverage.json --write    makes floors of what was reached

The floors are in coverage_floors.json, in percent, two below what was reached when they were
written: some lines depend on timing. A change may raise them, or lower them and say why. A module
that is not listed has no floor yet: it fails, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FLOORS = Path(__file__).with_suffix(".json")


def reached(report: Path) -> dict[str, int]:
    """Percent of the lines of each module that were reached, rounded down."""
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    return {
        name.replace("\\", "/"): int(file["summary"]["percent_covered"])
        for name, file in sorted(files.items())
        if file["summary"]["num_statements"] and not name.endswith(".pxd")
    }


def problems(floors: dict[str, int], found: dict[str, int]) -> list[str]:
    """What is below its floor, has none, or is gone."""
    lines = [f"{name}: no floor" for name in found.keys() - floors.keys()]
    lines += [f"{name}: not measured" for name in floors.keys() - found.keys()]
    lines += [
        f"{name}: {percent} %, floor {floors[name]} %"
        for name, percent in found.items()
        if percent < floors.get(name, 0)
    ]
    return sorted(lines)


def main(report: str, *options: str) -> None:
    found = reached(Path(report))
    if "--write" in options:
        floors = {name: max(percent - 2, 0) for name, percent in found.items()}
        FLOORS.write_text(json.dumps(floors, indent=2) + "\n", encoding="utf-8")
        return
    lines = problems(json.loads(FLOORS.read_text(encoding="utf-8")), found)
    if lines:
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
