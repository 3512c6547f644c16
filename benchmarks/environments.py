"""Environments of their own for the programs that whelp is measured against."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from results import ROOT

COMMON = ("torch>=2.8,<2.14", "pandas", "peft==0.21.2")
PPO = ".venv-peer"
"""TRL's last release with a PPO."""
CURRENT = ".venv-trl"
PACKAGES = {PPO: (*COMMON, "trl==1.12.0"), CURRENT: (*COMMON, "trl==1.16.0")}


def python_of(name: str) -> Path:
    """The Python of an environment, which is installed the first time (about 1 GB)."""
    folder, packages = ROOT / name, PACKAGES[name]
    python, installed = folder / "bin" / "python", folder / ".installed"
    if not installed.exists() or installed.read_text() != "\n".join(packages):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        installed.write_text("\n".join(packages))
    return python
