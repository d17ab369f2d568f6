"""Who may write: a lock that a process has as long as it lives, however it ends."""

from __future__ import annotations

import errno
import fcntl

NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS)


def try_lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; False if another process has it.

    Where a network drive knows no locks, each process believes that it is alone.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
