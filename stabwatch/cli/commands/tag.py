"""`stabwatch tag`: name, tags and notes of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from stabwatch.cli.arguments import RunArgument
from stabwatch.errors import RunLogError


def tag(
    run: RunArgument,
    add: Annotated[list[str] | None, typer.Option("--add", help="A tag to add; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A tag to remove; may be repeated.")] = None,
    note: Annotated[str | None, typer.Option("--note", help="The notes; '' for none.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What people call the run; '' for no name.")] = None,
) -> None:
    """Show or change the name, the tags and the notes of a run.

    Several tags may be separated by commas. They are kept in RUN/labels.json; the log itself stays as it is, so a run
    may be tagged while it goes on.
    """
    from stabwatch.cli.render.text import clean
    from stabwatch.runlog import find_run
    from stabwatch.runlog.labels import changed_labels, labels_of, write_labels
    from stabwatch.runlog.reader import read_meta

    path = find_run(run)
    meta = read_meta(path)
    before = changed_labels(path) or labels_of(meta)
    gone = words(remove)
    unknown = [tag for tag in gone if tag not in before.tags]
    if unknown:
        has = ", ".join(before.tags) or "none"
        raise RunLogError(f"{path} has no tag {', '.join(unknown)}. Its tags: {has}.")
    after = before.changed(add=words(add), remove=gone, name=name, notes=note)
    if after != before:
        write_labels(path, after)
    for title, value in (
        ("run", meta.run),
        ("name", after.name),
        ("tags", ", ".join(after.tags)),
        ("notes", after.notes),
    ):
        print(f"{title:6}{clean(value) or '-'}")


def words(given: list[str] | None) -> list[str]:
    """Tags that were given one by one or separated by commas."""
    return [word.strip() for text in given or () for word in text.split(",") if word.strip()]
