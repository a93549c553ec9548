"""What the benchmarks say: the table, and the JSON file with what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .measuring import Row
from .processes import ROOT

PACKAGES = ("picows", "aiofastnet", "websockets", "aiohttp", "uvloop", "Cython")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "commit": commit.stdout.strip(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


def number(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:.2f} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def heading(row: Row) -> str:
    labels = " ".join(f"{name:>8}" for name in row.labels)
    better = "more" if row.higher_is_better else "less"
    return (
        f"\n{row.workload}, {row.unit} ({better} is better; the ratio is ours / peer)\n"
        f"{labels}  {'peer':17} {'ours':>10} {'peer':>10} {'ratio':>6}  spread"
    )


def line(row: Row) -> str:
    labels = " ".join(f"{value:>8}" for value in row.labels.values())
    if not row.peer:
        return f"{labels}  {'-':17} {number(row.ours):>10}"
    return (
        f"{labels}  {row.peer:17} {number(row.ours):>10} {number(row.theirs):>10} "
        f"{row.ratio:6.2f}  {row.lowest:.2f} to {row.highest:.2f}"
    )


def write_json(path: Path, command: Sequence[str], rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": " ".join(command),
        "machine": machine(),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
