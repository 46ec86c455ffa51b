"""`tyro.cli`: the arguments as they are by default, less what TYRO says ('name=value name=value')."""

import os


def cli(arguments):
    found = arguments()
    for pair in os.environ.get("TYRO", "").split():
        name, value = pair.split("=")
        kind = type(getattr(found, name))
        setattr(found, name, kind(float(value)) if kind in (int, float) else value)
    return found
