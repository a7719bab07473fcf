"""Puts known faults back into a copy of the package, and shows that a test fails for each: `python -m tools.mutants`.

Each mutant is one replacement in one file, with the tests that must notice it. Words of their names select some.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    fault: str
    file: str
    old: str
    new: str
    tests: str  # arguments for pytest


BLOCKING = "tests/live/test_blocking.py"
EMBEDDED = "tests/live/test_embedded.py"
FAULTS = "tests/testing/test_faults.py"
CHANNEL = "tests/live/test_channel.py"
BISECTION = "tests/core/test_bisection.py"
CALLBACKS = "tests/live/test_callbacks.py"
CANARY = "tests/live/test_canary.py"
CANCELLATION = "tests/live/test_cancellation.py"
CHAOS = "tests/tools/test_chaos.py"
CLOSING = "tests/live/test_closing.py"
CLUSTER = "tests/cluster/test_cluster.py"
CLUSTER_KEYS = "tests/cluster/test_keys.py"
KEYS = "tests/live/test_keys.py"
KEYSPACE = "tests/core/test_keyspace.py"
LAST_MESSAGES = "tests/live/test_last_messages.py"
CONNECTING = "tests/live/test_connecting.py"
CREDENTIALS = "tests/live/test_credentials.py"
EVENTS = "tests/live/test_events.py"
FOREIGN_LOOP = "tests/live/test_foreign_loop.py"
LOGGING = "tests/live/test_logging.py"
OBSERVING = "tests/live/test_observing.py"
PICKLING = "tests/api/test_pickling.py"
PROMISE = "tests/live/test_promise.py"
PUBLISH = "tests/live/test_publish.py"
READING = "tests/live/test_reading.py"
BROADCASTER = "tests/contrib/test_broadcaster.py"
LITESTAR = "tests/contrib/test_litestar.py"
STARLETTE = "tests/contrib/test_starlette.py"
SOCKETIO = "tests/contrib/test_socketio.py"
REOPENING = "tests/live/test_reopening.py"
REQUEST = "tests/live/test_request.py"
RECONNECT = "tests/live/test_reconnect.py"
REGISTRY = "tests/core/test_registry.py"
RECOVERY = "tests/core/test_recovery.py"
STREAMS = "tests/live/test_streams.py"
SHARED_TOPICS = "tests/live/test_shared_topics.py"
TOPIC_READERS = "tests/api/test_topic_readers.py"
CHANNELS = "tests/contrib/test_channels.py"
BLOCKING_TOPICS = "tests/live/test_blocking_topics.py"
DURABLE = "tests/live/test_durable_streams.py"
SENTINEL = "tests/cluster/test_sentinel.py"
SHARDED = "tests/live/test_sharded.py"
UNREAD = "tests/live/test_unread.py"
TORTURE = "tests/live/test_torture.py"
TYPED_REQUESTS = "tests/live/test_typed_requests.py"
URLS = "tests/api/test_urls.py"
USER_OBJECTS = "tests/live/test_user_objects.py"

MUTANTS = [
    Mutant(
        "topics: + stands for one word only",
        "_core/topic_tree.py",
        "if node.is_more:",
        "if False:",
        "tests/core/test_topic_tree.py",
    ),
    Mutant(
        "topics: a callback is called for each of its subscriptions",
        "topics/directory.py",
        "unique.setdefault(consumer.key, consumer)",
        "unique[consumer] = consumer",
        "tests/api/test_topics.py",
    ),
    Mutant(
        "topics: a subscription that is closed during a publish is called",
        "topics/subscription.py",
        "self._callback = self._reference = None",
        "pass",
        "tests/api/test_topics.py",
    ),
    Mutant(
        "topics: a cancelled future ends the task of a subscriber",
        "topics/subscription.py",
        "if task is None or task.cancelling():",
        "if task is not None:",
        "tests/api/test_topics.py -k failing_coroutine",
    ),
    Mutant(
        "topics: a message is delivered for each name that it comes by",
        "topics/relay.py",
        "if message != self._last:",
        "if True:",
        f"{SHARED_TOPICS} -k reaches_each_process_once",
    ),
    Mutant(
        "topics: a process gets its own messages from Redis",
        "topics/wire.py",
        "if envelope.headers.get(ORIGIN) == not_from:",
        "if False:",
        f"{SHARED_TOPICS} -k reaches_each_process_once",
    ),
    Mutant(
        "topics: a lost connection is told for each subscription",
        "topics/relay.py",
        "if self._active:  #",
        "if True:  #",
        f"{SHARED_TOPICS} -k gap_is_told",
    ),
    Mutant(
        "topics: a limit leaves a part of a subscription behind",
        "topics/relay.py",
        "                self._remove(words)\n                raise",
        "                raise",
        f"{SHARED_TOPICS} -k limit_leaves",
    ),
    Mutant(
        "topics: a message that did not reach Redis is silent",
        "topics/relay.py",
        "            self._events.on_error(error)\n",
        "            pass\n",
        f"{SHARED_TOPICS} -k not_sent_is_told",
    ),
    Mutant(
        "topics: a body that is no object is delivered",
        "topics/wire.py",
        "if not isinstance(body, dict) or",
        "if isinstance(body, dict) and",
        f"{SHARED_TOPICS} -k no_message_is_counted",
    ),
    Mutant(
        "topics: periodic functions drift",
        "topics/periodic.py",
        "start + number * self._interval - loop.time()",
        "self._interval",
        f"{TOPIC_READERS} -k do_not_drift",
    ),
    Mutant(
        "topics: aclose() drops what waits for coroutine functions",
        "topics/topics.py",
        "while await ended(",
        "while False and await ended(",
        f"{TOPIC_READERS} -k lets_everybody_finish",
    ),
    Mutant(
        "topics: close() of the blocking ones drops what waits for callbacks",
        "blocking/topics.py",
        "self._inlet.wait_until_idle(_CLOSE_TIMEOUT)",
        "pass",
        f"{BLOCKING_TOPICS} -k what_was_received",
    ),
    Mutant(
        "topics: a callback of the blocking ones that is slow drops nothing",
        "blocking/inlet.py",
        "is_full = len(self._messages) > self._max_pending",
        "is_full = False",
        f"{BLOCKING_TOPICS} -k slow_is_told",
    ),
    Mutant(
        "topics: a finalizer changes the tree",
        "topics/bus.py",
        "self._directory.dead.append, ",
        "self._forget, ",
        "tests/api/test_topics.py -k finalizer",
    ),
    Mutant(
        "doctor: half a cluster that goes on without the rest is well",
        "cli/checks.py",
        ' or served != "16384"',
        "",
        "tests/cli/test_doctor.py -k half_a_cluster",
    ),
    Mutant(
        "bench: a lost connection is a traceback",
        "cli/bench.py",
        "        raise errors.exceptions[0] from None\n",
        "        raise\n",
        "tests/cli/test_bench.py -k lost_connection",
    ),
    Mutant(
        "topics: errors of a handler go to the multiplexer",
        "topics/bus.py",
        ", on_error=self._reporter.on_error)",
        ")",
        "tests/live/test_shared_topics.py -k handler_reach_on_error",
    ),
    Mutant(
        "topics: two threads send their first messages with two origins",
        "topics/bus.py",
        'vars(self).setdefault("_origin", secrets.token_hex(8))',
        "secrets.token_hex(8)",
        "tests/api/test_topics.py -k one_origin",
    ),
    # The faults of the Python original.
    Mutant(
        "a message that waits behind one that cannot be decoded",
        "blocking/hand_over.py",
        "                    if self._waking is None:\n                        self._waking = loop.call_soon(self._wake_early)\n",
        "",
        f"{BLOCKING} -k undecodable",
    ),
    Mutant(
        "an embedded server that is still loading its data",
        "embedded.py",
        'password)) != b"+PONG":',
        'password)) == b"":',
        f"{EMBEDDED} -k loaded_its_data",
    ),
    Mutant(
        "an embedded server that outlives its owner",
        "embedded.py",
        "read -r _ <&3; kill",
        "read -r _ <&3; :",
        f"{EMBEDDED} -k ends_with_its_owner",
    ),
    Mutant(
        "a URL file that seems valid after its broker was killed",
        "url_file.py",
        "in lines and not is_held",
        "in lines and is_held is None",
        f"{EMBEDDED} -k stale",
    ),
    Mutant(
        "a second broker that takes over a URL file",
        "url_file.py",
        "            if _is_held(other.fileno()):\n",
        "            if not other:\n",
        f"{EMBEDDED} -k stale",
    ),
    Mutant(
        "a broker that ignores where it is told to listen",
        "cli/broker.py",
        "Server(port=port, unix=unix, ",
        "Server(",
        f"{EMBEDDED} -k where_it_is_told",
    ),
    Mutant(
        "a broker that keeps nothing and has no limit",
        "cli/broker.py",
        ", max_memory=max_memory, append_only=append_only)",
        ")",
        f"{EMBEDDED} -k limits_its_memory",
    ),
    Mutant(
        "a removed channel that threads still read",
        "blocking/subscriptions.py",
        '        self._hand_over.forget({to_bytes(channel, "a channel") for channel in channels})\n',
        "",
        f"{BLOCKING} -k removed_channel",
    ),
    Mutant(
        "a batch for a thread as large as the buffer",
        "blocking/hand_over.py",
        "max(1, min(_BATCH, max_pending // 10))",
        "_BATCH",
        f"{BLOCKING} -k beyond_the_bounds",
    ),
    Mutant(
        "a thread that reads outdated messages with latest",
        "blocking/hand_over.py",
        "1 if overflow is Overflow.LATEST else ",
        "",
        f"{BLOCKING} -k latest_message",
    ),
    Mutant(
        "a batch for a thread without a bound in bytes",
        "blocking/hand_over.py",
        "if left > 0 and size < _BATCH_BYTES:",
        "if left > 0:",
        f"{BLOCKING} -k bounded_in_bytes",
    ),
    Mutant(
        "a callback ahead of messages on the way to a thread",
        "blocking/hand_over.py",
        "            await self.empty()\n            return await call",
        "            return await call",
        f"{BLOCKING} -k read_subscription",
    ),
    Mutant(
        "a drain that drops messages on the way to a thread",
        "blocking/hand_over.py",
        "            if not self.border.is_draining:\n",
        "            if True:\n",
        f"{BLOCKING} -k drain_leaves",
    ),
    Mutant(
        "a blocking call in a running loop",
        "blocking/portal.py",
        "    if runs_loop():\n",
        "    if not runs_loop:\n",
        f"{BLOCKING} -k running_loop",
    ),
    Mutant(
        "publishing waits out its pause although a session has connected",
        "_io/publishing/current.py",
        "        self._reached.set()\n",
        "        pass\n",
        f"{PUBLISH} -k back_when_a_session",
    ),
    Mutant(
        "publishing does not pause any more when a session had connected",
        "_io/publishing/current.py",
        "            self._reached.clear()\n",
        "",
        f"{PUBLISH} -k session_of_the_past",
    ),
    Mutant(
        "an interrupted publish() that is sent later",
        "blocking/portal.py",
        "            self.post(outcome.cancel)  # this thread was interrupted, or the work is done\n            raise\n",
        "            raise\n",
        f"{BLOCKING} -k takes_back",
    ),
    Mutant(
        "a task for each publish() of a thread",
        "blocking/multiplexer.py",
        "        return portal.wait_for(self._publishing(channel, data, headers, sharded))\n",
        "        return portal.wait(lambda: self._mpx.publish(channel, data, sharded=sharded))\n",
        f"{BLOCKING} -k no_task",
    ),
    Mutant(
        "a forked process that ends without its messages of publish_soon()",
        "blocking/multiplexer.py",
        "                    _register_end()\n",
        "",
        "tests/live/test_blocking_life.py -k end_of_a_child",
    ),
    Mutant(
        "publish_soon() without a bound",
        "blocking/multiplexer.py",
        "if self._unsent >= self._max_pending:",
        "if self._unsent < 0:",
        f"{BLOCKING} -k publish_soon",
    ),
    Mutant(
        "a thread that gets an error at the exit of the interpreter",
        "blocking/hand_over.py",
        "if not (self.ended or self.portal.is_exiting):",
        "if not self.ended:",
        "tests/live/test_blocking_life.py -k threaded_exit",
    ),
    Mutant(
        "only the newest of two subscribers is called",
        "_core/entry.py",
        "self.active_snapshot = snapshot = tuple(self.active_subscribers)\n",
        "self.active_snapshot = snapshot = tuple(self.active_subscribers)[-1:]\n",
        f"{CHANNEL} -k ten_subscribers",
    ),
    Mutant(
        "removing one of two subscribers unsubscribes the other",
        "_core/registry.py",
        "            self._unwanted[kind].add(name)\n            self._reconcile(entry)\n        return state",
        "            pass\n        entry.clear()\n        self._reconcile(entry)\n        return state",
        f"{CHANNEL} -k ten_subscribers",
    ),
    Mutant(
        "clear() raises NameError",
        "channel.py",
        "self.remove(*self._channels)",
        "self.remove(*channels)",
        f"{CHANNEL} -k clear_keeps_a_subscription_open_and_close_ends_it",
    ),
    Mutant(
        "a signal waits for messages that were dropped",
        "_io/delivery/event_queue.py",
        "        if self.state is QueueState.BUFFERING and self.signal_is_next:\n",
        "        if False:\n",
        "tests/live/test_reading.py -k an_event_follows_when_its_last_message_is_dropped",
    ),
    Mutant(
        "close() raises NameError",
        "_io/delivery/event_queue.py",
        "        self._move(QueueState.CLOSED)\n",
        "        self._move(QueueState.CLOSED, yes)\n",
        f"{CHANNEL} -k clear_keeps_a_subscription_open_and_close_ends_it",
    ),
    Mutant(
        "pattern confirmations are recorded as channels",
        "_core/wire.py",
        'PUNSUBSCRIBE = b"punsubscribe", Kind.PATTERN',
        'PUNSUBSCRIBE = b"punsubscribe", Kind.CHANNEL',
        f"{CHANNEL} -k same_text",
    ),
    Mutant(
        "removing a channel before its confirmation raises KeyError",
        "_core/registry.py",
        "        elif entry.state in NOT_ON_SERVER and (self.draining or not entry.has_subscribers):",
        "        elif not entry.has_subscribers:",
        f"{TORTURE} -k add_remove_add",
    ),
    Mutant(
        "wait_for_new_promise loops for ever",
        "subscription.py",
        "while not is_done():",
        "while is_done() is not None:",
        f"{PROMISE} -k a_message_counts_before_the_promise_is_awaited",
    ),
    Mutant(
        "a promise's deadline begins only when it is awaited",
        "_io/runtime/timers.py",
        "self._loop.time() + seconds",
        "self._loop.time() + seconds + 60",
        f"{PROMISE} -k the_timeout_starts_when_the_promise_is_made",
    ),
    Mutant(
        "only the first of the promises with one timeout expires",
        "_io/runtime/timers.py",
        "                self._timer = self._loop.call_at(when, self._expire_due)\n                break",
        "                break",
        "tests/io/test_timers.py",
    ),
    Mutant(
        "set_result on a finished promise breaks the others",
        "promise.py",
        "        super().set_result(result)\n        self._discard()",
        "        super().set_result(result)",
        f"{PROMISE} -k all_promises_of_one_channel",
    ),
    Mutant(
        "the prefix of promises is not escaped",
        "promise.py",
        "escape_glob(prefix) + b",
        "prefix + b",
        f"{TORTURE} -k glob_characters",
    ),
    Mutant(
        "one slow async callback stops everybody",
        "_io/session/dispatcher.py",
        "                        self._take_result(subscriber, result)\n",
        "                        self._take_result(subscriber, result)\n                        break\n",
        f"{CALLBACKS} -k a_hanging_callback_delays_no_other_subscription",
    ),
    Mutant(
        "a CancelledError of the only callback ends the reader",
        "_io/session/dispatcher.py",
        "                    except BaseException as error:  # noqa: BLE001, users' code\n"
        "                        only.failed(error)",
        "                    except Exception as error:\n                        only.failed(error)",
        f"{CALLBACKS} -k exception_goes_to_on_error",
    ),
    Mutant(
        "a CancelledError of one of many callbacks ends the reader",
        "_io/session/dispatcher.py",
        "                except BaseException as error:  # noqa: BLE001, users' code\n                    subscriber",
        "                except Exception as error:\n                    subscriber",
        f"{CALLBACKS} -k exception_goes_to_on_error",
    ),
    Mutant(
        "the socket leaks at each reconnect",
        "_io/redispy/connection.py",
        "            self._transport.abort()\n",
        "            self._raw._writer = None\n",
        f"{PUBLISH} -k idle",
    ),
    Mutant(
        "the handshake begins in the protocol that redis-py prefers",
        "_io/redispy/dial.py",
        "raw.protocol = int(protocol or 3)",
        "raw.protocol = raw.protocol if protocol is None else int(protocol)",
        "tests/io/test_old_redispy.py -k begins_in_resp3",
    ),
    Mutant(
        "a connection that has ended raises instead of being replaced",
        "_io/redispy/connection.py",
        "        except RedisConnectionError:  # redis-py 7",
        "        except ZeroDivisionError:  # redis-py 7",
        "tests/io/test_old_redispy.py -k at_its_end",
    ),
    Mutant(
        "NOPERM is an endless reconnect",
        "_core/wire.py",
        'FATAL_ERRORS = frozenset({"NOAUTH"',
        'FATAL_ERRORS = frozenset({"NOPERM", "NOAUTH"',
        f"{TORTURE} -k one_forbidden",
    ),
    Mutant(
        "a confirmation that comes late marks the wrong state",
        "_core/registry.py",
        "if not commands or commands[0].verb is not verb or unconfirmed[0].name != name:",
        "if not commands or commands[0].verb.kind is not verb.kind or name not in self._tables[verb.kind]:",
        REGISTRY,
    ),
    Mutant(
        "no PING",
        "_io/session/link.py",
        "            self._watch_in(self._ping_interval)\n\n    def write",
        "            pass\n\n    def write",
        f"{TORTURE} -k frozen_server",
    ),
    Mutant(
        "no running loop, no constructor",
        "multiplexer.py",
        "        self._max_pending = check",
        "        asyncio.get_running_loop()\n        self._max_pending = check",
        "tests/live/test_lifecycle.py -k a_multiplexer_made_before_a_loop_starts_inside_it",
    ),
    Mutant(
        "one giant SUBSCRIBE",
        "_core/sync_queue.py",
        "BATCH = 512",
        "BATCH = 1_000_000",
        f"{CHANNEL} -k hundred_thousand",
    ),
    # The search for forbidden names.
    Mutant(
        "the other half of a rejected command is never sent again",
        "_core/bisection.py",
        "return Probe(names[:middle], names[middle:], postponed)",
        "return Probe(names[:middle], (), postponed)",
        BISECTION,
    ),
    Mutant(
        "the names of a search that wait for its end are never sent again",
        "_core/bisection.py",
        "            return NextStep(released=probe.held_back)\n",
        "            return NextStep(released=probe.suspects)\n",
        BISECTION,
    ),
    Mutant(
        "many forbidden names are searched for one by one",
        "_core/bisection.py",
        "            self._found += 1\n",
        "",
        BISECTION,
    ),
    Mutant(
        "few forbidden names are searched for as if they were many",
        "_core/bisection.py",
        "            self._found = 0\n",
        "            pass\n",
        BISECTION,
    ),
    Mutant(
        "the halves of an accepted part are searched again",
        "_core/bisection.py",
        "        if probe.suspects:\n            return NextStep(probes=(_first_half(probe.suspects, probe.postponed),))\n",
        "        if probe.suspects:\n            return NextStep(released=probe.held_back)\n",
        BISECTION,
    ),
    # The promises.
    Mutant(
        "P1: a late joiner is not activated before its first message",
        "_core/registry.py",
        "            self._late.append((entry, subscriber))\n",
        "            entry.set_state(subscriber, SubscriberState.ACTIVE)\n",
        f"{CHANNEL} -k activation_precedes_messages_and_is_not_inside_add",
    ),
    Mutant(
        "P1: no disconnect",
        "_io/session/dispatcher.py",
        "                    subscriber.disconnect(error, active)\n",
        "                    pass\n",
        f"{TORTURE} -k killed_connection",
    ),
    Mutant(
        "P2: what is parsed when a callback leaves the loop is lost",
        "_io/delivery/reporter.py",
        "asyncio.get_running_loop().call_soon(_raise, error)",
        "raise error",
        f"{CALLBACKS} -k system_exit",
    ),
    Mutant(
        "P3: after a loss only the old names are asked for",
        "_core/registry.py",
        "            self._move(entry, NameEvent.CONNECTION_LOST)\n            self._reconcile(entry)\n",
        "            self._move(entry, NameEvent.CONNECTION_LOST)\n",
        f"{RECONNECT} -k a_restarted_server_gets_all_names_again",
    ),
    Mutant(
        "P3: a remove in flight comes back",
        "_core/registry.py",
        "            self._move(entry, NameEvent.CONNECTION_LOST)\n            self._reconcile(entry)\n",
        "            if entry.state is NameState.LEAVING:\n                entry.add(self)\n"
        "            self._move(entry, NameEvent.CONNECTION_LOST)\n            self._reconcile(entry)\n",
        f"{TORTURE} -k remove_in_flight",
    ),
    Mutant(
        "P4: a subscriber taken away during a fan-out is called all the same",
        "_io/session/dispatcher.py",
        "        if entry.active_snapshot is snapshot or",
        "        if True or",
        f"{CALLBACKS} -k a_subscriber_removed_during_a_fan_out_gets_nothing",
    ),
    Mutant(
        "P5: activation from inside add()",
        "_io/session/session.py",
        "            self._flushing = self._loop.call_soon(self._link.guard, self._flush, context=self._context)",
        "            self._flush()",
        f"{CHANNEL} -k activation_precedes_messages_and_is_not_inside_add",
    ),
    Mutant(
        "P6: tasks survive aclose()",
        "_io/hub.py",
        "        self.slices.begin(self.tasks.cancel())\n",
        "        pass\n",
        f"{PUBLISH} -k clos",  # codespell:ignore clos
    ),
    Mutant(
        "P6: a dial that did not notice its cancellation goes on",
        "_io/runtime/tasks.py",
        "        for task in tuple(self._own):\n            task.cancel()\n",
        "",
        f"{CANCELLATION} -k closing_a_dial_that_swallows_its_cancellation",
    ),
    Mutant(
        "P6: callbacks go on after close()",
        "_io/hub.py",
        '        self.slices.begin(partial(subscription._end, "multiplexer closed") for subscription in subscriptions)\n',
        "",
        "tests/live/test_lifecycle.py",
    ),
    Mutant(
        "P6: closing from a callback waits for the callback",
        "_io/runtime/tasks.py",
        "if others := [task for task in some if not belongs_to(task)]:",
        "if others := some:",
        f"{TORTURE} -k closing_inside",
    ),
    Mutant(
        "P7: the buffer has no bound",
        "_core/buffer.py",
        "if self.count + count > self._max_pending:",
        "if False:",
        f"{TORTURE} -k slow_consumer",
    ),
    Mutant(
        "P7: the bytes that are pending have no bound",
        "_core/buffer.py",
        "elif self.size + size > self._budget.each:",
        "elif False:",
        "tests/live/test_limits.py -k pending_bytes_bounds_a",
    ),
    Mutant(
        "P7: a burst is counted without a look at the room",
        "_core/buffer.py",
        "if len(fresh) <= self._room and self._is_roomy(size):",
        "if True:",
        "tests/core/test_buffer.py -k model",
    ),
    Mutant(
        "P7: the bytes of a burst have no bound",
        "_core/buffer.py",
        "if len(fresh) <= self._room and self._is_roomy(size):",
        "if len(fresh) <= self._room:",
        "tests/live/test_limits.py -k pending_bytes_bounds_a",
    ),
    Mutant(
        "P4: a burst uses up the room of all buffers",
        "_core/buffer.py",
        " and budget.size + size <= budget.loose",
        "",
        "tests/core/test_buffer.py -k model",
    ),
    Mutant(
        "P7: a burst is counted only when it is over",
        "_core/buffer.py",
        "        if len(self.fresh) > self._room:\n            return FULL\n",
        "",
        "tests/live/test_overflow.py -k middle_of_a_burst",
    ),
    Mutant(
        "P2: a signal overtakes the messages before it",
        "_core/event_list.py",
        "self.signals > 0 and self._items[self._skip()] is None",
        "self.signals > 0",
        "tests/core/test_buffer.py -k model",
    ),
    Mutant(
        "a message of the batch is not dropped as the oldest",
        "_core/buffer.py",
        "        self.recall()\n        budget.recall(size)\n",
        "        budget.recall(size)\n",
        "tests/core/test_buffer.py -k in_the_batch",
    ),
    Mutant(
        "a message of the batch outlives its channel",
        "_core/buffer.py",
        "            self.recall()\n            dropped = change(*arguments)\n",
        "            dropped = change(*arguments)\n",
        "tests/core/test_buffer.py -k leaves_the_batch",
    ),
    Mutant(
        "the last message is popped without a look at the buffer",
        "_core/buffer.py",
        "min(BATCH_SIZE, self.count - 1)",
        "min(BATCH_SIZE, self.count)",
        "tests/core/test_buffer.py -k model",
    ),
    Mutant(
        "the messages of the batch are not decoded",
        "_io/delivery/event_queue.py",
        "        if not (self.is_read and consumer.decode):",
        "        if True:",
        "tests/live/test_reading.py -k get_and_iteration_can_be_mixed",
    ),
    Mutant(
        "the batch hides a reader from another one",
        "_io/delivery/inbox.py",
        "            self.buffer.recall()  # another",
        "            pass  # another",
        "tests/live/test_reading.py -k second_reader",
    ),
    Mutant(
        "a message of a burst cannot be read before the burst ends",
        "_io/delivery/inbox.py",
        "            elif buffer.fresh:\n",
        "            elif False:\n",
        "tests/live/test_overflow.py -k middle_of_a_burst",
    ),
    Mutant(
        "a message of a burst outlives its stream",
        "_io/delivery/event_queue.py",
        "        self.flush()\n        buffer, hand",
        "        buffer, hand",
        "tests/live/test_streams.py -k removed_in_a_burst",
    ),
    Mutant(
        "a signal overtakes the messages before it in a burst",
        "_io/delivery/inbox.py",
        "        self.flush()\n        buffer = self._event_buffer()\n        if buffer is not None:\n            buffer.sig",
        "        buffer = self._event_buffer()\n        if buffer is not None:\n            buffer.sig",
        "tests/live/test_overflow.py -k keeps_its_place",
    ),
    Mutant(
        "a disconnect overtakes the messages before it in a burst",
        "_io/delivery/inbox.py",
        "        self.flush()\n        buffer = self._event_buffer()\n        if buffer is not None:\n            was",
        "        buffer = self._event_buffer()\n        if buffer is not None:\n            was",
        "tests/live/test_overflow.py -k keeps_its_place",
    ),
    Mutant(
        "an observer may end what it is told of",
        "_io/delivery/watch.py",
        "            self._reporter.log(error, name)\n            try:\n",
        "            self._reporter.log(error, name)\n            raise\n            try:\n",
        f"{OBSERVING} -k hostile",
    ),
    Mutant(
        "a multiplexer is asked for its figures in another thread",
        "contrib/_figures.py",
        "        if loop is None or loop is _running_loop() or not loop.is_running():\n",
        "        if loop is not None:\n",
        "tests/contrib/test_prometheus.py -k another_thread",
    ),
    Mutant(
        "the span of a callback does not belong to that of its publisher",
        "contrib/opentelemetry.py",
        "            producer, links = extracted, [Link(creation)]\n",
        "            producer, links = None, []\n",
        "tests/contrib/test_opentelemetry.py -k a_trace_goes_through",
    ),
    Mutant(
        "a coroutine is awaited outside its operation",
        "_io/delivery/watch.py",
        "    adopt(result)\n    followed.enter()\n",
        "    adopt(result)\n",
        f"{OBSERVING} -k runs_inside_its_operation",
    ),
    Mutant(
        "observers are told of a confirmation in the middle of it",
        "_io/session/observed.py",
        "            self._critical.postpone(partial(self._tell, Subscribed(verb.kind.value, name)))",
        "            self._tell(Subscribed(verb.kind.value, name))",
        f"{OBSERVING} -k in_the_middle_of_a_change",
    ),
    Mutant(
        "a message of a topic is followed for each name that it came by",
        "topics/relay.py",
        "                with self._mpx._hub.unobserved():\n",
        "                if True:\n",
        f"{OBSERVING} -k topics",
    ),
    Mutant(
        "the first connection counts as a reconnect",
        "_io/session/outage.py",
        "        self._counters.reconnects += self._was_connected\n        self._was_connected = True\n",
        "        self._was_connected = True\n        self._counters.reconnects += self._was_connected\n",
        f"{OBSERVING} -k facts_come_in_order",
    ),
    Mutant(
        "a trace is lost with the headers that an observer adds",
        "_io/delivery/watch.py",
        "                    more = replace(envelope, headers={**envelope.headers, **added})\n",
        "                    more = envelope\n",
        f"{OBSERVING} -k travel",
    ),
    Mutant(
        "nobody counts a burst when it is over",
        "_io/session/dispatcher.py",
        "                self._counters.receiving_until = deadline\n            self._flush_deferred()\n",
        "                self._counters.receiving_until = deadline\n",
        "tests/live/test_limits.py -k max_total_pending_bytes_bounds",
    ),
    Mutant(
        "P4: stuck consumers use up the room of all buffers",
        "_core/buffer.py",
        "(largest := budget.largest(self)) is not None",
        "(largest := self if self.count > 1 else None)",
        "tests/live/test_limits.py -k leave_room_for_a_small_one",
    ),
    Mutant(
        "a limit is reached with half of the names added",
        "channel.py",
        "        self._hub.admit(self._kind, new)\n",
        "",
        "tests/live/test_limits.py -k channels",
    ),
    Mutant(
        "what is refused is wanted all the same",
        "channel.py",
        "        self._hub.admit(self._kind, new)\n",
        "        self._hub.add(self._kind, new, self._inbox)\n        self._hub.admit(self._kind, new)\n",
        "tests/live/test_limits.py -k exhausting_every_limit_stays_within_512_mb",
    ),
    Mutant(
        "P7: reconnects fill the buffer of a stuck consumer",
        "_core/event_list.py",
        "            if self._full_gap >= 0:\n                self._drop",
        "            if False:\n                self._drop",
        "tests/core/test_buffer.py -k reconnects",
    ),
    Mutant(
        "P7: disconnects of names that come and go fill a buffer",
        "_core/event_list.py",
        "self._unmerged += names\n",
        "self._unmerged += names if len(names) < 2 else ()\n",
        "tests/core/test_buffer.py -k come_and_go",
    ),
    Mutant(
        "P7: refusals and grants fill the buffer of a stuck consumer",
        "_core/event_list.py",
        "signal.kind is Signal.ERROR and not signal.names <= activated:",
        "signal.kind is Signal.ERROR:",
        "tests/core/test_buffer.py -k grants",
    ),
    Mutant(
        "P1: a name is in two disconnects in a row",
        "_core/event_list.py",
        " : places.index(gaps[-1]) + 1]:",
        " : places.index(gaps[-1])]:",
        "tests/core/test_buffer.py -k only_the_names",
    ),
    Mutant(
        "P1: what was received between two merged disconnects is delivered",
        "_core/event_list.py",
        "for position in places[places.index(gaps[0]) + 1 : places.index(gaps[-1]) + 1]:",
        "for position in gaps[1:]:",
        "tests/core/test_buffer.py -k only_the_names",
    ),
    Mutant(
        "P2: what was received after the last of several disconnects is dropped when these merge",
        "_core/event_list.py",
        " : places.index(gaps[-1]) + 1]:",
        " :]:",
        "tests/core/test_merging.py -k in_order",
    ),
    Mutant(
        "P7: disconnects of the same names are not merged",
        "_io/delivery/inbox.py",
        "            if buffer.is_merging and not was_merging:\n",
        "            if False:\n",
        "tests/io/test_inbox.py",
    ),
    Mutant(
        "disconnects merge before all of them are indexed",
        "_core/event_list.py",
        "elif self._index is None or self._index.end < self._last_gap:",
        "elif self._index is None:",
        "tests/core/test_merging.py -k in_order",
    ),
    Mutant(
        "P7: disconnects never merge while messages are added fast",
        "_core/event_list.py",
        "self._index.end < self._last_gap:",
        "self._index.left(self._items):",
        "tests/core/test_merging.py -k added_faster",
    ),
    Mutant(
        "P7: disconnects never merge while messages are dropped",
        "_core/event_list.py",
        "        if self._unmerged:\n",
        "        if False:\n",
        "tests/core/test_merging.py -k dropped",
    ),
    Mutant(
        "to remove a channel copies the names of a disconnect",
        "_core/events.py",
        "        if len(names) > len(known):\n",
        "        if True:\n",
        "tests/core/test_merging.py -k without_a_copy",
    ),
    Mutant(
        "a disconnect keeps the names that are removed",
        "_core/event_list.py",
        "                signal.forget(names)\n",
        "",
        "tests/core/test_buffer.py -k loses_the_names",
    ),
    Mutant(
        "P1: a subscription does not know which names were lost with the connection",
        "_io/session/dispatcher.py",
        "subscriber.disconnect(error, active)",
        "subscriber.disconnect(error)",
        f"{RECONNECT} -k not_reported_for_removed_names",
    ),
    Mutant(
        "a loss collects all names of a subscription in one step",
        "_core/loss.py",
        "                if number % CHUNK == 0:\n                    yield None\n            if not self._names:\n",
        "            if not self._names:\n",
        "tests/core/test_registry.py -k no_step_of_a_loss",
    ),
    Mutant(
        "a name that is removed while a loss is collected is lost",
        "_core/loss.py",
        "        self._names.discard(entry.name)\n",
        "",
        "tests/core/test_registry.py -k active_until_its_loss",
    ),
    Mutant(
        "P1: a disconnect of all names outlives these names",
        "_core/event_list.py",
        "                if not gap.lost:\n",
        "                if False:\n",
        "tests/core/test_buffer.py -k goes_with_the_last",
    ),
    Mutant(
        "on_disconnect gets the names that were removed",
        "_io/delivery/worker.py",
        "return error if len(names) == len(error.names) else narrow(error, frozenset(names))",
        "return error",
        "tests/cluster/test_cluster.py -k names_that_are_removed",
    ),
    Mutant(
        "to remove a channel walks through the buffer",
        "_core/event_list.py",
        "        if self._index is None or (self._index.is_outdated and not self._unmerged):",
        "        if True:",
        "tests/core/test_buffer.py -k walk",
    ),
    Mutant(
        "to remove many channels at once walks through the buffer for each",
        "_core/event_list.py",
        "len(names) * self._grow_index().left(items) > queued",
        "self._grow_index() is None",
        "tests/core/test_buffer.py -k many_names_at_once",
    ),
    Mutant(
        "a search for a name finds only events that are indexed",
        "_core/event_index.py",
        "        if self.end < len(items):",
        "        if False:",
        "tests/core/test_buffer.py -k model",
    ),
    Mutant(
        "removed messages pile up in the list",
        "_core/event_list.py",
        "        if 2 * waste > len(self._items) + SLACK and",
        "        if False and",
        "tests/core/test_buffer.py -k model",
    ),
    Mutant(
        "a popped message stays in memory",
        "_core/buffer.py",
        "        items[head : head + lent] = _NONES[:lent]  # or",
        "        # or",
        "tests/core/test_buffer.py -k model",
    ),
    Mutant(
        "the bytes of a batch count until it is used up",
        "_core/budget.py",
        "        self.recall()\n        fresh =",
        "        fresh =",
        "tests/live/test_limits.py -k exact",
    ),
    Mutant(
        "the bytes of a burst are not pending until it is counted",
        "_core/budget.py",
        " + sum([sum(map(len, items)) for items in fresh])\n",
        "\n",
        "tests/live/test_limits.py -k exact",
    ),
    Mutant(
        "what a consumer has popped takes room from other buffers",
        "_core/buffer.py",
        "        budget.recall(size)\n",
        "",
        "tests/core/test_buffer.py -k free_for_another",
    ),
    Mutant(
        "an empty buffer rejects a message that is longer than max_pending_bytes",
        "_core/buffer.py",
        "while self.count > 1 and self._exceeds(0, 0):",
        "while self.count and self._exceeds(0, 0):",
        "tests/live/test_limits.py -k pending_bytes_bounds_a",
    ),
    Mutant(
        "P4: a payload for many subscriptions is counted for each, and uses up the room",
        "_core/buffer.py",
        "        if is_tight and self._shared_from == sys.maxsize:",
        "        if False:",
        "tests/live/test_limits.py -k counted_once",
    ),
    Mutant(
        "tiny buffers never drop messages for the others",
        "_core/budget.py",
        "        if size and (size >= self.small or self.is_tight):\n",
        "        if size and size >= self.small:\n",
        "tests/core/test_buffer.py -k total",
    ),
    Mutant(
        "a buffer makes room in the middle after a clear",
        "_core/event_list.py",
        "-1, None, (0, 0)",
        "-1, None, self._tail",
        "tests/core/test_buffer.py -k after_a_clear",
    ),
    Mutant(
        "P4: the largest buffer drops messages until it is small, and the next one follows",
        "_core/budget.py",
        "                    holders.move_to_end(holder)\n",
        "",
        "tests/core/test_buffer.py -k take_turns",
    ),
    Mutant(
        "SlowConsumer blames max_pending for everything",
        "_io/delivery/event_queue.py",
        "len(buffer), buffer.limit)",
        "len(buffer))",
        "tests/live/test_limits.py -k names_the_limit",
    ),
    Mutant(
        "P4: very many promises fail in one step of the loop",
        "_io/runtime/slices.py",
        "                self._continue(loop)\n\n    @property",
        "                self.finish()\n\n    @property",
        f"{PROMISE} -k fail_in_time_slices",
    ),
    Mutant(
        "P4: very many promises time out in one step of the loop",
        "_io/runtime/timers.py",
        "if when > now or len(due) == EXPIRED_AT_ONCE:",
        "if when > now:",
        "tests/io/test_timers.py -k several_iterations",
    ),
    Mutant(
        "promises that are failing leave no room for new ones",
        "promise.py",
        "            self._hub.slices.finish()  # many",
        "            pass  # many",
        f"{PROMISE} -k leave_room_for_new_ones",
    ),
    Mutant(
        "a promise that is failing gets the message of its channel",
        "promise.py",
        "        failing, self._outstanding = self._outstanding, _Outstanding(self._outstanding.counters, self._hub.check)\n",
        "        failing = self._outstanding\n",
        f"{PROMISE} -k fail_in_time_slices",
    ),
    Mutant(
        "work in time slices waits for a loop that has ended",
        "_io/runtime/slices.py",
        "            if loop is self._loop:\n                await",
        "            if True:\n                await",
        "tests/io/test_slices.py -k loop_that_has_ended",
    ),
    Mutant(
        "P6: a callback is called after close() from a batch",
        "_io/hub.py",
        "        self.budget.recall()  #",
        "        #",
        f"{CLOSING} -k very_many",
    ),
    Mutant(
        "P6: a worker goes on after close() of very many subscriptions",
        "_io/delivery/worker.py",
        "    if buffer is None or queue.context.tasks.is_ending:\n",
        "    if buffer is None:\n",
        f"{CLOSING} -k very_many",
    ),
    Mutant(
        "P6: a reader goes on after close() of very many subscriptions",
        "_io/delivery/inbox.py",
        "            if not (buffer and buffer.batch) and self.context.tasks.is_ending:\n                break\n",
        "",
        f"{CLOSING} -k very_many",
    ),
    Mutant(
        "P4: close() of very many subscriptions is one step of the loop",
        "_io/hub.py",
        '        self.slices.begin(partial(subscription._end, "multiplexer closed") for subscription in subscriptions)\n',
        "        for subscription in subscriptions:\n            subscription._end(None)\n",
        f"{CLOSING} -k very_many",
    ),
    Mutant(
        "a message of a channel that is being cleared is delivered",
        "_io/delivery/event_queue.py",
        "        return lambda channel, data: None if channel in self.leaving else deliver(channel, data)\n",
        "        return deliver\n",
        f"{CHANNEL} -k cleared_in_time_slices",
    ),
    Mutant(
        "a message of a closed subscription is delivered while its names are unsubscribed",
        "_io/delivery/event_queue.py",
        "        self.deliver = ignore  #",
        "        #",
        f"{CHANNEL} -k closed_in_time_slices",
    ),
    Mutant(
        "channels of a closed subscription leave no room for others",
        "_io/hub.py",
        "            if self.slices.are_pending:",
        "            if False:",
        f"{CHANNEL} -k closed_in_time_slices",
    ),
    Mutant(
        "P8: a warning for each attempt",
        "_io/session/session.py",
        'logger.debug("attempt',
        'logger.warning("attempt',
        f"{RECONNECT} -k an_outage_is_warned_of_once",
    ),
    Mutant(
        "P8: a URL that cannot be parsed is repeated",
        "_io/redispy/client.py",
        'the Redis URL cannot be used: {hint}")',
        'the Redis URL {url} cannot be used: {hint}")',
        "tests/api/test_arguments.py -k an_invalid_multiplexer_option_raises",
    ),
    Mutant(
        "a piece of a password that was not encoded is dialled",
        "_io/redispy/client.py",
        "        if not _is_ambiguous(parsed.url):\n",
        "        if True:\n",
        "tests/api/test_arguments.py -k a_password_that_is_not_encoded_is_refused",
    ),
    # Others that were seen on the way.
    Mutant(
        "the backoff begins anew with every connection",
        "_io/session/reconnect.py",
        "if seconds >= STABLE_AFTER:",
        "if True:",
        f"{RECONNECT} -k the_backoff_counts_until_a_connection_is_stable",
    ),
    Mutant(
        "the backoff overflows after a long outage",
        "_io/session/reconnect.py",
        "min(self.failures - 2, 64)",
        "self.failures - 2",
        f"{RECONNECT} -k any_number_of_failures",
    ),
    Mutant(
        "a former master is kept",
        "_io/session/session.py",
        "            self._link.abandon(reason)\n",
        "            pass\n",
        "tests/live/test_delivery_probe.py -k former_master_that",
    ),
    Mutant(
        "what anybody says of another master is believed",
        "_io/deployment/sentinel.py",
        "wrong = addresses & self._addresses() - {named}",
        "wrong = addresses",
        "tests/cluster/test_sentinel.py -k announcements_of_a_failover_are_verified",
    ),
    Mutant(
        "the publisher stays at a former master",
        "_io/deployment/base.py",
        "            self.main.abandon(reason)\n        self.publisher.abandon(address)\n",
        "            self.main.abandon(reason)\n",
        f"{SENTINEL} -k publishing_alone",
    ),
    Mutant(
        "a demoted master goes on publishing",
        "_io/redispy/connection.py",
        "        await self.hello()\n        return not self._is_master\n",
        "        return False\n",
        "tests/live/test_former_master.py -k leaves_a_demoted",
    ),
    Mutant(
        "each publish asks for the role of the server",
        "_io/redispy/connection.py",
        "return self._is_master and monotonic() >= self._asked + ROLE_INTERVAL",
        "return self._is_master",
        "tests/live/test_former_master.py -k now_and_then",
    ),
    Mutant(
        "publishing waits for ever for the role of a silent server",
        "_io/publishing/current.py",
        "async with asyncio.timeout(self._timeout):\n                if await connection.was_demoted()",
        "async with asyncio.timeout(None):\n                if await connection.was_demoted()",
        "tests/live/test_former_master.py -k only_for_a_while",
    ),
    Mutant(
        "a lost link is no news for publishing",
        "_io/deployment/base.py",
        "        self.publisher.abandon(address)\n        for session",
        "        for session",
        "tests/live/test_former_master.py -k makes_publishing_dial",
    ),
    Mutant(
        "an unanswered publish is no news for the link",
        "_io/deployment/base.py",
        "            session.check(address)\n",
        "            pass\n",
        "tests/live/test_former_master.py -k makes_the_link_ping",
    ),
    Mutant(
        "a lost publisher ends the link",
        "_io/session/session.py",
        "            self._link.check()\n",
        '            self._link.abort("a doubt")\n',
        "tests/live/test_former_master.py -k does_not_end_a_good",
    ),
    Mutant(
        "an abandoned server gets another batch",
        "_io/publishing/pipeline.py",
        "                    if self.current.is_outdated:\n                        await self.current.leave()\n",
        "                    self.current.is_outdated = False\n",
        "tests/live/test_former_master.py -k gets_no_more",
    ),
    Mutant(
        "READONLY is taken for the error of one call",
        "_io/publishing/pipeline.py",
        "if isinstance(error, ReadOnlyError):",
        "if False:",
        "tests/live/test_former_master.py -k read_only",
    ),
    Mutant(
        "publishing goes back to the abandoned node",
        "_io/publishing/current.py",
        "            await self.release()\n            await self._on_left()\n",
        "            await self.release()\n",
        f"{CLUSTER} -k abandoned_node",
    ),
    Mutant(
        "nobody looks where publishing goes",
        "_io/deployment/sentinel.py",
        "lambda: self.addresses",
        "lambda: {self.main.address} - {None}",
        f"{SENTINEL} -k publishing_alone",
    ),
    Mutant(
        "forged announcements make us ask the Sentinels without an end",
        "_io/deployment/sentinel.py",
        "                pause = min(max(2 * pause, QUESTION_PAUSE), LONGEST_PAUSE)\n",
        "                pass\n",
        f"{SENTINEL} -k forged",
    ),
    Mutant(
        "an announcement of any size is taken apart",
        "_io/deployment/sentinel.py",
        "        if len(data) > LONGEST_HELLO:\n            return\n",
        "",
        f"{SENTINEL} -k huge",
    ),
    Mutant(
        "a forced host is taken for another master",
        "_io/redispy/sentinels.py",
        "named[0] if is_forced and named else host.encode()",
        "host.encode()",
        f"{SENTINEL} -k forced_host",
    ),
    Mutant(
        "nobody listens to the Sentinels",
        "_io/deployment/sentinel.py",
        "self._endpoint.service and not all(",
        "self._endpoint.service and all(",
        "tests/cluster/test_sentinel.py -k announcements_of_a_failover_are_verified",
    ),
    Mutant(
        "a probe that was not accepted condemns",
        "_io/session/delivery_probe.py",
        "any of them may be outdated\n        return False\n",
        "any of them may be outdated\n        return True\n",
        "tests/live/test_delivery_probe.py -k a_probe_without_permission_keeps_the_connection",
    ),
    Mutant(
        "our own standing still is taken for the server's",
        "_core/liveness.py",
        "                self._move(LivenessState.DOUBTED)\n",
        '                return Look(0, loss="no reply")\n',
        "tests/live/test_liveness.py -k suspended",
    ),
    Mutant(
        "messages that arrived before the server closed the connection are thrown away",
        "_io/session/link.py",
        '        self._end_link("the server closed the connection")\n',
        '        self._lose("the server closed the connection")\n',
        f"{LAST_MESSAGES} -k killed",
    ),
    Mutant(
        "messages that arrived on an abandoned connection are thrown away",
        "_io/session/link.py",
        "            self._end_link(reason)\n",
        "            self._lose(reason)\n",
        f"{LAST_MESSAGES} -k abandoned",
    ),
    Mutant(
        "messages that arrived before a write failed are thrown away",
        "_io/session/link.py",
        "            self._add(self._connection.read_rest(READ_SIZE * LAST_READS))\n",
        "            pass\n",
        f"{LAST_MESSAGES} -k failed_write",
    ),
    Mutant(
        "TLS reads on while reading is paused",
        "_io/redispy/connection.py",
        "            limit(high=1)\n",
        "            pass\n",
        f"{LAST_MESSAGES} -k tls",
    ),
    Mutant(
        "commands are sent to a server that was abandoned",
        "_io/session/link.py",
        "        if self.state is LinkState.ENDING or self.state is LinkState.LOST:\n            return\n        if self._transport",
        "        if self._transport",
        f"{LAST_MESSAGES} -k sends_nothing",
    ),
    Mutant(
        "our own lag counts as silence of the server",
        "_core/liveness.py",
        "            self._lag += now - self._behind_since\n",
        "            pass\n",
        "tests/core/test_liveness.py",
    ),
    Mutant(
        "a fan-out that takes long counts as silence of the server",
        "_io/session/link.py",
        "            self.liveness.fell_behind(self._loop.time())\n",
        "            pass\n",
        "tests/live/test_liveness.py -k its_time_after",
    ),
    Mutant(
        "a command behind a backlog counts as unanswered",
        "_core/liveness.py",
        "        if unread or self._behind_since is not None:\n",
        "        if self._behind_since is not None:\n",
        "tests/live/test_liveness.py -k backlog",
    ),
    Mutant(
        "half a frame is taken for life",
        "_io/session/link.py",
        "                if count:\n",
        "                if True:\n",
        "tests/live/test_liveness.py -k half_a_frame",
    ),
    Mutant(
        "a refused batch is refused as a whole",
        "_core/registry.py",
        "        elif len(entries) > 1:\n            self._revert(entries)\n",
        "        elif len(entries) > 1:\n            self._refused.update(dict.fromkeys(entries))\n"
        "            for entry in entries:\n                self._move(entry, NameEvent.REFUSED)\n",
        f"{TORTURE} -k one_forbidden",
    ),
    Mutant(
        "TLS gets a copy of the buffer",
        "_io/session/link.py",
        "        return self._view ",
        "        return self._buffer ",
        "tests/live/test_connection.py -k tls",
    ),
    Mutant(
        "cancelled from outside, the session goes on",
        "_io/session/link.py",
        "        if not self.lost.done():  # the",
        "        if True:  # the",
        "tests/live/test_lifecycle.py -k a_loop_ending_without_aclose_prints_nothing",
    ),
    Mutant(
        "a queued message of a removed channel is delivered",
        "_io/delivery/inbox.py",
        "        self.discard(names if rest else None)\n",
        "",
        f"{CALLBACKS} -k pending_messages_of_a_removed_channel_are_dropped",
    ),
    Mutant(
        "a busy server is asked in a hot loop",
        "_core/registry.py",
        "            if entry.state is NameState.ABSENT and not entry.has_subscribers:\n                self._reconcile(entry)\n",
        "            self._reconcile(entry)\n",
        "tests/live/test_refusals.py -k a_busy_server_is_retried_at_intervals",
    ),
    Mutant(
        "a cancelled get() loses a message",
        "_io/delivery/inbox.py",
        "                await reader.wait()\n            except asyncio.CancelledError:\n",
        "                await reader.wait()\n            except asyncio.CancelledError:\n                self.read_nowait()\n",
        "tests/live/test_reading.py -k a_get_cancelled_as_a_message_arrives_keeps_it",
    ),
    Mutant(
        "a bad payload ends delivery",
        "_io/delivery/inbox.py",
        "        except BaseException as error:  # noqa: BLE001, users' code\n            return self._report_undecodable",
        "        except KeyError as error:\n            return self._report_undecodable",
        "tests/live/test_reading.py -k decode",
    ),
    Mutant(
        "the dropped messages of a removed channel are not counted",
        "_io/delivery/event_queue.py",
        "            self.drop(buffer.clear() if names is None else buffer.remove(names))\n",
        "            buffer.clear() if names is None else buffer.remove(names)\n",
        f"{CALLBACKS} -k pending_messages_of_a_removed_channel_are_dropped",
    ),
    Mutant(
        "drain() does not wait for the server's confirmations",
        "_io/session/session.py",
        "        while self.state is SessionState.CONNECTED and (self.registry.oldest_command or self.registry.has_work):\n",
        "        while False:\n",
        "tests/live/test_drain.py -k before_the_confirmation",
    ),
    Mutant(
        "drain() does not wait for the consumers",
        "_io/hub.py",
        "            await subscription._consumed()\n",
        "            pass\n",
        "tests/live/test_drain.py -k drain_delivers_received_messages_and_no_later_ones",
    ),
    Mutant(
        "a burst is handed on in one go",
        "_io/session/dispatcher.py",
        "                    if monotonic() > deadline:\n",
        "                    if False:\n",
        "tests/live/test_fairness.py -k burst",
    ),
    Mutant(
        "a reader that never suspends starves the loop",
        "_io/delivery/inbox.py",
        "        if self.buffer is not None and reader.is_due_to_yield:",
        "        if False:",
        "tests/live/test_fairness.py -k burst",
    ),
    Mutant(
        "the clock is looked at after some disconnects only",
        "_io/session/dispatcher.py",
        "            if monotonic() > deadline:  # also",
        "            elif monotonic() > deadline:  # also",
        "tests/io/test_dispatcher.py -k after_any_disconnect",
    ),
    Mutant(
        "a fan-out to many is done in one go",
        "_io/session/dispatcher.py",
        "            if monotonic() > deadline:  # also",
        "            if False:  # also",
        "tests/io/test_dispatcher.py -k slices",
    ),
    Mutant(
        "the result of a callback is asked for its class",
        "_io/runtime/awaitable.py",
        '    return any("__await__" in vars(base) for base in type.mro(kind))\n',
        "    return isinstance(result, Awaitable)\n",
        f"{USER_OBJECTS} -k odd_result",
    ),
    Mutant(
        "decode that closes its subscription is followed by on_message",
        "_io/delivery/inbox.py",
        "        if self.closed or (forgotten and channel in forgotten):  # decode did that\n",
        "        if False:\n",
        f"{USER_OBJECTS} -k may_end_its",
    ),
    Mutant(
        "a subscription that came back during a fan-out gets the old message",
        "_io/session/session.py",
        "        if not self._dispatcher.is_interrupted:",
        "        if True:",
        f"{USER_OBJECTS} -k came_back",
    ),
    Mutant(
        "a subclass of bytes is trusted",
        "arguments.py",
        "    return data if type(data) is bytes else memoryview(data).tobytes()\n",
        "    return data\n",
        f"{USER_OBJECTS} -k subclasses",
    ),
    Mutant(
        "long names are sent in batches as large as those of short names",
        "_core/sync_queue.py",
        "                room -= len(entry.name)\n",
        "",
        f"{REGISTRY} -k bytes",
    ),
    Mutant(
        "a fan-out iterates over subscribers that a finalizer may remove",
        "_core/entry.py",
        "states = self.states.copy()",
        "states = self.states",
        "tests/io/test_dispatcher.py -k finalizer",
    ),
    Mutant(
        "an activation iterates over subscribers that a finalizer may remove",
        "_core/entry.py",
        "for subscriber in tuple(self.subscribers):",
        "for subscriber in self.subscribers:",
        f"{CHAOS} -k finalizers",
    ),
    Mutant(
        "a finalizer that removes a subscriber in the middle of its removal makes it fail",
        "_core/entry.py",
        "self.states.pop(subscriber, None)",
        "self.states.pop(subscriber)",
        f"{REGISTRY} -k finalizer",
    ),
    Mutant(
        "messages of a subscription that is closed are not counted as dropped",
        "_io/delivery/event_queue.py",
        "                self.drop(buffer.close())\n            elif self.hand",
        "                buffer.close()\n            elif self.hand",
        f"{USER_OBJECTS} -k middle_of_a_burst",
    ),
    Mutant(
        "channels are added to a subscription that a finalizer has closed",
        "channel.py",
        "            self._check_open()  # a finalizer may have closed it, or have added some of the channels\n",
        "",
        f"{USER_OBJECTS} -k any_call",
    ),
    Mutant(
        "a message on its way into a buffer that a finalizer removes is lost",
        "_io/delivery/event_queue.py",
        "            self.buffer.detach()\n",
        "            pass\n",
        f"{USER_OBJECTS} -k any_call",
    ),
    Mutant(
        "a finalizer's call is not postponed",
        "_core/critical.py",
        "        if not self.is_open:\n            return False\n",
        "        return False\n",
        "tests/core/test_critical.py",
    ),
    Mutant(
        "commit() is no critical section",
        "_core/buffer.py",
        "        critical.is_entered = True  # here and in pop_message(), `with` would take too much time\n",
        "",
        "tests/core/test_critical.py",
    ),
    Mutant(
        "a finalizer sees a message of which only the channel was put in",
        "_core/buffer.py",
        "            if len(fresh) & 1:\n",
        "            if False:\n",
        "tests/core/test_critical.py",
    ),
    Mutant(
        "a finalizer sees a buffer that expects no fresh messages, and has none",
        "_core/buffer.py",
        "        if self.fresh:  # otherwise",
        "        if True:  # otherwise",
        "tests/core/test_critical.py",
    ),
    Mutant(
        "connections are taken from the pool of the client",
        "_io/redispy/dial.py",
        "    raw: AbstractConnection = pool.make_connection()\n",
        "    free = getattr(pool, '_available_connections', None)\n"
        "    raw: AbstractConnection = free.pop() if free else pool.make_connection()\n",
        "tests/live/test_shared_client.py",
    ),
    Mutant(
        "callbacks run in the context of strangers",
        "_io/session/session.py",
        "        self._context = Context()\n",
        "        self._context = None\n",
        "tests/live/test_hardening.py -k context",
    ),
    Mutant(
        "a link that swallows all we send lives for ever",
        "_core/liveness.py",
        "        if oldest is known and oldest is not None:\n",
        "        if False:\n",
        "tests/live/test_hardening.py -k swallows",
    ),
    Mutant(
        "a fault of our own in a timer is the end of all pings",
        "_io/session/link.py",
        "self._loop.call_later(delay, self.guard, look)",
        "self._loop.call_later(delay, look)",
        "tests/live/test_lifecycle.py -k _watch",
    ),
    Mutant(
        "a fault of our own in a flush is the end of all wishes",
        "_io/session/session.py",
        "self._loop.call_soon(self._link.guard, self._flush, context=self._context)",
        "self._loop.call_soon(self._flush, context=self._context)",
        "tests/live/test_lifecycle.py -k _flush",
    ),
    # Publishing.
    Mutant(
        "the reply to a call that was cancelled is given to the next one",
        "_io/publishing/pipeline.py",
        "            call = sent.popleft()\n",
        "            call = min([sent.popleft(), *sent], key=lambda call: call.outcome.done())\n",
        "tests/live/test_mixing.py -k valkey",
    ),
    Mutant(
        "a batch is sent again when its connection breaks",
        "_io/publishing/pipeline.py",
        "            self._lose(sent, str(error) or repr(error), error)\n",
        "            self._waiting.extendleft(reversed(sent))\n            sent = deque()\n",
        f"{PUBLISH} -k not_sent_again",
    ),
    Mutant(
        "two batches are under way at a time",
        "_io/publishing/pipeline.py",
        "        if self._task is None or self._task.done():\n",
        "        if self._sent or self._task is None:\n",
        f"{PUBLISH} -k one_batch",
    ),
    Mutant(
        "the error of one call is that of all",
        "_io/publishing/pipeline.py",
        "            except ResponseError as error:\n                connection.hide",
        "            except KeyError as error:\n                connection.hide",
        f"{PUBLISH} -k its_own_call_alone",
    ),
    Mutant(
        "what a cancelled caller wanted is sent",
        "_io/publishing/pipeline.py",
        "            elif not call.outcome.done():\n                size",
        "            elif call.channel is not None:\n                size",
        f"{PUBLISH} -k cancelled_calls_leave_the_others_alone",
    ),
    Mutant(
        "an answer that comes too late is given to another call",
        "_io/publishing/pipeline.py",
        "                sent.clear()\n                connection.abort()\n            for call",
        "                sent.clear()\n                is_usable = True\n            for call",
        f"{PUBLISH} -k a_late_reply_goes_to_no_other_call",
    ),
    Mutant(
        "drain() leaves what is to be published",
        "multiplexer.py",
        "                await self._hub.deployment.publisher.flushed()\n",
        "",
        f"{PUBLISH} -k drain_waits",
    ),
    Mutant(
        "a logging filter that raises costs the connection",
        "_io/runtime/log.py",
        "        except Exception:  # noqa: BLE001, users' code\n",
        "        except KeyError:\n",
        "tests/live/test_lifecycle.py -k logging_filter",
    ),
    Mutant(
        "collected with its closed loop, it tries to reconnect",
        "_io/session/session.py",
        '                link.abort("closed")\n                await link.release()\n',
        '                await link.release()\n            link.abort("closed")\n',
        "tests/live/test_processes.py -k an_abandoned_loop_adds_no_output_of_ours",
    ),
    # Masters, and what servers say of themselves.
    Mutant(
        "a replica is taken for the master that Sentinels say it is",
        "_io/redispy/dial.py",
        '    if role not in (b"master", "master"):\n',
        "    if not role:\n",
        f"{SENTINEL} -k master_is_not",
    ),
    Mutant(
        "a replica that was asked for is refused",
        "_io/redispy/dial.py",
        'if getattr(pool, "is_master", False):',
        'if getattr(pool, "is_master", None) is not None:',
        f"{SENTINEL} -k slave_for_subscribes_at_a_replica",
    ),
    Mutant(
        "without the right to ask for the role there is no connection",
        "_io/redispy/dial.py",
        "    except ResponseError as error:\n        logger.debug(",
        "    except LookupError as error:\n        logger.debug(",
        f"{SENTINEL} -k without_the_right_to_role_it_connects",
    ),
    Mutant(
        "a Sentinel that never answers is asked first for ever",
        "_io/redispy/dial.py",
        "        sentinels.append(sentinels.pop(0))\n",
        "        pass\n",
        f"{SENTINEL} -k a_dead_or_frozen_sentinel_is_skipped",
    ),
    Mutant(
        "a server leads all connections elsewhere by pushing MOVING",
        "_io/redispy/client.py",
        "MaintNotificationsConfig(enabled=False)",
        "MaintNotificationsConfig()",
        "tests/io/test_maintenance.py -k notices_while_publishing_are_ignored",
    ),
    Mutant(
        "the link asks for maintenance notifications",
        "_io/redispy/dial.py",
        "    raw.maint_notifications_config = None ",
        "    pass ",
        "tests/io/test_maintenance.py -k the_link_does_not_request_notices",
    ),
    Mutant(
        "a push that is not for us is a protocol error",
        "_io/session/dispatcher.py",
        "            self._counters.ignored += 1  # a push of some other kind\n",
        '            raise ProtocolViolation("a push of some other kind")\n',
        "tests/io/test_maintenance.py -k counted",
    ),
    # Values and exceptions.
    Mutant(
        "a pickled exception has no cause",
        "errors.py",
        "        if self.__cause__ is not None:\n",
        "        if False:\n",
        f"{PICKLING} -k causes",
    ),
    Mutant(
        "the cause of a pickled exception needs the library that it came from",
        "errors.py",
        "    if isinstance(cause, RedisMPXError):\n",
        "    if True:\n",
        f"{PICKLING} -k needs_no_other",
    ),
    Mutant(
        "an exception is pickled as its class and its text",
        "errors.py",
        "    def __reduce__(",
        "    def reduce(",
        f"{PICKLING} -k a_value_or_exception_survives",
    ),
    # The log.
    Mutant(
        "P8: each failing subscription logs a record",
        "_io/runtime/log.py",
        "        if window.written >= RECORDS:\n",
        "        if False:\n",
        f"{LOGGING} -k failing_subscriptions_log_a_few_records",
    ),
    Mutant(
        "P8: the end of an outage is not seen at the level of its begin",
        "_io/session/outage.py",
        'logger.warning("connected to',
        'logger.info("connected to',
        f"{LOGGING} -k the_end_of_an_outage_is_a_warning",
    ),
    # Subscriptions that nobody refers to.
    Mutant(
        "an unread subscription that nobody refers to is kept",
        "_io/hub.py",
        "        if keep:\n",
        "        if True:\n",
        f"{UNREAD} -k an_unread_subscription_warns_and_is_closed",
    ),
    Mutant(
        "the overflow close keeps a subscription that nobody refers to",
        "subscription.py",
        '_weakly(self._close, "overflow") if consumer',
        'partial(self._close, "overflow") if consumer',
        f"{UNREAD} -k an_unread_subscription_warns_and_is_closed",
    ),
    Mutant(
        "a subscription with callbacks needs a reference",
        "subscription.py",
        "keep=consumer.has_callbacks",
        "keep=False",
        f"{UNREAD} -k a_subscription_with_callbacks_lives_on",
    ),
    Mutant(
        "a subscription that was lost before the loop is subscribed",
        "_io/hub.py",
        "        self._close_abandoned()\n        self.deployment.start()\n",
        "        self.deployment.start()\n",
        f"{UNREAD} -k a_subscription_lost_before_the_loop_is_closed",
    ),
    # events()
    Mutant(
        "an event is lost while a reader of events waits",
        "_io/delivery/inbox.py",
        "if self.buffer is None and (self.reads_events or self.hand is not None) and not self.closed:",
        "if self.buffer is None and self.hand is not None and not self.closed:",
        f"{EVENTS} -k the_gap_where_it_lies",
    ),
    Mutant(
        "the worker takes the events of a reader",
        "_io/delivery/worker.py",
        "signal = None if queue.reads_events else buffer.pop_signal()",
        "signal = buffer.pop_signal()",
        f"{EVENTS} -k events_behind_an_error",
    ),
    Mutant(
        "a late events() has lost the activations behind buffered messages",
        "_io/delivery/inbox.py",
        "(was_refused or self.is_read)",
        "was_refused",
        f"{EVENTS} -k begin_with_what_is_active",
    ),
    Mutant(
        "a late events() activates names too early",
        "_core/event_list.py",
        "                names.discard(signal)\n",
        "                pass\n",
        f"{EVENTS} -k begin_with_what_is_active",
    ),
    Mutant(
        "the first sharded messages go to any node",
        "_io/publishing/cluster.py",
        "        if self._has_strays and pipeline is self._pipeline:\n",
        "        if False:\n",
        f"{CLUSTER} -k first_publishes",
    ),
    Mutant(
        "latest replaces a message of another channel after two disconnects",
        "_core/latest.py",
        "        self._newest = {channel: position for channel, position in self._newest.items() if position < start}\n",
        "",
        "tests/core/test_buffer.py -k second_disconnect",
    ),
    # A message for a reader that waits.
    Mutant(
        "a message for a reader that is cancelled does not count as pending",
        "_io/delivery/inbox.py",
        "                if self.hand is not None:\n                    self.hold()  # for the next reader\n",
        "",
        f"{READING} -k meet_the_end",
    ),
    Mutant(
        "a message for a reader survives the removal of its channel",
        "_io/delivery/event_queue.py",
        "        elif hand is not None and (names is None or hand[0] in names) and self.take_hand() is not None:\n",
        "        elif False:\n",
        f"{READING} -k meet_the_end",
    ),
    Mutant(
        "a disconnect overtakes the message for a reader",
        "_io/delivery/inbox.py",
        "(self.reads_events or self.hand is not None)",
        "self.reads_events",
        f"{READING} -k meet_the_end",
    ),
    # Another life.
    Mutant(
        "two tasks that open a multiplexer get two lives",
        "multiplexer.py",
        "            if self._hub is hub:\n",
        "            if True:\n",
        f"{REOPENING} -k at_once_leaves_nothing",
    ),
    Mutant(
        "publishing alone dials two connections",
        "_io/session/session.py",
        "while self.registry.is_empty and not",
        "while False and not",
        f"{CONNECTING} -k publishing_alone",
    ),
    # Another loop.
    Mutant(
        "async for may begin in another loop",
        "reading.py",
        "        self._check_read()\n        self._hub.enter()\n        return self\n",
        "        self._check_read()\n        return self\n",
        f"{FOREIGN_LOOP} -k each_entry_rejects_another_loop",
    ),
    Mutant(
        "async for may wait in another loop",
        "reading.py",
        "            if message is None:\n                self._hub.enter()\n",
        "            if message is None:\n",
        f"{FOREIGN_LOOP} -k an_iteration_that_began_here",
    ),
    Mutant(
        "a promise may be cancelled in another thread",
        "promise.py",
        "        self._outstanding.check_loop()\n        super().cancel(msg)\n",
        "        super().cancel(msg)\n",
        f"{FOREIGN_LOOP} -k each_entry_rejects_another_loop",
    ),
    Mutant(
        "aclose() waits in another loop for what still runs",
        "multiplexer.py",
        "        hub.check()\n        try:\n",
        "        try:\n",
        f"{FOREIGN_LOOP} -k after_the_end_any_thread_may_close_again",
    ),
    # Secrets.
    Mutant(
        "a password is shown that the server repeats in the handshake",
        "_io/redispy/dial.py",
        "        secrets.hide_in(error)\n        if isinstance(error, TimeoutError):\n",
        "        if isinstance(error, TimeoutError):\n",
        f"{CANARY} -k a_password_that_the_server_repeats_is_hidden",
    ),
    Mutant(
        "a password is shown that the server repeats when it rejects a name",
        "_io/session/dispatcher.py",
        "        self._hide_secrets_in(error)\n",
        "",
        f"{CANARY} -k a_password_that_the_server_repeats_is_hidden",
    ),
    Mutant(
        "a password is shown that the server repeats when it rejects a message",
        "_io/publishing/pipeline.py",
        "                connection.hide_secrets_in(error)\n                self._reject(",
        "                self._reject(",
        f"{CANARY} -k a_password_that_the_server_repeats_is_hidden",
    ),
    Mutant(
        "new credentials are not used on open connections",
        "_io/deployment/base.py",
        "            session.log_in(login)\n",
        "            pass\n",
        f"{CREDENTIALS} -k no_gap",
    ),
    Mutant(
        "publishing goes on with credentials that end",
        "_io/deployment/base.py",
        "        self.publisher.abandon(None)\n        for",
        "        for",
        f"{CREDENTIALS} -k idle",
    ),
    Mutant(
        "a token that is pushed during a dial is forgotten",
        "_io/session/session.py",
        "            self.log_in(self._login)\n",
        "",
        f"{CREDENTIALS} -k during_a_dial",
    ),
    Mutant(
        "a connection whose credentials expire speaks RESP2",
        "_io/redispy/dial.py",
        "        protocol = 3  # with which",
        "        pass  # with which",
        f"{CREDENTIALS} -k no_gap",
    ),
    Mutant(
        "a rejected token ends the connection",
        "_io/session/dispatcher.py",
        "            self._take_failed_login(text)\n            return\n",
        "            self._take_failed_login(text)\n",
        f"{CREDENTIALS} -k rejected_token",
    ),
    Mutant(
        "a token that was pushed is not known as a secret",
        "_io/redispy/connection.py",
        "        self._secrets.renew(login.password)\n",
        "",
        f"{CREDENTIALS} -k repeats",
    ),
    Mutant(
        "each multiplexer leaves a callback with the credential provider",
        "_io/redispy/credentials.py",
        "            if id(provider) not in _streams:\n",
        "            if True:\n",
        f"{CREDENTIALS} -k several",
    ),
    Mutant(
        "the callback that a credential provider had is not called any more",
        "_io/redispy/credentials.py",
        "        result = None if self._earlier is None else self._earlier(token)\n",
        "        result = None\n",
        f"{CREDENTIALS} -k token_managers",
    ),
    Mutant(
        "a token is used in the thread that pushes it",
        "_io/redispy/credentials.py",
        "self._loop.call_soon_threadsafe(self._take, login, context=Context())",
        "self._take(login)",
        f"{CREDENTIALS} -k in_its_own_loop",
    ),
    Mutant(
        "a password from a credential provider is not known",
        "_io/redispy/dial.py",
        "    secrets.watch(raw)\n",
        "",
        f"{CANARY} -k a_password_that_the_server_repeats_is_hidden",
    ),
    Mutant(
        "only the raw form of a password is hidden",
        "_io/redispy/secrets.py",
        "    if char.isascii() and char.isalnum():\n",
        "    if True:\n",
        "tests/io/test_secrets.py",
    ),
    # The demo.
    Mutant(
        "the demo trusts any Host that agrees with Origin",
        "demo/app.py",
        "        if not self._is_trusted(host):\n",
        "        if False:\n",
        "tests/live/test_demo.py -k a_name_made_to_lead_here_opens_no_websocket",
    ),
    # The end.
    Mutant(
        "a callback that closes by way of another task is cancelled",
        "_io/runtime/tasks.py",
        "    return task is running_task() or task.get_coro() is _caller.get()\n",
        "    return task is running_task()\n",
        f"{CLOSING} -k a_callback_may_end_it_by_another_task",
    ),
    Mutant(
        "a task that a callback returned does not belong to it",
        "_io/runtime/tasks.py",
        "    if issubclass(type(awaitable), asyncio.Task) and ",
        "    if False and ",
        f"{CLOSING} -k a_task_that_a_callback_returns_may_end_it",
    ),
    Mutant(
        "a drain in the background leaves the callback that began it",
        "multiplexer.py",
        "            Context().run(self._hub.tasks.start, ",
        "            (lambda start, *arguments: start(*arguments))(self._hub.tasks.start, ",
        f"{CLOSING} -k a_callback_that_hangs_after_drain_is_cancelled",
    ),
    Mutant(
        "a handler that closes its service sends its reply",
        "service.py",
        " and not self.closed:\n            try:",
        ":\n            try:",
        f"{CLOSING} -k a_handler_that_closes_its_service_sends_no_reply",
    ),
    Mutant(
        "request_many() read after the end waits for its timeout",
        "_io/hub.py",
        "        if self.state is not HubState.OPEN:\n            raise",
        "        if False:\n            raise",
        f"{REQUEST} -k request_many_read_after_the_end_raises",
    ),
    Mutant(
        "a session that a log handler closed goes on",
        "_io/session/session.py",
        "        before, self.state = self.state, state\n        self._changed.notify()\n"
        '        logger.debug("session %s -> %s", before.value, state.value)',
        "        before = self.state\n        self._changed.notify()\n"
        '        logger.debug("session %s -> %s", before.value, state.value)\n        self.state = state',
        f"{CLOSING} -k a_log_handler_may_close_it_at_any_record",
    ),
    Mutant(
        "on_error is called although the log handler has closed it",
        "_io/delivery/reporter.py",
        "        report = None if closed else self._report(error)  # before",
        "        self.log(error, callback)\n        report = None if closed else self._report(error)  # before",
        f"{CLOSING} -k a_log_handler_may_close_it_at_any_record",
    ),
    Mutant(
        "a session that its backoff closed goes on",
        "_io/session/session.py",
        "            while not self.closed:\n                try:\n",
        "            while True:\n                try:\n",
        f"{CLOSING} -k a_backoff_may_close_it",
    ),
    Mutant(
        "a task of the library that starts after the end is not cancelled",
        "_io/runtime/tasks.py",
        "                if self.is_ending:\n",
        "                if False:\n",
        "tests/io/test_tasks.py -k after_the_end",
    ),
    # Request and reply.
    Mutant(
        "headers that are too long raise when the request is sent",
        "multiplexer.py",
        "        request.check_head()\n",
        "",
        "tests/api/test_arguments.py -k invalid_headers_raise_at_the_call",
    ),
    Mutant(
        "a reply on a served channel is taken for a request",
        "reply.py",
        "    if headers and (REPLY in headers or FAILURE in headers):\n",
        "    if False:\n",
        f"{REQUEST} -k a_reply_is_never_taken_for_a_request",
    ),
    Mutant(
        "the value of a header adds another one",
        "envelope.py",
        r'_is_value = re.compile("[^\r\n\0',
        r'_is_value = re.compile("[^\0',
        "tests/api/test_envelope.py -k headers_that_break_the_wire_form_are_rejected",
    ),
    Mutant(
        "a request waits for its publishing when the connection is lost",
        "request.py",
        "            timeout.reschedule(0.0)\n",
        "            pass\n",
        f"{REQUEST} -k a_lost_connection_interrupts_a_hanging_publish",
    ),
    Mutant(
        "a request hurries when it has been published",
        "request.py",
        "        if not finished:",
        "        if True:",
        f"{REQUEST} -k an_outcome_that_comes_last",
    ),
    Mutant(
        "a master is believed to count what its replicas count",
        "_io/redispy/connection.py",
        '{b"role:master", b"connected_slaves:0", b"repl_backlog_active:0"}',
        '{b"role:master"}',
        "tests/live/test_no_responders.py -k hears_requests",
    ),
    Mutant(
        "a replica that is away for a moment does not count",
        "_io/redispy/connection.py",
        'b"connected_slaves:0", b"repl_backlog_active:0"}',
        'b"connected_slaves:0"}',
        "tests/live/test_no_responders.py -k without_a_connection",
    ),
    Mutant(
        "each request that nobody hears asks for the replicas",
        "_io/redispy/connection.py",
        "monotonic() < self._incomplete.get(sharded, -math.inf) + COUNTS_INTERVAL",
        "False",
        "tests/live/test_no_responders.py -k receivers_asks",
    ),
    Mutant(
        "the count of a node is believed to be that of its cluster",
        "_io/redispy/connection.py",
        'ALONE_AND_NO_NODE = ALONE | {b"cluster_enabled:0"}',
        "ALONE_AND_NO_NODE = ALONE",
        f"{REQUEST} -k one_cluster_nodes_count_proves_nothing",
    ),
    Mutant(
        "what a request raises leads to itself",
        "request.py",
        "                del promise ",
        "                pass ",
        f"{REQUEST} -k exceptions_are_freed_with_their_last_reference",
    ),
    Mutant(
        "one handler more than allowed is in flight",
        "service.py",
        "if len(self._tasks) >= self._concurrency else None",
        "if len(self._tasks) > self._concurrency else None",
        f"{REQUEST} -k concurrency_bounds_handlers_and_keeps_order",
    ),
    Mutant(
        "draining leaves handlers in flight behind",
        "service.py",
        "        while self._tasks and not self.closed:\n",
        "        while False:\n",
        f"{REQUEST} -k drain_answers_received_requests",
    ),
    Mutant(
        "an iteration over answers goes on for as long as they come",
        "request.py",
        "if self._late is None:",
        "if True:",
        f"{REQUEST} -k request_many_ends_though_replies_never_stop",
    ),
    # Shards and clusters.
    Mutant(
        "a name that was unsubscribed unasked, while it was removed and added again, stays where it is",
        "_io/session/dispatcher.py",
        "(oldest is None or oldest.confirmed == confirmed)",
        "oldest is None",
        "tests/io/test_evictions.py",
    ),
    Mutant(
        "an evicted name stays where it was",
        "_io/deployment/shards.py",
        "            if shard is not None and shard.node == node.name:\n                self._move(name, shard, self._ownerless",
        "            if shard is None:\n                self._move(name, shard, self._ownerless",
        f"{CLUSTER} -k gap_of_its_names",
    ),
    Mutant(
        "a callback that takes a name away breaks off the eviction",
        "_io/deployment/shards.py",
        "            shard = self._places.get(name)\n            if shard is not None and shard.node == node.name:",
        "            shard = self._places[name]\n            if shard.node == node.name:",
        f"{CLUSTER} -k callbacks_may_do_anything_when_slots_move",
    ),
    Mutant(
        "a shard's loss is told without names",
        "_io/session/dispatcher.py",
        "                if self._evict is None:\n                    subscriber.disconnect",
        "                if True:\n                    subscriber.disconnect",
        f"{CLUSTER} -k gap_of_its_own",
    ),
    Mutant(
        "the role of a primary is not asked at the dial",
        "_io/redispy/dial.py",
        'if getattr(pool, "is_master", False):',
        "if False:",
        f"{CLUSTER} -k an_outdated_slot_map_does_not_lead_back",
    ),
    Mutant(
        "nobody looks for the names of a primary that does not answer",
        "_io/redispy/slot_map.py",
        "            self._on_failure()\n",
        "            return\n",
        f"{CLUSTER} -k a_frozen_primary_is_left_for_its_replica",
    ),
    Mutant(
        "a demoted primary keeps its link",
        "_io/deployment/shards.py",
        "        if shard is not None and not shard.slots:\n",
        "        if False:\n",
        f"{CLUSTER} -k an_outdated_slot_map_does_not_lead_back",
    ),
    Mutant(
        "what a node says of where a slot is now is forgotten",
        "_io/redispy/slot_map.py",
        "        self._owners[redirection.slot] = self",
        "        _ = self",
        f"{CLUSTER} -k publishes_follow_a_moving_slot_in_order",
    ),
    Mutant(
        "a batch follows a redirected call",
        "_io/publishing/slot_queue.py",
        "        self._pipeline = None\n        self._advance()\n",
        "        self._pipeline = self._owner()\n        self._pipeline.put_first(list(self._sendable()))\n",
        "tests/cluster/test_publishing_order.py -k overtakes",
    ),
    Mutant(
        "the first batch for a slot goes to any node",
        "_io/publishing/slot_queue.py",
        "        elif self._first is None:\n",
        "        elif True:\n",
        "tests/cluster/test_publishing_order.py -k overtakes",
    ),
    Mutant(
        "calls between two nodes outlive the multiplexer",
        "_io/publishing/slot_queue.py",
        "        return (call.close for call in held)\n",
        "        return iter(())\n",
        "tests/cluster/test_publishing_order.py -k end_with_the_multiplexer",
    ),
    Mutant(
        "drain() forgets calls between two nodes",
        "_io/publishing/cluster.py",
        "return [*super()._outcomes, *(call.outcome for queue in self._slot_queues.values() for call in queue.held)]",
        "return super()._outcomes",
        "tests/cluster/test_publishing_order.py -k end_with_the_multiplexer",
    ),
    Mutant(
        "a call that fails holds up the calls behind it",
        "_io/publishing/slot_queue.py",
        "        if call is self._first:\n            self._advance()\n",
        "        pass\n",
        "tests/cluster/test_publishing_order.py -k holds_up",
    ),
    Mutant(
        "only HELLO that is unknown means RESP2",
        "_io/redispy/dial.py",
        "    return isinstance(error, (ResponseError, AttributeError))",
        '    return "unknown command" in str(error)',
        "tests/live/test_handshake.py -k any_rejection",
    ),
    Mutant(
        "a wrong password is sent again in RESP2",
        "_io/redispy/dial.py",
        "            if not _may_be_about_hello(error):\n                raise\n",
        "",
        "tests/live/test_handshake.py -k is_sent_once",
    ),
    Mutant(
        "without a client name there is no connection",
        "_io/redispy/dial.py",
        '                await _optional(connection.call("CLIENT", "SETNAME", name), "the client name")',
        '                await connection.call("CLIENT", "SETNAME", name)',
        "tests/live/test_handshake.py -k costs",
    ),
    Mutant(
        "a server whose role is unknown is left",
        "_io/redispy/dial.py",
        'reply[0] if isinstance(reply, list) and reply else "master"',
        "reply[0]",
        "tests/live/test_handshake.py -k unknown_role",
    ),
    Mutant(
        "a server that keeps RESP3 is left",
        "_io/redispy/dial.py",
        'await _optional(_say_hello(connection, protocol), "HELLO")',
        "await _say_hello(connection, protocol)",
        "tests/live/test_handshake.py -k keeps_resp3",
    ),
    Mutant(
        "the Sentinels are asked over the connections of a client",
        "_io/redispy/sentinels.py",
        "        self.sentinel_manager.sentinels = [_Sentinel(client) for client in theirs.sentinel_manager.sentinels]\n",
        "",
        "tests/live/test_shared_client.py -k sentinel_client",
    ),
    Mutant(
        "add() makes the first connection itself",
        "_io/runtime/tasks.py",
        "if sys.version_info >= (3, 12) and not is_own:",
        "if sys.version_info >= (3, 12):",
        "tests/live/test_connecting.py -k makes_no_connection",
    ),
    Mutant(
        "a backoff that cannot be copied raises into add()",
        "_io/deployment/cluster.py",
        "            return deepcopy(self._options.backoff)\n        except (Exception, asyncio.CancelledError):",
        "            return deepcopy(self._options.backoff)\n        except LookupError:",
        f"{CLUSTER} -k cannot_be_copied",
    ),
    Mutant(
        "a connection that was given up waits for the server",
        "_io/redispy/dial.py",
        "    _close_at_once(raw)\n",
        "",
        "tests/live/test_tls.py -k silent_server",
    ),
    Mutant(
        "a probe goes on after its own dial has closed everything",
        "_io/runtime/tasks.py",
        "            task.get_loop().call_soon(task.cancel)\n",
        "            pass\n",
        "tests/live/test_left_connections.py -k credential",
    ),
    Mutant(
        "all calls with one deadline fail in one step",
        "_io/publishing/pipeline.py",
        "        left = EXPIRED_AT_ONCE\n",
        "        left = 10**9\n",
        f"{PUBLISH} -k expire_together",
    ),
    Mutant(
        "close() fails all calls in one step",
        "_io/hub.py",
        "        self.slices.begin(failures)\n",
        "        for step in failures:\n            step()  # type: ignore[operator]\n",
        f"{PUBLISH} -k very_many_calls",
    ),
    Mutant(
        "calls overtake those that are redirected",
        "_io/publishing/cluster.py",
        "        self._divert([call for call, _ in moved] + pipeline.take(slots))",
        "        pipeline.take(())\n        self._divert([call for call, _ in moved])",
        f"{CLUSTER} -k publishes_follow_a_moving_slot_in_order",
    ),
    Mutant(
        "a link is not closed when its last name has gone",
        "_io/deployment/shards.py",
        "            shard.closing = self._loop.call_later(SHARD_LINGER, self._close_shard, shard, context=Context())",
        "            pass",
        f"{CLUSTER} -k links_exist_only_while_they_are_needed",
    ),
    Mutant(
        "a link is closed though it is needed again",
        "_io/deployment/shards.py",
        "            shard.closing.cancel()\n            shard.closing = None\n",
        "            shard.closing = None\n",
        f"{CLUSTER} -k needed_again",
    ),
    Mutant(
        "a lost link to any node is made to the same one again",
        "_io/redispy/slot_map.py",
        "if node != self._node]",
        "]",
        f"{CLUSTER} -k replaced_by_one",
    ),
    Mutant(
        "a cancelled question for the slot map leaves connections open",
        "_io/redispy/endpoint.py",
        "            finally:\n                await connection.release()\n",
        "            except ValueError:\n                await connection.release()\n",
        f"{CLUSTER} -k a_cancelled_slot_map_refresh_leaves_nothing",
    ),
    Mutant(
        "closing forgets the links to shards",
        "_io/deployment/cluster.py",
        "        self.shards.close()\n",
        "",
        f"{CLUSTER} -k end_is_clean_while",
    ),
    Mutant(
        "shard channels are not counted as channels",
        "_io/hub.py",
        "        return self.deployment.name_count(Kind.CHANNEL) + self.deployment.name_count(Kind.SHARD_CHANNEL)",
        "        return self.deployment.name_count(Kind.CHANNEL)",
        f"{SHARDED} -k counts_both",
    ),
    Mutant(
        "shard channels are not in another table than channels",
        "_core/registry.py",
        "self.shard_channels = self._tables.values()\n",
        "self.shard_channels = self._tables.values()\n        self._tables[Kind.SHARD_CHANNEL] = self.channels\n",
        f"{SHARDED} -k a_shard_channel_and_a_channel_are_two_names",
    ),
    Mutant(
        "the key of a channel is what follows the last colon",
        "_core/keyspace.py",
        'channel.partition(b"__:")',
        'channel.rpartition(b"__:")',
        f"{KEYSPACE} -k every_key",
    ),
    Mutant(
        "subkeys are split at commas",
        "_core/keyspace.py",
        "        position = colon + 1 + int(digits)\n",
        '        position = (text + b",").find(b",", colon)\n',
        f"{KEYSPACE} -k every_subkey",
    ),
    Mutant(
        "an escaped key is taken for a pattern",
        "_core/keyspace.py",
        "        if byte == 0x5C:",
        "        if byte == 0x100:",
        f"{KEYSPACE} -k survives_its_channel",
    ),
    Mutant(
        "unwanted key events are delivered",
        "_io/deployment/keyspace.py",
        "if owner.events is None or owner.name.event_of(data) in owner.events:",
        "if True:",
        f"{KEYS} -k chosen",
    ),
    Mutant(
        "the setting is reported after each activation",
        "_io/deployment/keyspace.py",
        "            self._reported.add(missing)\n",
        "",
        f"{KEYS} -k reported_once",
    ),
    Mutant(
        "a key subscription is active at the first primary",
        "_io/deployment/keyspace.py",
        "all(feed.is_active for feed in",
        "any(feed.is_active for feed in",
        f"{CLUSTER_KEYS} -k other_primaries",
    ),
    Mutant(
        "a gap at a primary has no name",
        "_io/deployment/keyspace.py",
        "    if node is None:\n",
        "    if True:\n",
        f"{CLUSTER_KEYS} -k through_a_failover",
    ),
    Mutant(
        "a single key is subscribed everywhere",
        "_io/deployment/primaries.py",
        "self._slot_map.primaries if key is None else",
        "self._slot_map.primaries if True else",
        f"{CLUSTER_KEYS} -k owner_only",
    ),
    Mutant(
        "a slot map that cannot be read ends the reading of it",
        "_io/deployment/follower.py",
        "                self._is_settled = False\n                continue\n",
        "                return\n",
        "tests/io/test_follower.py -k unreadable",
    ),
    Mutant(
        "a fault while names are placed ends the reading of the slot map",
        "_io/deployment/follower.py",
        "            except Exception:  # noqa: BLE001, a fault of this library; never a silent end\n",
        "            except OSError:\n",
        "tests/io/test_follower.py -k fault",
    ),
    Mutant(
        "the slot map is read once, though a name is not in its place",
        "_io/deployment/follower.py",
        "            if self._is_settled:\n",
        "            if True:\n",
        "tests/io/test_follower.py -k until_names_are_placed",
    ),
    Mutant(
        "a gap that stands for others names the first primary only",
        "_core/event_list.py",
        "                self._items[self._full_gap + 1].is_merged = True\n",
        "",
        f"{CLUSTER_KEYS} -k become_one",
    ),
    Mutant(
        "a new primary is no gap",
        "_io/deployment/primaries.py",
        "        if subscriber.is_active and not gaps:",
        "        if False:",
        f"{CLUSTER_KEYS} -k new_primary",
    ),
    Mutant(
        "primaries without subscribers are kept",
        "_io/deployment/primaries.py",
        "            if primary.session.registry.is_empty:",
        "            if False:",
        f"{CLUSTER_KEYS} -k nobody_listens",
    ),
    Mutant(
        "a former primary is left without a gap",
        "_io/deployment/primaries.py",
        "for feed in strays if feed.is_active]\n        if",
        "for feed in strays if False]\n        if",
        f"{CLUSTER_KEYS} -k failover",
    ),
    Mutant(
        "every name by hand warns",
        "_io/deployment/cluster.py",
        "                self._has_warned = True\n",
        "",
        f"{CLUSTER_KEYS} -k by_hand",
    ),
    Mutant(
        "the Sentinels get the password of the master",
        "_io/redispy/urls.py",
        "sentinel_kwargs=shared | theirs)",
        "sentinel_kwargs=shared | {'password': options.get('password')})",
        f"{URLS} -k never_the_sentinels",
    ),
    Mutant(
        "a number in a URL of Sentinels is taken for a service",
        "_io/redispy/urls.py",
        "if service.isdecimal() and not db:",
        "if False:",
        f"{URLS} -k not_clear",
    ),
    Mutant(
        "TLS is for the master only",
        "_io/redispy/urls.py",
        'shared: dict[str, Any] = {"ssl": True}',
        "shared: dict[str, Any] = options.update(ssl=True) or {}",
        f"{URLS} -k all_their_addresses",
    ),
    Mutant(
        "all lines of a handler's failure are sent",
        "reply.py",
        'text = next(iter(str(error).splitlines()), "")',
        "text = str(error)",
        f"{TYPED_REQUESTS} -k first_line",
    ),
    Mutant(
        "the text of a decoder is sent to the requester",
        "reply.py",
        "({type(error.__cause__).__name__})",
        "({error.__cause__})",
        f"{TYPED_REQUESTS} -k without_its_data",
    ),
    Mutant(
        "the log shows a request that cannot be decoded",
        "_io/delivery/reporter.py",
        "None if isinstance(error, DecodeError) else callback",
        "callback",
        f"{TYPED_REQUESTS} -k without_its_data",
    ),
    Mutant(
        "a reply that cannot be decoded ends the iteration",
        "request.py",
        "except (RequestFailed, DecodeError) as error:",
        "except RequestFailed as error:",
        f"{TYPED_REQUESTS} -k undecodable_reply",
    ),
    Mutant(
        "None is not encoded",
        "service.py",
        "result if self._encode is None else",
        "result if self._encode is None or result is None else",
        f"{TYPED_REQUESTS} -k each_result",
    ),
    Mutant(
        "an activation of key events has the name on the wire",
        "keys.py",
        "return Activation(self._pattern) if isinstance(event, Activation) else event",
        "return event",
        f"{KEYS} -k gap_where_it_lies",
    ),
    Mutant(
        "streams: a message is delivered whatever its link",
        "_core/recovery.py",
        "if stream.previous == self.position:",
        "if self.position is not None:",
        RECOVERY,
    ),
    Mutant(
        "streams: the start of a new history is always a gap",
        "_core/recovery.py",
        "self.read(stream.id if stream.previous == ZERO else None)",
        "self.read(None)",
        RECOVERY,
    ),
    Mutant(
        "streams: any start of a new history is no gap",
        "_core/recovery.py",
        "not (previous == ZERO and entry_id == restart)",
        "not (previous == ZERO and restart)",
        RECOVERY,
    ),
    Mutant(
        "streams: live messages with smaller ids are ignored",
        "_core/recovery.py",
        "if stream.id not in stream.covered and stream.id != self.position:",
        "if id_key(stream.id) > id_key(self.position or ZERO):",
        RECOVERY,
    ),
    Mutant(
        "streams: a broken link in a page is no gap",
        "_core/recovery.py",
        "            if at and previous != at and not",
        "            if not at and previous != at and not",
        RECOVERY,
    ),
    Mutant(
        "streams: a link to an earlier entry is no gap",
        "_core/recovery.py",
        "if at and previous != at and not (previous == ZERO and entry_id == restart):",
        "if at and id_key(previous) > id_key(at):",
        "tests/core/test_recovery.py",
    ),
    Mutant(
        "streams: an entry of others proves that nothing is missing",
        "_core/recovery.py",
        "        elif not is_proven:  # it does not say what was before it",
        "        elif not at:",
        RECOVERY,
    ),
    Mutant(
        "streams: a stream trimmed behind its last entry is no gap",
        "_core/recovery.py",
        "    if page.is_end and page.last != at:",
        "    if page.is_end and page.last != at and not entries:",
        RECOVERY,
    ),
    Mutant(
        "streams: a stream that is gone is no gap",
        "_core/recovery.py",
        "    if page.is_end and page.last != at:",
        "    if page.is_end and page.last not in (at, ZERO):",
        RECOVERY,
    ),
    Mutant(
        "streams: live messages from before a page are taken for later ones",
        "_core/recovery.py",
        "first = max(0, len(self.recent) - (self.frames - request.frames))",
        "first = 0",
        RECOVERY,
    ),
    Mutant(
        "streams: the last message of a page is delivered twice",
        "_core/recovery.py",
        "following = recent[number + (entry_id == position) :]",
        "following = recent[number:]",
        RECOVERY,
    ),
    Mutant(
        "streams: live messages that waited are believed to be complete",
        "_core/recovery.py",
        "return following if [previous for previous, _, _ in following] == ids[:-1] else None",
        "return following",
        RECOVERY,
    ),
    Mutant(
        "streams: the first live message behind a page is believed to follow",
        "_core/recovery.py",
        "if [previous for previous, _, _ in following] == ids[:-1]",
        "if [previous for previous, _, _ in following[1:]] == ids[1:-1]",
        RECOVERY,
    ),
    Mutant(
        "streams: a page that a new connection did not ask for counts",
        "_core/recovery.py",
        "            if cursor.request is not request:\n                continue\n            result",
        "            if cursor.request is None:\n                continue\n            result",
        RECOVERY,
    ),
    Mutant(
        "streams: a cursor goes on from a page that it does not wait for",
        "_core/recovery.py",
        "if cursor.request is not request or cursor.position is None:",
        "if cursor.position is None:",
        RECOVERY,
    ),
    Mutant(
        "streams: the end of a silent stream is not compared",
        "_core/recovery.py",
        "        if frames == self.frames and page.last != ZERO:",
        "        if frames == self.frames and page.last == ZERO:",
        RECOVERY,
    ),
    Mutant(
        "streams: a cursor joins a page that was sent already",
        "_core/recovery.py",
        "request = self.wanted.pop(next(iter(self.wanted)))",
        "request = self.wanted[next(iter(self.wanted))]",
        RECOVERY,
    ),
    Mutant(
        "streams: a long history ends after its first page",
        "_core/recovery.py",
        "        if not page.is_end:\n            self.want(cursor)\n            return []\n",
        "",
        RECOVERY,
    ),
    Mutant(
        "streams: a page that failed is not read again",
        "_core/recovery.py",
        "            if cursor.request is request:\n                self.want(cursor)",
        "            if cursor.request is None:\n                self.want(cursor)",
        RECOVERY,
    ),
    Mutant(
        "streams: each late live message costs a page",
        "_core/recovery.py",
        "if stream.id not in stream.covered and stream.id != self.position:",
        "if stream.id != self.position:",
        RECOVERY,
    ),
    Mutant(
        "streams: entries are added without the right to publish",
        "_core/scripts.py",
        "if redis.acl_check_cmd and not redis.acl_check_cmd(ARGV[1], KEYS[1], '') then",
        "if false then",
        f"{STREAMS} -k right",
    ),
    Mutant(
        "streams: a key appends twice",
        "_core/scripts.py",
        "if known then return known end",
        "",
        f"{STREAMS} -k idempotent",
    ),
    Mutant(
        "streams: a late save moves a position backwards",
        "_core/scripts.py",
        "if #a > #c or #a == #c and a >= c then return known end",
        "",
        f"{STREAMS} -k backwards",
    ),
    Mutant(
        "streams: a script is never sent again",
        "_io/publishing/pipeline.py",
        "return is_moving or isinstance(error, NoScriptError)",
        "return is_moving",
        f"{STREAMS} -k lost_script",
    ),
    Mutant(
        "streams: a new connection does not get the script first",
        "_io/publishing/call.py",
        "if script.by_digest in known:",
        "if known is not None:",
        f"{STREAMS} -k keep_their_order",
    ),
    Mutant(
        "streams: what a slow consumer has no room for is lost",
        "_io/streams/inbox.py",
        "        if count and not self._is_forgetting:\n            self.fall_behind()",
        "        pass",
        f"{STREAMS} -k slow_consumer",
    ),
    Mutant(
        "streams: a stream without messages is never looked at",
        "_io/streams/streams.py",
        'self._later("tails", self._tail_interval and self._tail_interval / 2, self._look_at_tails)\n\n    def _later',
        "pass\n\n    def _later",
        f"{STREAMS} -k tail",
    ),
    Mutant(
        "streams: a live message with any id is delivered",
        "_core/recovery.py",
        "if not (first.isdigit() and second.isdigit()) or len(entry_id) > ID_LENGTH:",
        "if not entry_id:",
        "tests/core/test_recovery.py -k malformed",
    ),
    Mutant(
        "streams: a live message with a very long id is delivered",
        "_core/recovery.py",
        " or len(entry_id) > ID_LENGTH:",
        ":",
        "tests/core/test_recovery.py -k malformed",
    ),
    Mutant(
        "streams: pages that find nothing are read without a pause",
        "_io/streams/streams.py",
        "self._pauses[stream] = min(max(2 * self._pauses.get(stream, 0.0), FIRST_PAUSE), LONGEST_PAUSE)",
        "pass",
        f"{STREAMS} -k forged",
    ),
    Mutant(
        "streams: the message that a gap names is lost without a gap",
        "_io/streams/subscriber.py",
        'return [gap._replace(before=entry_id, reason="restarted"), *items]',
        "return items",
        f"{STREAMS} -k behind_a_gap",
    ),
    Mutant(
        "streams: a gap without on_gap is silent",
        "_io/streams/delivery.py",
        "self.subscriber.inbox.reporter.report(error) if self.on_gap is None",
        "None if self.on_gap is None",
        f"{STREAMS} -k without_on_gap",
    ),
    Mutant(
        "streams: pages of many streams stop the loop together",
        "_io/streams/streams.py",
        "            async with self._turn:\n",
        "            if True:\n",
        f"{STREAMS} -k leave_the_loop_free",
    ),
    Mutant(
        "streams: a cluster that is down rejects the streams",
        "_io/redispy/errors.py",
        "return isinstance(error, ClusterDownError) or classify_error(error)[0] is ErrorKind.TRANSIENT",
        "return False",
        "tests/cluster/test_streams.py -k is_down",
    ),
    Mutant(
        "streams: each rejected save is logged",
        "_io/streams/streams.py",
        "is_first = not self._rejected",
        "is_first = True",
        f"{DURABLE} -k rejected_save",
    ),
    Mutant(
        "streams: a second aclose() ends the save of the first one",
        "_io/hub.py",
        "        if self.durable:\n            self.drain()\n",
        "        if not self.durable:\n            return\n        self.drain()\n",
        f"{DURABLE} -k two_calls",
    ),
    Mutant(
        "streams: close() leaves everything to aclose()",
        "multiplexer.py",
        "            self._hub.check()\n            self._hub.close()\n",
        "            self._hub.check()\n            self._hub.drain()\n",
        f"{DURABLE} -k close_saves_no_position",
    ),
    Mutant(
        "streams: a message counts as handled before its callback is awaited",
        "_io/streams/delivery.py",
        "        if is_awaitable(result):\n",
        "        if is_awaitable(result):\n            subscriber.through(cursor)\n",
        f"{DURABLE} -k aclose_in_a_callback",
    ),
    Mutant(
        "streams: aclose() saves no position",
        "multiplexer.py",
        "                await hub.save_positions()\n",
        "                pass\n",
        f"{DURABLE} -k aclose_saves_exactly",
    ),
    Mutant(
        "streams: messages are handled while aclose() saves positions",
        "_io/hub.py",
        'subscription._close("multiplexer closed")',
        "subscription.subscriber.streams.save_in_background(subscription.subscriber)",
        f"{DURABLE} -k aclose_saves_exactly",
    ),
    Mutant(
        "streams: aclose() does not wait for the saves of closed subscriptions",
        "_io/streams/streams.py",
        "self._saving.add(task)",
        "pass",
        f"{DURABLE} -k saves_of_closed",
    ),
    Mutant(
        "streams: aclose() waits for positions without a limit",
        "_io/streams/streams.py",
        "asyncio.wait(self._saving, timeout=SAVE_TIMEOUT)",
        "asyncio.wait(self._saving, timeout=None)",
        f"{DURABLE} -k delay_the_end",
    ),
    Mutant(
        "streams: a cancelled aclose() closes nothing",
        "multiplexer.py",
        "        finally:\n            hub.close()\n",
        "        except asyncio.CancelledError:\n            raise\n        else:\n            hub.close()\n",
        f"{DURABLE} -k cancelled_aclose",
    ),
    Mutant(
        "streams: drain() raises the error of a position that cannot be saved",
        "stream.py",
        "with suppress(ConnectionLost):  # aclose() tries again",
        "if True:",
        f"{DURABLE} -k drain_without",
    ),
    Mutant(
        "streams: a blocking close() saves no position",
        "blocking/multiplexer.py",
        "        if not waits:\n            portal.call",
        "        if True:\n            portal.call",
        f"{DURABLE} -k blocking_multiplexer_saves",
    ),
    Mutant(
        "starlette: streams do not end when uvicorn shuts down",
        "contrib/starlette.py",
        "            stream._sub.close()\n",
        "            pass\n",
        f"{STARLETTE} -k shutdown_ends",
    ),
    Mutant(
        "starlette: a request in progress at shutdown finds the multiplexer closed",
        "contrib/starlette.py",
        "        self.is_stopping = True\n",
        "        self.is_stopping = True\n        self.multiplexer.close()\n",
        f"{STARLETTE} -k shutdown_ends",
    ),
    Mutant(
        "starlette: a client that leaves an idle stream is not noticed",
        "contrib/starlette.py",
        """["type"] != "http.disconnect":""",
        """["type"] != "":""",
        f"{STARLETTE} -k vanished",
    ),
    Mutant(
        "starlette: a client that does not read keeps its subscription",
        "contrib/_client.py",
        "            cancel(self._block)\n",
        "            pass\n",
        f"{STARLETTE} -k does_not_read",
    ),
    Mutant(
        "the end of a stream waits for ever for its client",
        "contrib/starlette.py",
        """                    with sending:
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
""",
        """                    await send({"type": "http.response.body", "body": b"", "more_body": False})
""",
        f"{STARLETTE} -k last_chunk",
    ),
    Mutant(
        "the end of a bridge waits for ever for its client",
        "contrib/starlette.py",
        "                async with asyncio.timeout(_GRACE):\n                    await websocket.close",
        "                async with asyncio.timeout(None):\n                    await websocket.close",
        f"{STARLETTE} -k cannot_be_closed",
    ),
    Mutant(
        "starlette: a client that leaves cancels the handling of its last message",
        "contrib/starlette.py",
        "                await asyncio.get_running_loop().create_future()\n",
        "                return\n",
        f"{STARLETTE} -k last_message",
    ),
    Mutant(
        "starlette: a TimeoutError of the application is swallowed",
        "contrib/_client.py",
        "        if not block.expired():\n            raise\n",
        "        pass\n",
        f"{STARLETTE} -k timeout_of_the_block",
    ),
    Mutant(
        "starlette: stream messages are sent without their ids",
        "contrib/starlette.py",
        "                if sent.id is None and isinstance(event, StreamMessage):",
        "                if False:",
        f"{STARLETTE} -k resumes",
    ),
    Mutant(
        "starlette: a client that leaves while its message is handled causes a traceback",
        "contrib/starlette.py",
        "                    websocket.application_state = WebSocketState.CONNECTED  # or",
        "                    pass  # or",
        f"{STARLETTE} -k last_message",
    ),
    Mutant(
        "starlette: the subscription of a client that has left a bridge stays open",
        "contrib/starlette.py",
        "    with closing(sub):\n        forward",
        "    if True:\n        forward",
        f"{STARLETTE} -k vanished",
    ),
    Mutant(
        "starlette: a stream that begins at shutdown does not end",
        "contrib/starlette.py",
        " or state.is_stopping:",
        ":",
        f"{STARLETTE} -k begins_at_shutdown",
    ),
    Mutant(
        "starlette: a stream whose client does not read outlives the shutdown",
        "contrib/starlette.py",
        "            cancel(block)\n",
        "            pass\n",
        f"{STARLETTE} -k stream_that_is_stuck",
    ),
    Mutant(
        "starlette: a client whose last send is done counts as one that does not read",
        "contrib/_client.py",
        "        self._began = None\n\n    def _check",
        "        pass\n\n    def _check",
        f"{STARLETTE} -k heartbeats",
    ),
    Mutant(
        "starlette: the close code of a closed multiplexer is that of a slow client",
        "contrib/starlette.py",
        "_RESTART if is_restart else _TRY_AGAIN_LATER",
        "_TRY_AGAIN_LATER",
        f"{STARLETTE} -k closed_multiplexer",
    ),
    Mutant(
        "starlette: a second start of the application finds the multiplexer closed",
        "contrib/starlette.py",
        "        async with multiplexer:\n            ending",
        "        async with __import__('contextlib').aclosing(multiplexer):\n            ending",
        f"{STARLETTE} -k one_test_client",
    ),
    Mutant(
        "starlette: any text is taken for the id of a stream message",
        "contrib/starlette.py",
        '"[0-9]{1,19}-[0-9]{1,19}"',
        '".+"',
        f"{STARLETTE} -k resumes",
    ),
    Mutant(
        "testing: a frozen network passes on what it has just read",
        "testing/proxy.py",
        "            while self._flow(way).stall:  # noqa: ASYNC110, any thread may change it\n",
        "            while False:\n",
        f"{FAULTS} -k frozen",
    ),
    Mutant(
        "testing: denied rights stay denied",
        "testing/faults.py",
        "return self._begin(self._rig.permit_all)",
        "return self._begin(lambda: None)",
        f"{FAULTS} -k come_back",
    ),
    Mutant(
        "testing: no connection is reset in the middle of a message",
        "testing/proxy.py",
        "                connection.left = count\n",
        "                pass\n",
        f"{FAULTS} -k reset_comes",
    ),
    Mutant(
        "testing: a message passes although its channel is dropped",
        "testing/frames.py",
        "_channel(frame) in self._dropped",
        "not frame",
        "tests/testing/test_frames.py -k removed",
    ),
    Mutant(
        "testing: the checker accepts messages of inactive names",
        "testing/checker.py",
        "        if self._name_of(channel) not in self.active:\n",
        "        if False:\n",
        "tests/testing/test_checker.py -k named",
    ),
    Mutant(
        "testing: a MemoryServer keeps the subscriptions of lost connections",
        "testing/memory.py",
        "                session.end()\n",
        "                pass\n",
        "tests/testing/test_memory.py -k leaves_nothing",
    ),
    Mutant(
        "socketio: the channel of a room that its last client has left stays subscribed",
        "contrib/socketio.py",
        "            self._sub.remove(self._name(namespace, room))\n",
        "            pass\n",
        f"{SOCKETIO} -k has_the_channels",
    ),
    Mutant(
        "socketio: enter_room() returns before the room is active",
        "contrib/socketio.py",
        "            await self._activated(self._name(namespace, room))\n",
        "            pass\n",
        f"{SOCKETIO} -k misses_nothing",
    ),
    Mutant(
        "socketio: a client learns its sid before its own room is active",
        "contrib/socketio.py",
        "            await self._activated(self._name(namespace), self._name(namespace, sid))\n",
        "            pass\n",
        f"{SOCKETIO} -k misses_nothing",
    ),
    Mutant(
        "socketio: the application is not told of a gap",
        "contrib/socketio.py",
        "                self._interrupt(event.error)\n",
        "                pass\n",
        f"{SOCKETIO} -k no_gap_is_silent",
    ),
    Mutant(
        "socketio: an event for several rooms arrives once for each",
        "contrib/socketio.py",
        "            self._seen.append(copy)\n",
        "            pass\n",
        f"{SOCKETIO} -k reach_rooms",
    ),
    Mutant(
        "socketio: binary data in the reply of a client is lost",
        "contrib/socketio.py",
        """            message, attachments = Packet.deconstruct_binary({**message, "args": list(message["args"])})\n""",
        "",
        f"{SOCKETIO} -k callbacks_and_requests",
    ),
    Mutant(
        "socketio: a callback that waits for a message blocks all messages",
        "contrib/socketio.py",
        "                    self._start(self._call_application(event.data))\n",
        "                    await self._call_application(event.data)\n",
        f"{SOCKETIO} -k callbacks_and_requests",
    ),
    Mutant(
        "socketio: a server without clients gets no replies",
        "contrib/socketio.py",
        "            self.initialize()\n",
        "            pass\n",
        f"{SOCKETIO} -k without_clients",
    ),
    Mutant(
        "socketio: the disconnect of a client by a process without a server fails",
        "contrib/socketio.py",
        "        if self.server is not None:  # the base class assumes one\n            await",
        "        if True:\n            await",
        f"{SOCKETIO} -k other_processes",
    ),
    Mutant(
        "socketio: a refused room ends the wait for the other rooms",
        "contrib/socketio.py",
        "while missing := self._sub.channels - self._sub.active - refused:",
        "while not refused and (missing := self._sub.channels - self._sub.active - refused):",
        f"{SOCKETIO} -k refused_room",
    ),
    Mutant(
        "socketio: the log says that all rooms are active though one is refused",
        "contrib/socketio.py",
        "        if not refused:\n",
        "        if True:\n",
        f"{SOCKETIO} -k refused_room",
    ),
    Mutant(
        "broadcaster: the first of two subscribers at the same time hears nothing",
        "contrib/broadcaster.py",
        "        self._feed.add(group.encode())\n",
        "        self._feed.add(group.encode())\n        await self._feed.sub.wait_for_activation(group)\n",
        f"{BROADCASTER} -k first_subscribers",
    ),
    Mutant(
        "broadcaster: an error of on_gap ends the messages",
        "contrib/_feed.py",
        "        except Exception:\n",
        "        except ZeroDivisionError:\n",
        f"{BROADCASTER} -k error_of_on_gap",
    ),
    Mutant(
        "broadcaster: a lost connection is not reported",
        "contrib/_feed.py",
        "self._lost.update({} if self._is_stream else",
        "self._lost.update({} if True else",
        f"{BROADCASTER} -k cut_connection",
    ),
    Mutant(
        "blocking: arun() calls the function in the loop of the caller",
        "blocking/multiplexer.py",
        "return await self._begun().portal.forward(lambda: function(self._mpx))",
        "return await function(self._mpx)",
        f"{BLOCKING} -k runs_in_the_loop",
    ),
    Mutant(
        "channels: consumers are not told that everything is subscribed again",
        "contrib/_members.py",
        "            if not self._lost:\n                self._process.notify(self._process.on_reconnect)",
        "            pass",
        f"{CHANNELS} -k told_of_a_lost_connection",
    ),
    Mutant(
        "channels: a cancelled receive() removes its channel at once",
        "contrib/_members.py",
        "call_later(self._expiry, partial",
        "call_later(0, partial",
        f"{CHANNELS} -k cancelled_receive",
    ),
    Mutant(
        "channels: a channel of a consumer that has ended stays",
        "contrib/_members.py",
        "channel.abandoned is call and not channel.receivers",
        "False",
        f"{CHANNELS} -k abandoned",
    ),
    Mutant(
        "channels: a channel is removed though another receiver waits",
        "contrib/_members.py",
        " and not channel.receivers",
        "",
        f"{CHANNELS} -k one_of_two",
    ),
    Mutant(
        "channels: the buffer of a slow consumer is not bounded",
        "contrib/_members.py",
        "if len(messages) >= channel.capacity:",
        "if False:",
        f"{CHANNELS} -k slow_consumer",
    ),
    Mutant(
        "channels: a forked child uses the connections of its parent",
        "contrib/channels.py",
        "        layer._process = layer._new_process()\n",
        "        pass\n",
        f"{CHANNELS} -k forked",
    ),
    Mutant(
        "channels: a name is sent to another server than by channels_redis",
        "contrib/_members.py",
        "zlib.crc32(name)",
        "zlib.adler32(name)",
        f"{CHANNELS} -k understands",
    ),
    Mutant(
        "channels: new_channel() leaves a channel when it fails",
        "contrib/channels.py",
        "            process.remove(channel, None)\n",
        "            pass\n",
        f"{CHANNELS} -k begin_deaf",
    ),
    Mutant(
        "litestar: a message misses the subscriber that came just before it",
        "contrib/litestar.py",
        "        await self._feed.joined(name)\n",
        "",
        f"{LITESTAR} -k after_subscribing",
    ),
    Mutant(
        "litestar: a message in an outage ends the worker of the plugin",
        "contrib/litestar.py",
        "            if not _is_worker():\n",
        "            if True:\n",
        f"{LITESTAR} -k in_an_outage",
    ),
    Mutant(
        "litestar: an application waits for the server to start",
        "contrib/litestar.py",
        "(*names, timeout=ACTIVE_WITHIN)",
        "(*names)",
        f"{LITESTAR} -k subscribing_offline",
    ),
    Mutant(
        "litestar: a hook that is falsy is not called",
        "contrib/_feed.py",
        "None if self._on_gap is None else",
        "None if not self._on_gap else",
        f"{LITESTAR} -k cut_connection",
    ),
]


@contextmanager
def broken_copy(mutant: Mutant) -> Iterator[str]:
    """Yield a folder with a copy of the package that has the fault, and of its tests."""
    with tempfile.TemporaryDirectory(prefix="redismpx-mutant-") as folder:
        for name in ("redismpx", "tests", "tools", "pyproject.toml"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name))  # with the bytecode, which saves most of a run's time
            else:
                shutil.copy(source, folder)
        path = Path(folder, "redismpx", mutant.file)
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.fault}: its text is {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new))
        yield folder


HANGS = 180  # seconds after which the tests have noticed a fault by never ending
PRELOADED = (
    "fakeredis",
    "hypothesis.stateful",
    "pytest_asyncio.plugin",
    "redis.asyncio",
    "redis.asyncio.cluster",
    "trustme",
)


def complaint(mutant: Mutant) -> str:
    """Return how the tests fail to notice a fault; nothing if they notice it."""
    with broken_copy(mutant) as folder:
        # Some faults show only when things happen in a certain order: each has three chances to be noticed.
        for _ in range(3):
            code, output = run(mutant.tests.split(), folder)
            if code in (None, 1) or "Timeout" in output:
                return ""
            if code != 0:
                return f"pytest ended with {code}\n{output[-2000:]}"
        return "the tests pass"


def run(tests: list[str], folder: str) -> tuple[int | None, str]:
    """Run tests in a session of their own, and end whatever they leave running; return their exit code and output.

    The code is None if they hang: Hypothesis takes pytest's timeout for a failure, and tries once more.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = multiprocessing.get_context("fork").Process(target=run_pytest, args=(tests, folder, output.fileno()))
        process.start()
        process.join(HANGS)
        code = process.exitcode
        with suppress(ProcessLookupError):
            os.killpg(process.ident or 0, signal.SIGKILL)
        process.join()
        output.seek(0)
        return code, output.read()


def run_pytest(tests: list[str], folder: str, output: int) -> NoReturn:
    """Run tests in this process, which was forked for them: what they import is there already."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]  # the tests import the tools of the copy
    os.environ |= {"PYTHONPATH": folder, "REDISMPX_HYPOTHESIS": "mutants"}  # for programs that the tests start, too
    ignored = "ignore::pytest.PytestAssertRewriteWarning"  # plugins are imported already, and need none
    code = pytest.main(["-qx", "-p", "no:cacheprovider", "--timeout=20", "-W", ignored, *tests])
    sys.stdout.flush()
    os._exit(code)


def compile_tests() -> None:
    """Have pytest write the bytecode of all tests, so that the copies bring it along."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def sample(mutants: Sequence[Mutant], count: int) -> list[Mutant]:
    """Return some faults, in their order. Each commit gets others, so in time CI has tried them all."""
    command = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    places = sorted(random.Random(commit).sample(range(len(mutants)), min(count, len(mutants))))
    return [mutants[place] for place in places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the faults with one of these texts in their names; else all")
    parser.add_argument("--workers", type=int, default=2, help="faults to try side by side (default: %(default)s)")
    parser.add_argument("--sample", type=int, help="run so many of them only, others for each commit")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(word in m.fault for word in options.words)]
    if options.sample:
        chosen = sample(chosen, options.sample)
    if len(chosen) > options.workers:
        compile_tests()
    for name in PRELOADED:
        import_module(name)
    complaints = []
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("fork")) as pool:
        for mutant, said in zip(chosen, pool.map(complaint, chosen), strict=True):
            print("NOT NOTICED" if said else "noticed", "-", mutant.fault, flush=True)
            if said:
                complaints.append(f"{mutant.fault}: {said}")
    print(f"{len(chosen)} faults put back, {len(chosen) - len(complaints)} noticed by the tests")
    if complaints:
        raise SystemExit("\n".join(complaints))


if __name__ == "__main__":
    main()
