"""Name, tags and notes of a run, by which people find it again.

`attach` writes them into meta.json. A change is kept in labels.json beside it, which then holds all three; meta.json
and the log stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stabwatch.errors import RunLogError
from stabwatch.runlog.atomic import atomic_output
from stabwatch.runlog.plain_file import plain_file
from stabwatch.runlog.schema import META, Meta

LABELS = "labels.json"


@dataclass(frozen=True)
class Labels:
    """name: what people call the run. tags: words, each once. notes: any text."""

    name: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""

    def changed(
        self,
        *,
        add: Iterable[str] = (),
        remove: Iterable[str] = (),
        name: str | None = None,
        notes: str | None = None,
    ) -> Labels:
        """The labels after a change; None leaves the name or the notes."""
        gone = set(remove)
        tags = tuple(tag for tag in dict.fromkeys((*self.tags, *add)) if tag and tag not in gone)
        return Labels(self.name if name is None else name, tags, self.notes if notes is None else notes)

    def into(self, meta: Meta) -> Meta:
        """Metadata with these labels."""
        return replace(meta, name=self.name, tags=list(self.tags), notes=self.notes)


def labels_of(meta: Meta) -> Labels:
    """The labels in metadata; what has another type there is left out."""
    tags = meta.tags if isinstance(meta.tags, list) else []
    return Labels(str(meta.name or ""), tuple(tag for tag in tags if isinstance(tag, str)), str(meta.notes or ""))


def changed_labels(run: Path) -> Labels | None:
    """The labels in labels.json; None if there is none. Raises RunLogError if it cannot be read."""
    path = run / LABELS
    try:
        with open(path, encoding="utf-8", opener=plain_file) as file:
            data = json.load(file)
        return Labels(str(data["name"]), tuple(map(str, data["tags"])), str(data["notes"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunLogError(f"{path} cannot be read: {error!r}. Delete it to have the labels of {META} again.") from error


def write_labels(run: Path, labels: Labels) -> None:
    """Write labels.json, whole or not at all. Raises OSError."""
    with atomic_output(run / LABELS) as draft:
        draft.write_text(json.dumps(asdict(labels), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
