"""Files that are whole at any time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat

_parts: set[str] = set()  # part files that this process is writing


def write(path: str, content: bytes) -> None:
    """Beside the target, synced, renamed: the target is the old file or the new one, never a part."""
    target = target_of(path)
    folder, name = os.path.split(target)
    start = part_start(name)
    _remove_stale(folder, start)
    part = os.path.join(folder, f"{start}{os.getpid()}-{secrets.token_hex(4)}.part")
    _parts.add(part)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(descriptor, "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), os.stat(target).st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(error.errno, error.strerror, path) from None  # not the part's name
        raise
    finally:
        _parts.discard(part)
    with contextlib.suppress(OSError):  # not to be read, or not to be synced
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def target_of(path: str) -> str:
    """The file to replace; OSError where something else is there. A link stays a link."""
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "expected the path of a file, got a directory", path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "expected the path of a regular file, got another kind", path)
    return target


def part_start(name: str) -> str:
    """With what the part files of one target begin, from any process of this machine."""
    told = os.fsencode(f"{os.uname().nodename}/{name}")
    return f".{name[:30]}.{hashlib.sha256(told).hexdigest()[:16]}."


def _remove_stale(folder: str, start: str) -> None:
    """Removes what saves of the same file left that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            pid = name.removeprefix(start).partition("-")[0]
            if not (name.startswith(start) and name.endswith(".part") and pid.isdecimal()):
                continue
            path = os.path.join(folder, name)
            if not (path in _parts if int(pid) == os.getpid() else _alive(int(pid))):
                os.unlink(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
