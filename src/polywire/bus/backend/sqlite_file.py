"""One file of the bus in one process: the thread that writes to it, in transactions that many share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import apsw

from polywire.bus.backend.sqlite_lock import FileLock, Process, this_process
from polywire.bus.backend.sqlite_schema import check_place, connect, connect_reader
from polywire.bus.backend.sqlite_wake import Doorbell
from polywire.clock import Clock
from polywire.errors import BackendLost, BackendUnreachable, DeliveryError, SetupError

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that what has no time limit of its own waits for the file."""
CLOSING = 5.0
"""Seconds that closing waits for the file."""
TICK = 0.5
"""Seconds between two looks for what no hint told: the dead, and what came while a hint was lost."""
YIELD = 0.0002
"""Seconds for which the lock is left alone after a commit, where other processes want it too."""
CHECKPOINT = 2000
"""Pages of the write-ahead log after which it is copied into the file."""
FREE = 4096
"""Pages without content that the file keeps for what comes."""
FREED = 256
"""Pages given back at a time."""
PEERS_KNOWN = 1.0
"""Seconds for which the list of those to be told is believed."""

logger = logging.getLogger("polywire.bus.sqlite")


class NotDone(Exception):
    """The transaction was certainly not committed. The text is a reason, for the middle of a sentence."""


class PerhapsDone(Exception):
    """Nobody knows whether the transaction was committed. The text is a reason, for the middle of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOptions:
    """How a file is opened. For tests: a bus is never faster or safer for changing them."""

    vfs: str | None = None
    exclusive: bool = False
    """Keep SQLite's own lock for good, which then needs no shared memory."""
    durable: str = "FULL"
    """`synchronous` for what has to survive a power cut."""


def deadline_in(timeout: float | None) -> float:
    """Of a piece of work that may take *timeout* seconds."""
    return time.monotonic() + (PATIENCE if timeout is None else timeout)


class Transaction:
    """What a piece of work has at hand while it runs."""

    __slots__ = ("_owned", "changed", "connection", "execute", "now")

    def __init__(self, connection: apsw.Connection, now: float) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.now = now
        """Seconds since the epoch, the same for all of the transaction."""
        self.changed: set[str] = set()
        """Channels on which there may be something for those who wait."""
        self._owned: dict[int, bool] = {}

    def first(self, sql: str, arguments: tuple[Any, ...] = ()) -> Any:
        """The first row, or None."""
        return self.execute(sql, arguments).fetchone()

    def rows(self, sql: str, arguments: tuple[Any, ...] = ()) -> list[Any]:
        """All rows, and the statement done."""
        return self.execute(sql, arguments).fetchall()

    def join(self, channel: str, address: str, lease: float) -> int:
        """Enter an owner: whoever holds something in the name of a process that lives. Its number is never reused."""
        me = this_process()
        self.execute(
            "INSERT INTO owner (channel, address, host, pid, started, lease, beat) VALUES (?, ?, ?, ?, ?, ?, 0)",
            (channel, address, me.host, me.pid, me.started, lease),
        )
        return self.connection.last_insert_rowid()

    def leave(self, owner: int) -> None:
        self.execute("DELETE FROM owner WHERE n = ?", (owner,))
        self._owned[owner] = False

    def owns(self, owner: int) -> bool:
        """Whether nobody declared it dead: then all that it took is still its own."""
        found = self._owned.get(owner)
        if found is None:
            found = self._owned[owner] = self.first("SELECT 1 FROM owner WHERE n = ?", (owner,)) is not None
        return found


class Work:
    """Something to do in a transaction: made on a loop, run by the writer, and finished on the loop."""

    durable = True
    """Survives a power cut once it is finished."""
    channel = ""
    """Where it waits when there is nothing for it yet."""
    deadline: float | None = None
    """On the scale of `time.monotonic`: a disk is waited for in real time, whatever clock the bus has."""
    loop: asyncio.AbstractEventLoop | None = None
    """Of whoever waits for it; None for the writer's own."""
    gone = False
    """It need not be done any more. Set by anybody, seen by the writer when it comes to it: too late, perhaps."""
    begun = False
    """In a transaction: from now on it may have been done."""
    told = False
    """Its time was up: whoever waited for it knows."""

    def run(self, tx: Transaction) -> bool:
        """In the writer's thread. Run again from the start after a rollback. False: there was nothing for it; it is run
        again when something comes on its channel."""
        raise NotImplementedError

    def peek(self, connection: apsw.Connection, now: float) -> bool:
        """Whether it is worth running again. Outside of transactions, in the writer's thread."""
        return True

    def finish(self) -> None:
        """It is committed. On the loop."""

    def fail(self, error: Exception) -> None:
        """It is not: NotDone, PerhapsDone, or what `run` raised. On the loop."""


class _Call(Work):
    def __init__(self, function: Callable[[Transaction], Any], durable: bool, future: asyncio.Future[Any]) -> None:
        self._function = function
        self._future = future
        self._result: Any = None
        self.durable = durable

    def run(self, tx: Transaction) -> bool:
        self._result = self._function(tx)
        return True

    def finish(self) -> None:
        if not self._future.done():
            self._future.set_result(self._result)

    def fail(self, error: Exception) -> None:
        if not self._future.done():
            self._future.set_exception(error)


class SharedFile:
    """One file and all that this process does with it, over all queues and logs in it.

    A thread of its own takes all work that waits, does it in one transaction and then tells the loops: the more there
    is to do, the more share the price of a commit. Around each transaction it holds the lock beside the file. It keeps
    the leases of this process alive whatever the loops do, and finds out which other processes died.

    Opened once per path and clock, counted by `open` and `close`. Of no use in a forked child.
    """

    _opened: ClassVar[dict[tuple[str, int], SharedFile]] = {}
    _inherited: ClassVar[set[str]] = set()
    """What the process had open that this one was forked from."""

    @classmethod
    def open(cls, path: str, clock: Clock, options: FileOptions) -> SharedFile:
        """Raises SetupError where no bus can be there. To be followed by `started`."""
        if path in cls._inherited:
            raise _forked(path)
        key = (path, id(clock))
        found = cls._opened.get(key)
        if found is None:
            check_place(path)
            found = cls._opened[key] = cls(path, clock, options)
        found._users += 1
        return found

    def __init__(self, path: str, clock: Clock, options: FileOptions) -> None:
        self.path = path
        self.clock = clock
        self.options = options
        self.connected = False
        self.forked = False
        self.takers: dict[str, Callable[[Transaction, int], None]] = {}
        """By the first letter of a channel: what becomes of the things that an owner leaves behind."""
        self.chores: list[Callable[[Transaction], None]] = []
        """Done with each look for the dead, in a transaction."""
        self._users = 0
        self._closing = False
        self._mutex = threading.Lock()
        self._works: list[Work] = []
        self._watched: set[Work] = set()
        self._timers: dict[asyncio.AbstractEventLoop, tuple[float, asyncio.TimerHandle]] = {}
        self._asleep = False
        self._trouble: str | None = None
        self._waiting_since: float | None = None
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._reader: ThreadPoolExecutor | None = None
        self._reading: apsw.Connection | None = None
        self.writer = _Writer(self)
        self._thread = threading.Thread(target=self.writer.main, name=f"polywire-bus {path}", daemon=True)
        self._thread.start()

    # ---- on a loop ---------------------------------------------------------------------------------------------------

    async def started(self) -> None:
        """Once the file is open. Raises SetupError, BackendUnreachable."""
        await _in_thread(self.writer.opened.wait, PATIENCE)
        if not self.writer.opened.is_set():
            raise BackendUnreachable(
                f"The bus at {self.path!r} was not opened within {PATIENCE:g} s: {self.trouble()}."
            )
        if self.writer.refused is not None:
            raise self.writer.refused

    async def close(self) -> None:
        """The last one out stops the thread."""
        self._users -= 1
        if self._users or self.forked:
            return
        self._opened.pop((self.path, id(self.clock)), None)
        self._closing = True
        self.wake()
        await _in_thread(self._thread.join, CLOSING)
        if self._thread.is_alive():
            logger.warning("The bus at %r was left without its last checkpoint: %s.", self.path, self.trouble())
        else:
            self._close_sockets()
        if self._reader is not None:
            await _in_thread(self._close_reader)

    def submit(self, work: Work) -> None:
        """Have it done. Raises SetupError in a forked child, NotDone once closed."""
        self.check_fork()
        if self._closing:
            raise NotDone(self._trouble or "it was closed")
        work.loop = asyncio.get_running_loop()
        with self._mutex:
            self._works.append(work)
            asleep, self._asleep = self._asleep, False
        if asleep:
            self.wake()
        if work.deadline is not None:
            self._watch(work, work.loop, work.deadline)

    def check_fork(self) -> None:
        if self.forked:
            raise _forked(self.path)

    async def do(
        self, function: Callable[[Transaction], T], *, durable: bool = True, timeout: float | None = None
    ) -> T:
        """Run *function* in a transaction. Raises NotDone, PerhapsDone, and what it raises itself."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        work = _Call(function, durable, future)
        work.deadline = deadline_in(timeout)
        self.submit(work)
        try:
            return await future
        except asyncio.CancelledError:
            work.gone = True
            raise

    async def read(self, function: Callable[[apsw.Connection], T]) -> T:
        """Run *function* on a connection that only reads, beside the writer. Raises NotDone."""
        self.check_fork()
        if self._closing:
            raise NotDone(self._trouble or "it was closed")
        if self.options.exclusive:
            return await self.do(lambda tx: function(tx.connection), durable=False)
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"polywire-bus-reader {self.path}")
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read, function)

    async def do_or_lose(self, what: str, function: Callable[[Transaction], T]) -> T:
        """As `do`. Raises BackendLost, which begins with *what* was not done."""
        try:
            return await self.do(function)
        except NotDone as error:
            raise BackendLost(f"{what}: {error} ({self.path!r}).") from error
        except PerhapsDone as error:
            raise BackendLost(f"{what}, perhaps: {error} ({self.path!r}). Look before you repeat it.") from error

    async def read_or_lose(self, what: str, function: Callable[[apsw.Connection], T]) -> T:
        """As `read`. Raises BackendLost, which begins with *what* was not done."""
        try:
            return await self.read(function)
        except NotDone as error:
            raise BackendLost(f"{what}: {error} ({self.path!r}).") from error

    def poke(self, channel: str) -> None:
        """Have those who wait on *channel* look again. From any thread."""
        self.writer.poked.append(channel)
        self.wake()

    def trouble(self) -> str:
        """Why it takes so long, for people."""
        since = self._waiting_since
        if since is not None:
            return f"{self.writer.lock.holder()} has held its lock for {time.monotonic() - since:.1f} s"
        return self._trouble or "the disk did not answer"

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_writer.send(b"!")

    def _read(self, function: Callable[[apsw.Connection], T]) -> T:
        try:
            if self._reading is None:
                self._reading = connect_reader(self.path, vfs=self.options.vfs)
            return function(self._reading)
        except apsw.Error as error:
            if self._reading is not None:
                self._reading.close(True)
                self._reading = None
            raise NotDone(_reason(error)) from error

    def _close_sockets(self) -> None:
        self._wake_reader.close()
        self._wake_writer.close()

    def _close_reader(self) -> None:
        def close() -> None:
            if self._reading is not None:
                self._reading.close(True)

        if self._reader is not None:
            self._reader.submit(close).result()
            self._reader.shutdown()

    # ---- time limits -------------------------------------------------------------------------------------------------

    def _watch(self, work: Work, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """One timer per loop, for the next deadline: works come by the thousand and hardly ever run out of time."""
        self._watched.add(work)
        found = self._timers.get(loop)
        if found is None or deadline < found[0]:
            if found is not None:
                found[1].cancel()
            self._set_timer(loop, deadline)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        delay = max(0.0, deadline - time.monotonic())
        self._timers[loop] = (deadline, loop.call_later(delay, self._expire, loop))

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        del self._timers[loop]
        now = time.monotonic()
        mine = [work for work in self._watched if work.loop is loop and work.deadline is not None]
        late = {work for work in mine if work.deadline is not None and work.deadline <= now}
        with self._mutex:
            for work in late:
                work.gone = work.told = True
            self._works = [work for work in self._works if not work.gone]
        self._watched -= late
        why = self.trouble()
        for work in late:
            work.fail(PerhapsDone(why) if work.begun else NotDone(why))
        rest = [work.deadline for work in mine if work.deadline is not None and work not in late]
        if rest:
            self._set_timer(loop, min(rest))

    # ---- from the writer ---------------------------------------------------------------------------------------------

    def take(self) -> list[Work]:
        with self._mutex:
            works, self._works = self._works, []
        return works

    def begin(self, works: list[Work]) -> list[Work]:
        """Those that are still to be done, and from now on may have been."""
        with self._mutex:
            left = [work for work in works if not work.gone]
            for work in left:
                work.begun = True
        return left

    @property
    def has_work(self) -> bool:
        return bool(self._works)

    def put_back(self, works: list[Work]) -> None:
        with self._mutex:
            self._works[:0] = works

    def sleep(self, poller: select.poll, seconds: float | None) -> None:
        """Until there is something to do, at most *seconds*."""
        with self._mutex:
            if self._works or self._closing:
                return
            self._asleep = True
        poller.poll(None if seconds is None else max(0.0, seconds) * 1000)
        self._asleep = False
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(4096)

    def deliver(self, outcomes: list[tuple[Work, Exception | None]]) -> None:
        """Tell the loops, each once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Work, Exception | None]]] = {}
        for work, error in outcomes:
            if work.loop is not None:
                by_loop.setdefault(work.loop, []).append((work, error))
            elif error is not None:
                logger.error("The upkeep of the bus at %r failed: %s.", self.path, error)
        for loop, part in by_loop.items():
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._finish, part)

    def _finish(self, outcomes: list[tuple[Work, Exception | None]]) -> None:
        for work, error in outcomes:
            self._watched.discard(work)
            if work.told:
                continue
            try:
                if error is None:
                    work.finish()
                else:
                    work.fail(error)
            except Exception:  # one of many must not keep the others waiting
                logger.exception("The bus at %r could not tell an outcome.", self.path)

    @property
    def closing(self) -> bool:
        return self._closing

    def broke(self, error: Exception) -> None:
        """The writer itself failed: nothing can be done any more, and nobody is to wait for it."""
        self._closing = True
        self.lost(f"its writer failed with {type(error).__name__}: {error}")
        told = PerhapsDone(self.trouble())
        self.deliver([(work, told) for work in {*self._watched, *self.take(), *self.writer.all_parked()}])

    def waiting(self, since: float | None) -> None:
        self._waiting_since = since

    def lost(self, why: str | None) -> None:
        """Why the file cannot be used at the moment; None once it can."""
        self._trouble = why
        self.connected = why is None

    @property
    def wake_socket(self) -> socket.socket:
        return self._wake_reader

    def _forget(self) -> None:
        """In a forked child: neither the thread nor SQLite's locks came along."""
        self.forked = True
        self.connected = False
        self._close_sockets()
        self.writer.forget()


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _reason(error: BaseException) -> str:
    return f"SQLite said {str(error).rstrip('.')!r}"


def _forked(path: str) -> SetupError:
    # Not even another connection is safe: SQLite believes to have the locks on the file that the parent has.
    return SetupError(
        f"The bus at {path!r} was not used: this process was forked from one that had it open. "
        "Open it after forking, or start processes by 'spawn'."
    )


def _forget_all() -> None:
    for file in SharedFile._opened.values():
        SharedFile._inherited.add(file.path)
        file._forget()
    SharedFile._opened.clear()


os.register_at_fork(after_in_child=_forget_all)


class _Writer:
    """What the thread does. Only `opened`, `refused`, `lock`, `address` and `poked` are looked at by others."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self.opened = threading.Event()
        self.refused: Exception | None = None
        self.lock = FileLock(file.path + "-lock")
        self.poked: deque[str] = deque()
        self.leases: dict[int, float] = {}
        """Owners of this process, and their leases in seconds."""
        self.address = ""
        self._db: apsw.Connection | None = None
        self._bell: Doorbell | None = None
        self._poller = select.poll()
        self._poller.register(file.wake_socket, select.POLLIN)
        self._parked: dict[str, deque[Work]] = {}
        self._synchronous = ""
        self._pages = 0
        self._next_checkpoint = CHECKPOINT
        self._next_tick = 0.0
        self._next_beat = 0.0
        self._seen: dict[int, tuple[int, float]] = {}
        self._swept = 0.0
        self._peers: dict[str, tuple[float, list[str]]] = {}

    # ---- the thread --------------------------------------------------------------------------------------------------

    def main(self) -> None:
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - `started` raises it
            self.refused = error
            self.lock.close()
            self.opened.set()
            return
        self.opened.set()
        try:
            while not self._file.closing:
                self._file.sleep(self._poller, self._nap())
                self._round()
            self._end()
        except Exception as error:
            logger.exception("The writer of the bus at %r ended.", self._file.path)
            self._file.broke(error)
        finally:
            with contextlib.suppress(apsw.Error):
                self._hang_up()
            if self._bell is not None:
                self._bell.close()
            self.lock.close()

    def _open(self) -> None:
        with self._locked():
            self._connect()
        secret = self._connected.execute("SELECT secret FROM file").get
        self._bell = Doorbell(self._file.path, secret)
        self.address = self._bell.name
        if self._bell.socket is not None:
            self._poller.register(self._bell.socket, select.POLLIN)

    def _connect(self) -> None:
        options = self._file.options
        self._db = connect(self._file.path, vfs=options.vfs, exclusive=options.exclusive)
        self._db.set_wal_hook(self._grown)
        self._synchronous = "FULL"
        self._file.lost(None)

    @property
    def _connected(self) -> apsw.Connection:
        assert self._db is not None  # noqa: S101 - it was opened before
        return self._db

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._file.waiting(time.monotonic())
        self.lock.acquire()
        self._file.waiting(None)
        try:
            yield
        finally:
            self.lock.release()

    def _nap(self) -> float | None:
        if not self.leases and not self._parked:
            return None
        return min(self._next_tick, self._next_beat if self.leases else self._next_tick) - time.monotonic()

    def _round(self) -> None:
        """One transaction, where there is anything to do."""
        channels = self._worth_a_look()
        upkeep = self._upkeep()
        if not channels and not upkeep and not self._file.has_work:
            return
        changed: set[str] = set()
        with self._locked():
            if self._db is None and not self._reopen():
                return
            works = self._file.take()
            changed = self._commit([*works, *upkeep], channels)
            self._checkpoint()
        self._tell(changed)
        if self.lock.shared:
            # The lock is not fair: without this pause, whoever just had it would have it again.
            time.sleep(YIELD)

    def _end(self) -> None:
        """The last works, and a checkpoint."""
        with self._locked():
            if self._db is not None:
                self._commit(self._file.take(), set())
                self._next_checkpoint = 0
                self._checkpoint()
            self._hang_up()
        self._file.deliver([(work, NotDone("it was closed")) for work in self.all_parked()])

    def _hang_up(self) -> None:
        if self._db is not None:
            self._db.close(True)
            self._db = None

    def all_parked(self) -> list[Work]:
        return [work for waiting in self._parked.values() for work in waiting]

    def forget(self) -> None:
        self.lock.close()
        if self._bell is not None:
            self._bell.drop()

    # ---- transactions ------------------------------------------------------------------------------------------------

    def _commit(self, works: list[Work], channels: set[str], alone: bool = False) -> set[str]:
        """Do all of them, in one transaction or none. Returns the channels on which there is something new."""
        if not works and not channels:
            return set()
        tx = Transaction(self._connected, self._file.clock.time())
        try:
            self._begin(any(work.durable for work in works))
        except apsw.BusyError:
            # Those who wait have their own time limits.
            self._file.lost("another program writes to it")
            self._file.put_back([work for work in works if work.loop is not None])
            return set()
        except apsw.Error as error:
            self._give_up(works, NotDone(_reason(error)), error)
            return set()
        works = self._file.begin(works)
        try:
            parked = [work for work in works if not work.run(tx)]
            # What came later in the same transaction may be what it waits for.
            parked = [work for work in parked if work.channel not in tx.changed or not work.run(tx)]
            served = [] if alone else self._serve(tx, channels | tx.changed)
        except Exception as error:  # noqa: BLE001 - goes to whoever caused it
            return self._undo(works, error, alone)
        try:
            tx.execute("COMMIT")
        except apsw.FullError as error:
            self._roll_back()
            self._file.deliver([(work, NotDone(_reason(error))) for work in works])
            return set()
        except apsw.Error as error:
            self._give_up(works, PerhapsDone(_reason(error)), error)
            return set()
        if not self._file.connected:
            self._file.lost(None)
        self._committed(works, parked, served)
        return tx.changed

    def _begin(self, durable: bool) -> None:
        wanted = self._file.options.durable if durable else "NORMAL"
        if wanted != self._synchronous:
            self._connected.execute(f"PRAGMA synchronous = {wanted}")
            self._synchronous = wanted
        self._connected.execute("BEGIN IMMEDIATE")

    def _serve(self, tx: Transaction, channels: set[str]) -> list[Work]:
        """Run those again who wait on these channels, until there is nothing left for them."""
        served: list[Work] = []
        for channel in channels:
            for work in self._parked.get(channel, ()):
                if work.gone:
                    continue
                if work.run(tx):
                    served.append(work)
        return served

    def _committed(self, works: list[Work], parked: list[Work], served: list[Work]) -> None:
        waits = set(parked)
        for work in served:
            self._parked[work.channel].remove(work)
        for work in parked:
            self._parked.setdefault(work.channel, deque()).append(work)
        done: list[tuple[Work, Exception | None]] = [(work, None) for work in works if work not in waits]
        done += [(work, None) for work in served]
        if done:
            self._file.deliver(done)

    def _undo(self, works: list[Work], error: Exception, alone: bool) -> set[str]:
        """Something failed before the commit: do each alone, so that one does not spoil the others' work."""
        if isinstance(error, apsw.IOError | apsw.CorruptError | apsw.NotADBError):
            self._give_up(works, NotDone(_reason(error)), error)
            return set()
        self._roll_back()
        if not alone:
            changed: set[str] = set()
            for work in works:
                changed |= self._commit([work], set(), alone=True)
            self.poked.extend(changed)
            if not works:
                logger.error("The bus at %r could not serve those who wait.", self._file.path, exc_info=error)
            return changed
        told = NotDone(_reason(error)) if isinstance(error, apsw.Error) else error
        self._file.deliver([(work, told) for work in works])
        return set()

    def _roll_back(self) -> None:
        if self._connected.in_transaction:
            self._connected.execute("ROLLBACK")

    def _give_up(self, works: list[Work], told: Exception, error: apsw.Error) -> None:
        """The file failed us: tell everybody, and begin with a new connection."""
        logger.error("The bus at %r failed and is opened again: %s.", self._file.path, error)
        self._file.lost(_reason(error))
        self._file.deliver([(work, told) for work in works])
        with contextlib.suppress(apsw.Error):
            self._hang_up()
        self._db = None
        self._reopen()

    def _reopen(self) -> bool:
        try:
            self._connect()
        except (DeliveryError, SetupError) as error:
            self._file.lost(str(error).rstrip("."))
            self._next_tick = time.monotonic() + TICK
            time.sleep(YIELD)
            return False
        return True

    # ---- the write-ahead log -----------------------------------------------------------------------------------------

    def _grown(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Copy the log into the file, as far as no reader needs it."""
        if self._pages < self._next_checkpoint or self._db is None:
            return
        try:
            total, copied = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:
            total, copied = self._pages, 0
        except apsw.Error as error:
            self._give_up([], NotDone(_reason(error)), error)
            return
        self._next_checkpoint = CHECKPOINT if copied >= total else total + CHECKPOINT

    # ---- those who wait ----------------------------------------------------------------------------------------------

    def _worth_a_look(self) -> set[str]:
        """Channels where somebody of ours waits and something may have come."""
        hinted = self._bell.heard() if self._bell is not None else set()
        while self.poked:
            hinted.add(self.poked.popleft())
        if time.monotonic() >= self._next_tick:
            hinted.update(self._parked)
        return {channel for channel in hinted if channel in self._parked and self._has_some(channel)}

    def _has_some(self, channel: str) -> bool:
        waiting = self._parked[channel]
        while waiting and waiting[0].gone:
            waiting.popleft()
        if not waiting:
            del self._parked[channel]
            return False
        try:
            return self._db is None or waiting[0].peek(self._db, self._file.clock.time())
        except apsw.Error:
            # The transaction will find out what is wrong.
            return True

    def _tell(self, channels: set[str]) -> None:
        if self._bell is None or self._db is None:
            return
        for channel in channels:
            self._bell.ring(self._peers_of(channel), channel)

    def _peers_of(self, channel: str) -> list[str]:
        now = time.monotonic()
        known = self._peers.get(channel)
        if known is None or known[0] < now:
            rows = self._connected.execute("SELECT DISTINCT address FROM owner WHERE channel = ?", (channel,))
            known = (now + PEERS_KNOWN, [address for (address,) in rows if address != self.address])
            self._peers[channel] = known
        return known[1]

    # ---- the living and the dead -------------------------------------------------------------------------------------

    def _upkeep(self) -> list[Work]:
        """What is to be done now and then, in the next transaction."""
        now = time.monotonic()
        found: list[Work] = []
        if self.leases and now >= self._next_beat:
            self._next_beat = now + min(TICK * 4, min(tuple(self.leases.values())) / 4)
            found.append(_Chore(self._beat))
        if now >= self._next_tick:
            self._next_tick = now + TICK
            found += [_Chore(chore) for chore in (*self._file.chores, self._shrink)]
            found += [_Burial(self, owner, beat) for owner, beat in self._dead()]
        return found

    def _beat(self, tx: Transaction) -> None:
        for owner in tuple(self.leases):
            tx.execute("UPDATE owner SET beat = beat + 1 WHERE n = ?", (owner,))

    def _shrink(self, tx: Transaction) -> None:
        """Give some room back to the disk, once there is much that nobody needs."""
        if tx.connection.pragma("freelist_count") > FREE:
            tx.execute(f"PRAGMA incremental_vacuum({FREED})").fetchall()

    def _dead(self) -> list[tuple[int, int]]:
        """Owners whose process ended, or whose lease ran out, with the last sign of life they gave.

        A lease is measured by our own clock, from when we first saw the last sign: no two machines' clocks are
        compared, and none is believed to run evenly. Where we ourselves were away, it begins anew: perhaps all were.
        """
        now = self._file.clock.monotonic()
        if time.monotonic() - self._swept > 4 * TICK:
            self._seen.clear()
        self._swept = time.monotonic()
        seen: dict[int, tuple[int, float]] = {}
        dead: list[tuple[int, int]] = []
        for n, host, pid, started, lease, beat in self._others():
            last, since = self._seen.get(n, (-1, now))
            seen[n] = (beat, since if last == beat else now)
            if Process(host, pid, started).is_gone() or now - seen[n][1] >= lease:
                dead.append((n, beat))
        self._seen = seen
        return dead

    def _others(self) -> list[Any]:
        if self._db is None or not self._file.takers:
            return []
        letters = "".join(self._file.takers)
        try:
            return self._db.execute(
                """SELECT n, host, pid, started, lease, beat FROM owner
                WHERE address <> ? AND instr(?, substr(channel, 1, 1))""",
                (self.address, letters),
            ).fetchall()
        except apsw.Error as error:
            logger.warning("The bus at %r could not look for dead processes: %s.", self._file.path, error)
            return []

    def take_from(self, tx: Transaction, owner: int, beat: int) -> None:
        """Give to others what a dead owner held, unless it just gave a sign of life."""
        row = tx.first("SELECT channel FROM owner WHERE n = ? AND beat = ?", (owner, beat))
        if row is not None:
            self._file.takers[row[0][0]](tx, owner)
            tx.leave(owner)
            tx.changed.add(row[0])


class _Chore(Work):
    durable = False

    def __init__(self, function: Callable[[Transaction], None]) -> None:
        self._function = function

    def run(self, tx: Transaction) -> bool:
        self._function(tx)
        return True


class _Burial(Work):
    durable = False

    def __init__(self, writer: _Writer, owner: int, beat: int) -> None:
        self._writer = writer
        self._owner = owner
        self._beat = beat

    def run(self, tx: Transaction) -> bool:
        self._writer.take_from(tx, self._owner, self._beat)
        return True
