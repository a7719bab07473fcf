"""What redismpx costs, beside a bare loop that does the same (the floor), and what one would pick instead (the peers).

    $ pip install -e '.[demo]' --group tests --group benchmarks
    $ python -m benchmarks            # everything; --help says how to do less

Each module of cases is a theme; each case is measured in turn for each of its contestants, in a process of its own.
"""
