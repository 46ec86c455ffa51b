"""Which column counts the rows of tables in free text."""

from __future__ import annotations

from stabwatch.analysis.readers.names import step_rank


class RowCounts:
    """The key that counts the rows; the first of them may be cut above a better one."""

    def __init__(self) -> None:
        self._key = ""
        self._beside: set[str] = set()
        """Other counts in rows that have it."""

    def of(self, row: dict[str, float], counted: bool) -> tuple[str | None, dict[str, float]]:
        """The key of a row, None if it has none, and the row. counted: whether a row before it had a step.

        A table without the count of the others, but with one beside it, as of an evaluation, belongs to the row before.
        """
        keys = sorted((key for key in row if step_rank(key) is not None), key=lambda key: step_rank(key) or 0)
        if self._key in row:
            self._beside |= set(keys)
            return self._key, row
        if counted and keys and keys[0] in self._beside:
            return None, {key: value for key, value in row.items() if key not in self._beside}
        return (keys[0] if keys else None), row

    def counts(self, key: str) -> None:
        """This key counted a row."""
        self._key = key
