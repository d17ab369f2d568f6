"""What a name is turned into: a local folder of files, or one line that says why not.

Apart from data/download.py, since the Hub's client takes a quarter of a second to import, for which
nobody who names a local folder should wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class HubError(ValueError):
    """A name that could not be turned into files: one line with what is wrong and what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A local folder of files that belong together.

    Attributes:
        path: the folder.
        name: what the user wrote, without a revision.
        revision: the commit on the Hub, 40 hex digits; None for a local folder and the demo.
    """

    path: Path
    name: str
    revision: str | None

    @property
    def public_name(self) -> str:
        """The name to publish: an id, or of a local folder its last part only."""
        return self.name if self.revision else self.path.resolve().name
