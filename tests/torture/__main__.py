"""Kills workers and servers of the bus under load and checks that nothing was lost.

`python -m tests.torture` runs all three backends for about a quarter of an hour and writes the table into
benchmarks/results; `python -m tests.torture sqlite --kills 50` runs one, with fewer kills, and writes nothing. The exit
status is 1 where something is not as promised, and what the run left behind is kept then.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from servers.base import Server, ServerError
from tests.torture.checking import problems
from tests.torture.report import row, table, write
from tests.torture.running import Run, killing_server, killing_workers
from tests.torture.stage import Stage, kafka_stage, rabbitmq_stage, server_of, sqlite_stage

KILLS = {"sqlite": 1000, "rabbitmq": 5, "kafka": 5}
"""Of workers, and of servers."""
WORKERS = {"sqlite": 4, "rabbitmq": 3, "kafka": 3}
DEADLY_EVERY = 5000
STAGES = {"rabbitmq": rabbitmq_stage, "kafka": kafka_stage}


def main() -> int:
    options = _options()
    rows: list[dict[str, Any]] = []
    for backend in options.backends or KILLS:
        rows.append(_tortured(backend, options))
        sys.stdout.write(f"\n{table(rows[-1:])}")
        for sentence in rows[-1]["wrong"]:
            sys.stdout.write(f"  {sentence}\n")
    write([each for each in rows if options.kills in (None, KILLS[each["backend"]])])
    return int(any(each["wrong"] for each in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.torture", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("backends", nargs="*", choices=[[], *KILLS], help="all of them where none is named")
    parser.add_argument("--kills", type=int, help="of workers on sqlite, of the server elsewhere; no table is written")
    parser.add_argument("--workers", type=int, help="at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep what the runs leave behind in any case")
    return parser.parse_args()


def _tortured(backend: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one run."""
    directory = Path(tempfile.mkdtemp(prefix=f"polywire-torture-{backend}-"))
    sys.stdout.write(f"{backend} in {directory} ...\n")
    sys.stdout.flush()
    server = server_of(backend)
    try:
        if server is not None and (missing := server.missing()) is not None:
            raise ServerError(f"{missing} is not installed (python -m servers install {backend})")
        result = asyncio.run(_run(backend, server, directory, options))
    finally:
        if server is not None:
            server.kill()
            server.stop()
    if not result["wrong"] and not options.keep:
        shutil.rmtree(directory)
    return result


async def _run(backend: str, server: Server | None, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    kills = KILLS[backend] if options.kills is None else options.kills
    stage: Stage
    if server is None:
        stage, trouble = sqlite_stage(directory), killing_workers(kills)
    else:
        place = directory / "server"
        stage = STAGES[backend](await asyncio.to_thread(server.start, place))
        trouble = killing_server(server, place, kills)
    workers = options.workers or WORKERS[backend]
    run = Run(stage, directory, workers=workers, seed=options.seed, deadly_every=DEADLY_EVERY)
    found = await run.through(trouble)
    return row(run, found, problems(found))


if __name__ == "__main__":
    sys.exit(main())
