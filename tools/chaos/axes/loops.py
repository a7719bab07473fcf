"""One client object in several event loops, threads and processes, each with a multiplexer of its own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import traceback

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis

from redismpx import Multiplexer
from tests.helpers.loops import LOOPS

from ..scenes import Scene, Witness, admin_of, arrived, require

CHILD_TIMEOUT = 20.0  # seconds
ROUNDS = 30  # messages of each user


class Loops(Scene):
    """One client object for several multiplexers: in two loops one after the other, in the loops of several threads,
    and in a process and its forked children. Each gets its own messages, replies and counts."""

    def set_up(self) -> None:
        self.server = self.start_server()
        self.admin = admin_of(self.server)

    async def play(self) -> None:
        how = self.rng.choice(("one after the other", "threads", "fork"))
        if how == "fork" and not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            how = "threads"  # the child of a running uvloop shares its epoll, and breaks it
        pool = self.rng.choice((ConnectionPool, BlockingConnectionPool))
        self.seen[f"{how}, {pool.__name__}"] += 1
        self.client = Redis(connection_pool=pool.from_url(self.server.url, max_connections=50))
        await self.use("parent", 3)
        # The pool has connections of this loop now; they are of no use in another one.
        await asyncio.gather(*(self.client.set("key", "value") for _ in range(self.rng.choice((1, 10)))))
        if how == "one after the other":
            for number in range(2):
                await self.in_threads([f"thread {number}"])
        elif how == "threads":
            names = [f"thread {number}" for number in range(3)]
            await asyncio.gather(self.use("parent", ROUNDS), self.in_threads(names))
        else:
            await self.fork()
        await self.use("parent again", 3)
        for _ in range(10):
            require(await self.client.get("key") == b"value", "another reply than that of GET")
        await self.client.connection_pool.aclose()

    async def use(self, name: str, rounds: int) -> None:
        """Publish numbers to a subscription, by way of a multiplexer on the client; each arrives, and counts as one."""
        witness = Witness()
        async with self.multiplexer(self.client) as mpx:
            witness.sub = mpx.new_channel_subscription(*witness.callbacks, on_error=witness.on_error)
            witness.sub.add(name)
            await witness.sub.wait_for_activation(timeout=10)
            other = mpx.new_channel_subscription()
            other.add(f"{name} is read")
            await other.wait_for_activation(timeout=10)
            for number in range(rounds):
                count = await mpx.publish(name, b"%d" % number)
                require(count == 1, f"{name}: publish() returned {count!r}, which belongs to somebody else")
                await mpx.publish(f"{name} is read", b"%d" % number)
                message = await other.get(5)
                require(message.data == b"%d" % number, f"{name}: {message} instead of {number}")
            await arrived(lambda: witness.messages == rounds, lambda: f"{name}: {witness.events[-3:]}")
            witness.account(rounds, name)
            require(not witness.disconnects and mpx.stats().connections == 1, f"{name}: a connection was lost")
            witness.closed = True
        require(not witness.faults, f"{name}: {witness.faults[:3]}; its last events: {witness.events[-6:]}")

    async def in_threads(self, names: list[str]) -> None:
        """Use the client in a new loop of a new thread for each name, all at the same time."""
        errors: list[BaseException] = []

        def run(name: str) -> None:
            try:
                self.run_elsewhere(name)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(name,), daemon=True) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            await arrived(lambda thread=thread: not thread.is_alive(), lambda: "a thread hangs")
        if errors:
            raise errors[0]

    def run_elsewhere(self, name: str) -> None:
        """Use the client in a new loop of this thread."""
        kind = self.rng.choice(sorted(LOOPS))
        with asyncio.Runner(loop_factory=LOOPS["asyncio" if name.startswith("child") else kind]) as runner:
            runner.run(self.use(name, ROUNDS))

    async def fork(self) -> None:
        """Use the client in forked children, while the parent uses it too; the parent's objects are not touched."""
        witness = Witness()
        async with self.multiplexer(self.client) as mpx:
            witness.sub = mpx.new_channel_subscription(*witness.callbacks, on_error=witness.on_error)
            witness.sub.add("of the parent")
            await witness.sub.wait_for_activation(timeout=10)
            await mpx.publish("of the parent", b"0")
            children = [self.fork_child(f"child {number}", mpx) for number in range(2)]
            for number in range(1, ROUNDS):
                count = await mpx.publish("of the parent", b"%d" % number)
                require(count == 1, f"the parent's publish() returned {count!r}")
                await asyncio.sleep(0.002)
            for child in children:
                await self.end_of(child)
            await arrived(lambda: witness.messages == ROUNDS, lambda: f"the parent: {witness.events[-3:]}")
            require(not witness.disconnects and mpx.stats().connections == 1, "a child has cost the parent its link")
            witness.closed = True
        require(not witness.faults, f"the parent: {witness.faults}")

    def fork_child(self, name: str, mpx: Multiplexer) -> int:
        """Fork a child that uses the client, and may not use the parent's multiplexer; return its process."""
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            gc.disable()  # the objects of the parent's loop must not end here
            asyncio.events._set_running_loop(None)
            try:
                mpx.new_channel_subscription().add("a")
            except RuntimeError:
                status = 0
            else:
                print(f"{name} may use the parent's multiplexer", flush=True)
            self.run_elsewhere(name)
        except BaseException:
            status = 2
            traceback.print_exc()
        finally:
            os._exit(status)

    async def end_of(self, child: int) -> None:
        """Wait until a child has ended, and check its status."""
        ends = time.monotonic() + CHILD_TIMEOUT
        while True:
            process, status = os.waitpid(child, os.WNOHANG)
            if process:
                break
            if time.monotonic() > ends:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                require(False, "a child hangs")
            await asyncio.sleep(0.005)
        require(status == 0, f"a child ended with {os.waitstatus_to_exitcode(status)}; see its output")
