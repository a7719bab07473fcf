"""Benchmarks: what redismpx costs, compared with a bare loop and with other libraries.

    $ pip install -e '.[contrib,demo]' --group tests --group frameworks --group benchmarks
    $ python -m benchmarks                            # all cases; takes about half an hour
    $ python -m benchmarks drain latency --rounds 3   # some cases
    $ python -m benchmarks --help

- A **case** is one kind of work, such as "receive 200,000 messages". Each module of cases has a list `CASES`.
- Each case has several **contestants** that do the same work: redismpx, the floor, and the peers.
- The **floor** is the least code that can do the work: usually a blocking socket, the hiredis parser and a loop. It has
  no reconnect, no queues and no checks. The ratio of redismpx to the floor shows what these features cost.
- The **peers** are other libraries, used as their documentation says. The report says which of them are not installed.

For each case, the contestants take turns for some rounds. Each turn runs in a process of its own, with a server of its
own, so that no contestant profits from another one, and a disturbance of the machine affects all of them. The main
figure of most cases is the CPU time (user and system) of the client process for each operation, in microseconds. The
report shows medians, and the ratios to the floor and to redismpx within the same round. `targets.py` has the bounds
that redismpx is meant to keep; the report says which of them are met. No bound changes the exit status.

Two more commands show where the time goes: `--profile CONTESTANT` and `--bytecodes CONTESTANT` run one contestant
alone, and `python -m benchmarks.pieces` measures the single steps of which a case consists.
"""
