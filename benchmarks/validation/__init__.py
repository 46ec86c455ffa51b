"""Does each signal mean what its paper says? One script per claim: a small experiment, the paper's figure beside ours.

    python -m benchmarks.validation                    all of them, printed
    python -m benchmarks.validation ghosts shesha      some
    python -m benchmarks.validation --write            all of them, into docs/validation.md

Each module has `TITLE`, `CLAIM` (what the paper says, and which), `SETUP`, and `main() -> str`: tables and a verdict.
"""
