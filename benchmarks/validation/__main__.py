"""Runs the validations; see the package."""

from __future__ import annotations

import argparse
import datetime
import importlib
import pkgutil
import re
import time
from pathlib import Path

import torch

from benchmarks import validation
from benchmarks.report import machine

PAGE = Path(__file__).parents[2] / "docs" / "validation.md"
NAMES = tuple(sorted(m.name for m in pkgutil.iter_modules(validation.__path__) if m.name != "__main__"))
HEAD = """# Do the signals mean what their papers say?

`python -m benchmarks.validation --write`, {date}, {machine}, one thread, {seconds:.0f} s in all; a section that was run again since
has its own date. The experiments are small: minutes on two cores, fixed seeds. What does not show at this scale is said to, and is no verdict on the paper.
"""


def section(name: str) -> str:
    """One experiment as a Markdown section."""
    module = importlib.import_module(f"benchmarks.validation.{name}")
    began = time.perf_counter()
    found = module.main()
    seconds = time.perf_counter() - began
    return (
        f"## {module.TITLE}\n\n**Claim.** {module.CLAIM}\n\n**Here.** {module.SETUP}\n\n{found}\n\n"
        f"`python -m benchmarks.validation {name}`, {datetime.date.today()}, {seconds:.0f} s.\n"
    )


def replaced(page: str, new: str) -> str:
    """The page with the section of the same title as `new` in the place of the old one."""
    title = new.splitlines()[0]
    parts = re.split(r"(?m)^(?=## )", page)
    found = [i for i, part in enumerate(parts) if part.splitlines()[0] == title]
    if not found:
        raise SystemExit(f"{PAGE} has no section {title[3:]!r}: write the whole page first, with --write and no name.")
    parts[found[0]] = new + ("\n" if found[0] < len(parts) - 1 else "")
    return "".join(parts)


def main(argv: list[str] | None = None) -> int:
    """Run what is named, or all."""
    parser = argparse.ArgumentParser(
        description=validation.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--write", action="store_true", help=f"write into {PAGE.name} what was run")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    torch.set_num_threads(1)  # the models are small
    began = time.perf_counter()
    sections = []
    for name in options.names or NAMES:
        sections.append(section(name))
        print(sections[-1], flush=True)
    if options.write and options.names:
        page = PAGE.read_text(encoding="utf-8")
        for text in sections:
            page = replaced(page, text)
        PAGE.write_text(page, encoding="utf-8")
    elif options.write:
        head = HEAD.format(date=datetime.date.today(), machine=machine(), seconds=time.perf_counter() - began)
        PAGE.write_text("\n".join([head, *sections]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
