"""Who may write: a lock between processes, which the system frees whatever becomes of its owner."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from lora.durable import naming


def try_lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; False if another process has it.

    Network drives exist that know no locks, and say so in many ways. There each process believes
    that it is alone, since nobody could work at all otherwise.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def lock_file(path: Path) -> TextIO:
    """Makes a file, locks it until it is closed, and writes down in it who has it.

    Raises:
        ValueError: naming the process that has it already, or what stands in its place.
        OSError: if it cannot be opened or written.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is no file of ours; remove it")
    with naming(path):
        file = path.open("a+", encoding="utf-8", errors="replace")
    if not try_lock(file.fileno()):
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"{path.parent} is in use by {owner}; wait for it, or choose another --output"
        )
    with naming(path):
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
    return file
