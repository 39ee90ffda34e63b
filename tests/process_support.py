"""Commands that tests run."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from pathlib import Path


async def output_of(
    *command: str, given: bytes | None = None, cwd: Path | None = None, env: dict[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Exit status, standard output and standard error of *command*, which gets *given*; it is gone at the end, even
    where its test gives up waiting."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        out, err = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode is not None
    return process.returncode, out, err
