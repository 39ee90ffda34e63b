"""The `.proto` files that are committed in git, and what the contracts of a system would be exported as now."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from polywire.cli.protoc import compile_protos, package_of, root_of
from polywire.cli.targets import Found
from polywire.contract.breaking import Contracts, contracts_of_files, contracts_of_services
from polywire.errors import ContractError, SetupError
from polywire.system.file import load
from polywire.system.plan import catalogue

MAX_FILES = 2000
MAX_BYTES = 32 * 1024 * 1024
"""Of all committed `.proto` files together."""
_TIMEOUT = 60.0


def exported_contracts(modules: Sequence[str], *, file: str | None, profile: str | None) -> tuple[Contracts, Path]:
    """What `polywire contract export` would write now, of *modules*, or of those that declare the contracts of the
    system's services; and the directory whose repository is meant. Raises SetupError.
    """
    if modules:
        return _exported(modules), Path.cwd()
    system = load(file, profile=profile)
    owned = [contract for contract, owner in catalogue(system).values() if owner]
    if not owned:
        raise SetupError(f"No service of {system.file} implements a contract, so there is nothing to compare.")
    modules = list(dict.fromkeys(contract.__module__ for contract in owned))
    try:
        return _exported(modules), system.directory
    except ContractError as error:
        raise SetupError(
            f"The contracts of {system.file} cannot be exported together. {error} Or say whose files are committed: "
            f"polywire contract check --committed {' '.join(modules)}."
        ) from error


def _exported(modules: Sequence[str]) -> Contracts:
    found = Found("compared")
    for module in modules:
        found.add(module)
    return contracts_of_services(found.services, found.messages, found.enums)


def committed_contracts(
    exported: Contracts, directory: Path, *, ref: str, protos: Path | None, include: Sequence[Path]
) -> Contracts:
    """The files below *directory*, or below *protos*, as they are in *ref*.

    Without *protos* those count whose package is one of *exported*. Raises SetupError where git is not there, knows no
    such commit, or has no such file.
    """
    place = directory if protos is None else protos
    if not place.is_dir():
        raise SetupError(f"{place}, given with --protos, is no directory.")
    repository = _Repository(place, ref)
    packages = {file.package for file in exported.index.files.values()}
    with tempfile.TemporaryDirectory() as copy:
        paths = repository.copy_to(Path(copy))
        meant = [path for path in paths if protos is not None or package_of(path) in packages]
        if not meant:
            raise _nothing(place, ref, packages, any_file=bool(paths))
        roots = [root_of(path) for path in meant]
        try:
            compiled, names = compile_protos(meant, [*dict.fromkeys(roots), *include], done="compared")
            return contracts_of_files(compiled, names)
        except SetupError as error:
            # By the names that the files have in git, not by those of the copy.
            said = str(error).replace(f"{Path(copy).resolve()}/", "").replace(f"{copy}/", "")
            raise SetupError(f"In {ref}, {said}") from error


def _nothing(place: Path, ref: str, packages: set[str], *, any_file: bool) -> SetupError:
    listed = ", ".join(repr(package) for package in sorted(packages))
    missing = f"of package {listed}" if any_file else "at all"
    return SetupError(
        f"Nothing was compared: {ref} has no .proto file {missing} in {place}. Write them with "
        "`polywire contract export MODULE --out protos` and commit them; from then on they are guarded."
    )


@dataclass(frozen=True, slots=True)
class _Blob:
    path: PurePosixPath
    """Relative to the directory that was asked for."""
    size: int
    digest: str


class _Repository:
    """The git repository around a directory, at one commit. Raises SetupError where there is none."""

    def __init__(self, directory: Path, ref: str) -> None:
        self._directory, self._ref = directory, ref
        self._git("rev-parse", "--show-toplevel", why="it is in no git repository")
        commit = f"{ref}^{{commit}}"
        # Options are over: a name that begins with a dash is a name.
        said = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", commit, why=self._no_commit())
        self._commit = said.decode().strip()

    def _no_commit(self) -> str:
        if self._ref == "HEAD":
            return "its repository has no commit yet. Commit the .proto files first"
        return f"its repository has no commit {self._ref!r}. Fetch it, or name another with --ref"

    def copy_to(self, copy: Path) -> list[Path]:
        """Write every .proto file below the directory into *copy*; returns where they are now."""
        blobs = list(self._blobs())
        size = sum(blob.size for blob in blobs)
        if len(blobs) > MAX_FILES or size > MAX_BYTES:
            raise SetupError(
                f"{self._directory} was not compared: {self._ref} has {len(blobs)} .proto files of {size} bytes there, "
                f"and {MAX_FILES} of {MAX_BYTES} bytes can be compared. Say which are meant with --protos."
            )
        if not blobs:
            return []
        asked = "".join(f"{blob.digest}\n" for blob in blobs).encode()
        said = self._git("cat-file", "--batch", why="git could not read its files", asked=asked)
        paths = []
        for blob in blobs:
            header, _, rest = said.partition(b"\n")
            size = int(header.split()[2])
            path = copy / blob.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rest[:size])
            paths.append(path)
            said = rest[size + 1 :]
        return paths

    def _blobs(self) -> Iterator[_Blob]:
        listed = self._git("ls-tree", "-r", "-l", "-z", self._commit, ".", why="git could not list its files")
        for entry in listed.decode(errors="surrogateescape").split("\0"):
            head, _, name = entry.partition("\t")
            kind = head.split()
            # Links are no files: what they lead to may be anywhere.
            if name.endswith(".proto") and kind[0].startswith("100"):
                yield _Blob(PurePosixPath(name), int(kind[3]), kind[2])

    def _git(self, *arguments: str, why: str, asked: bytes | None = None) -> bytes:
        try:
            ran = subprocess.run(  # noqa: S603  # git itself, and names that it is told not to take for options
                ["git", "-C", str(self._directory), *arguments],  # noqa: S607 - the user's own git
                input=asked,
                stdin=subprocess.DEVNULL if asked is None else None,
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except FileNotFoundError as error:
            raise SetupError(
                f"{self._directory} was not compared with what is committed: git is not installed. "
                "Install it, or compare two versions by name: polywire contract check OLD NEW."
            ) from error
        except subprocess.TimeoutExpired as error:
            raise SetupError(
                f"{self._directory} was not compared with what is committed: git did not answer within {_TIMEOUT:g} s."
            ) from error
        if ran.returncode:
            raise SetupError(f"{self._directory} was not compared with what is committed: {why}.")
        return ran.stdout
