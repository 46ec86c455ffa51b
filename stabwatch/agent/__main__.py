"""python -m stabwatch.agent RUN_DIR, which a training process starts. It uses argparse for a fast start."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from stabwatch.agent.service import serve
from stabwatch.errors import StabwatchError
from stabwatch.exporters.cardinality import CARDINALITIES, WORST
from stabwatch.exporters.latest import MAX_SERIES

PASSWORD = "STABWATCH_PASSWORD"


def main(arguments: list[str] | None = None) -> int:
    """Serve. Returns 2, with one line on standard error, when it cannot."""
    given = _parser().parse_args(arguments)
    try:
        return serve(
            given.run_dir,
            host=given.host,
            port=given.port,
            linger=given.linger,
            file_sd=given.file_sd,
            certfile=given.certfile,
            keyfile=given.keyfile,
            username=given.username,
            password=os.environ.get(PASSWORD),
            rules=given.rules,
            cardinality=given.cardinality,
            worst=given.worst,
            max_series=given.max_series,
            sinks=given.sink,
            external_url=given.external_url,
            summary=given.summary,
        )
    except StabwatchError as error:
        print(f"stabwatch agent: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stabwatch.agent", description="Serve a stabwatch run.")
    parser.add_argument("run_dir", type=Path, help="run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network")
    parser.add_argument("--port", type=int, default=9478, help="port; if it is taken, the next free one; 0 for any")
    parser.add_argument("--linger", type=float, default=60.0, help="seconds to keep serving after the run has ended")
    parser.add_argument("--file-sd", type=Path, help="folder for the Prometheus target file (RUN_DIR/../targets)")
    parser.add_argument("--certfile", type=Path, help="TLS certificate (PEM)")
    parser.add_argument("--keyfile", type=Path, help="its private key (PEM)")
    parser.add_argument(
        "--username", help=f"user name of the login; {PASSWORD} in the environment has its password and turns it on"
    )
    parser.add_argument("--rules", type=Path, help="YAML file that changes, mutes or adds rules")
    parser.add_argument("--cardinality", choices=CARDINALITIES, default="layer", help="series on /metrics")
    parser.add_argument(
        "--worst", type=int, default=WORST, help="layers exported individually with --cardinality run or block"
    )
    parser.add_argument(
        "--max-series", type=int, default=MAX_SERIES, help="limit of series; those above it are left out and counted"
    )
    parser.add_argument("--sink", action="append", default=[], help="a live sink, such as otlp; may be repeated")
    parser.add_argument("--external-url", help="address of the page for others, for links in notifications")
    parser.add_argument("--summary", action="store_true", help="notify of the end of the run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
