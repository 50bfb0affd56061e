"""What a run is made with: versions, commit and device, as config.json records them."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from seqjax import __version__

__all__ = ["describe", "environment"]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(flags: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json for a run with these flags in this process."""
    devices = jax.devices()
    return {
        "flags": flags,
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
            # Of the code that runs: an installed distribution may be of another tree, or missing.
            "seqjax": __version__,
        },
        "commit": _commit(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "seed": flags.get("seed"),
    }


def environment(config: dict[str, Any]) -> dict[str, Any]:
    """Commit, device and versions in the content of a config.json, as first written or last changed."""
    if latest := config.get("changed"):
        return {name: value for name, value in latest[-1].items() if name != "since"}
    return {"commit": config.get("commit"), "device": config.get("device"), **config.get("versions", {})}


def _version(package: str) -> str | None:
    """The version of an installed distribution; None for a package that is only on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache  # one process runs one version of the code, and opens many runs
def _commit() -> str | None:
    """The commit of the source tree that seqjax is imported from; None for an installed copy."""
    root = Path(__file__).parents[2]
    # Without this, a copy installed below another repository would report the commit of that repository.
    if not (root / ".git").exists():
        return None
    try:
        # Ends in "-dirty" where files differ from those of the commit.
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        head = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()
