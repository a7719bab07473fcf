"""Chaos test: faults of all kinds at random moments, under load.

    $ python -m tools.chaos                              # one minute on Valkey, with a random seed
    $ python -m tools.chaos --seconds 600 --server redis --seed 7
    $ python -m tools.chaos --broken "a late joiner"     # with a known fault in the package: must fail
    $ python -m tools.chaos --axis removals              # about one thing only: see below

One multiplexer is connected through a proxy. A load publishes numbered messages to 270 channels, directly to the
server. Consumers of all kinds subscribe and unsubscribe all the time. Faults come in rounds of one to three, which may
overlap; the seed alone decides which faults, when and how.

After each round the program waits until everything has recovered: the server has exactly the desired names subscribed
within `--settle` seconds of the last connection, and every consumer has got the newest message of each of its channels.
A checker for each subscription verifies that no message is missing between an activation and a disconnect. At the end
the multiplexer is closed, and no task, socket or other object may be left.

`--axis NAME` is about one thing that these faults do not reach. It repeats a short scene, each time in a new event loop
of a random kind and with other random choices, which the seed decides:

AXES

`--losses N`, with an axis of streams, plays longer scenes: ten multiplexers have 500 subscriptions to 50 streams, and
20 publishers append. It ends after N lost connections and histories, instead of `--seconds`.

Each scene checks the order of the events, that no number is missing between an activation and a disconnect or else is
counted as dropped, and that everything is released at its end.

Prints a summary every five seconds, then the faults, the warnings, and the violations. It stops at the first violation.
The exit status is 1 if there is a violation, otherwise 0. `--broken TEXT` runs in a copy of the package with the fault
of `tools.mutants` whose name contains TEXT, and exits with the status of that run.
"""
