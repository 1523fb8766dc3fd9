"""This machine: packages, processor, memory, disk, descriptors. Nothing here needs a configuration."""

from __future__ import annotations

import platform
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import ditto
from ditto.doctor.finding import Finding, failed, ok, warning
from ditto.errors import ConfigError, DittoError, StorageError
from ditto.net.processor import features, usable_cores

ME = "this machine"
DISTRIBUTION = "ditto-mpc"
SHOWN = ("grpcio", "protobuf", "torch", "numpy")
LITTLE_DISK, NO_DISK = 2 << 30, 100 << 20  # bytes free: a sharing of bert-base takes about 1 GB at a party
LITTLE_MEMORY = 2 << 30
FEW_DESCRIPTORS = 4096


def packages() -> Finding:
    """Versions against what this package asks for. Loads none of them."""
    if (least := (3, 11)) > tuple(map(int, platform.python_version_tuple()[:2])):
        error = ConfigError(f"Python {platform.python_version()}: {'.'.join(map(str, least))} or later is needed")
        return failed(ME, "packages", error, "make the environment with a later Python")
    try:
        needs = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return warning(
            ME, "packages", f"ditto {ditto.__version__} is run, but not installed: what it needs is not known",
            "pip install . in its directory",
        )  # fmt: skip
    wrong, found = [], [f"ditto {ditto.__version__}", f"Python {platform.python_version()}"]
    for need in needs:
        match = re.match(r"([A-Za-z0-9._-]+)>=([0-9.]+)$", need)
        if match is None:  # of an extra
            continue
        name, least_text = match.groups()
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if _numbers(here) < _numbers(least_text):
            wrong.append(f"{name} {here}, {least_text} or later is needed")
        if name in SHOWN:
            found.append(f"{name} {here}")
    if wrong:
        return failed(ME, "packages", ConfigError("; ".join(wrong)), f"pip install --upgrade {DISTRIBUTION}")
    return ok(ME, "packages", ", ".join(found))


def _numbers(version: str) -> tuple[int, ...]:
    """Of a release: 2.9.1+cpu is (2, 9, 1)."""
    found = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def processor() -> Finding:
    known = ", ".join(features()) or "baseline"
    return ok(ME, "processor", f"{platform.machine()}, {usable_cores()} cores for this process; {known}")


def kernels() -> Finding:
    """Which exact product is the fastest here: measured, a second or so of one core."""
    try:
        import torch

        from ditto.ring.kernels import kernel_of

        torch.set_num_threads(1)
        found = ", ".join(f"{size} bits {kernel_of(size)}" for size in (16, 32, 64))
    except (ImportError, OSError, RuntimeError) as error:
        broken = ConfigError(f"torch {metadata.version('torch')} does not work: {error}")
        return failed(ME, "kernels", broken, "install another build of torch: pip install --force-reinstall torch")
    wheel = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    return ok(ME, "kernels", f"{found}; torch {wheel}")


def memory() -> Finding:
    import psutil

    found = psutil.virtual_memory()
    text = f"{_gb(found.available)} of {_gb(found.total)} available"
    if found.available < LITTLE_MEMORY:
        return warning(ME, "memory", text, "end other programs; a local cluster takes 2 GB and more")
    return ok(ME, "memory", text)


def descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_limit(soft)} open files, {_limit(hard)} at most"
    if hard != resource.RLIM_INFINITY and hard < FEW_DESCRIPTORS:
        return warning(
            ME, "open files", text, f"raise the hard limit above {FEW_DESCRIPTORS} where servers run (LimitNOFILE)"
        )
    return ok(ME, "open files", text)


def _limit(value: int) -> str:
    return "any number of" if value == resource.RLIM_INFINITY else f"{value:,}"


def directory(subject: str, check: str, path: Path, private: bool = True) -> Iterator[Finding]:
    """May files be written there, may others read them, and for how many is there space?"""
    standing = next((place for place in (path, *path.parents) if place.exists()), Path("/"))
    try:
        if not standing.is_dir():
            raise StorageError(f"{standing} is no directory")
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        yield failed(
            subject, check, StorageError(f"{path}: {error.strerror or error}"), f"make {standing} writable by this user"
        )
        return
    except DittoError as error:
        yield failed(subject, check, error, "name another directory")
        return
    if standing != path:
        yield ok(subject, check, f"{path} does not exist yet; it can be made")
    elif private and (mode := path.stat().st_mode) & 0o077:
        yield warning(
            subject, check, f"{path}: others of this machine may look in ({mode & 0o777:03o})", f"chmod 700 {path}"
        )
    else:
        yield ok(subject, check, f"{path}: writable")
    yield _disk(subject, standing)


def _disk(subject: str, path: Path) -> Finding:
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        return warning(subject, "disk", f"{path}: {error.strerror or error}", "look at the file system")
    text = f"{_gb(usage.free)} free of {_gb(usage.total)} at {path}"
    if usage.free < NO_DISK:
        return failed(subject, "disk", StorageError(text), "free some space: nothing can be imported or shared")
    if usage.free < LITTLE_DISK:
        return warning(subject, "disk", text, "free some space: a model takes up to 1 GB here and at each party")
    return ok(subject, "disk", text)


def _gb(size: float) -> str:
    return f"{size / (1 << 30):.1f} GB"
