r"""Files that appear whole or not at all, under names that stay where they belong.

A file is written beside its place, as .NAME.WRITER.tmp, forced to the disk, and then takes the name at once; last the folder, which holds
the name, is forced to the disk. A process that is killed, a machine that fails or a disk that is full at any moment of this leaves the
file as it was, or the new one. A writer holds a lock on its temporary file: what has none was left by one that was killed, and ``sweep``
removes it. Writers of one file do not meet; the last one stays.

Everything in the library that writes goes through ``write``, but for what is too large for memory (``chunks``).
"""
from __future__ import annotations

import contextlib
import glob
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def write(path: str | os.PathLike[str], content: str | bytes | bytearray | Callable[[IO[bytes]], Any]) -> None:
    """The file whole or not at all: text (UTF-8), bytes, or a function that writes into an open binary file. OSError, with the file's
    name, where it cannot be written; it is then as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.tmp")
    with naming(path, "it is as it was"):
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb") as file:         # x: never through a link that lies there
                locked(file)
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def keep(path: str | os.PathLike[str], second: str | os.PathLike[str]) -> None:
    """The file under a second name as well, in the same folder, in place of what had it; the first never goes missing."""
    path, second = Path(path), Path(second)
    temporary = second.with_name(f".{second.name}.{threading.get_native_id()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        rename(temporary, second)
    except OSError:                                     # a file system without links
        write(second, path.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)               # two names of one file are not renamed to each other


def sweep(folder: str | os.PathLike[str], name: str = "") -> None:
    """Remove what killed writers left in a folder: of the file of that name, or of all."""
    for stray in Path(folder).glob(f".{glob.escape(name) or '*'}.[0-9]*.tmp"):
        with contextlib.suppress(OSError), open(stray, "rb") as file:
            if locked(file):
                stray.unlink()


def locked(file: IO[bytes]) -> bool:
    """Lock an open file for this process until it is closed, where the system can; False where another has it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:                                     # a file system without locks
        return True
    return True


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """An OSError of the block names the file, and says what was not lost."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; {what}", str(path)) from error


def rename(temporary: Path, path: Path) -> None:
    """A finished file takes its name at once, in place of what had it, and the name reaches the disk."""
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# -- names ------------------------------------------------------------------------------------------------------------------------
def component(text: str) -> str:
    """A text as the name of a file: its letters, digits and _.,=+- ; a dash for whatever else there is and for a dot that leads."""
    return re.sub(r"^\.|[^\w.,=+-]", "-", text) or "-"


def inside(folder: str | os.PathLike[str], *names: str) -> Path:
    """The path of a file in a folder, by ``component`` of each name. ValueError where a link on the way leads out of the folder."""
    path = Path(folder, *map(component, names))
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"'{path}' leads to '{path.resolve()}', out of '{folder}'; expected no link out of it.")
    return path


def named(argument: str, path: str | os.PathLike[str]) -> Path:
    """A path that a user gave. TypeError where it is none, ValueError where it holds a control character."""
    if not isinstance(path, (str, os.PathLike)) or isinstance(path, bytes):
        raise TypeError(f"{argument}={path!r}: expected a path such as 'runs/moons'.")
    if path == "":
        raise ValueError(f"{argument}='': expected a path such as 'runs/moons'; '.' is the current folder.")
    if re.search(r"[\x00-\x1f\x7f]", str(path)):
        raise ValueError(f"{argument}={str(path)!r}: expected a path without control characters.")
    return Path(path)
