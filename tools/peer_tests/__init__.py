"""Run the tests that other projects have for their adapters, on the adapters of redismpx.contrib.

    $ python -m tools.peer_tests channels                     # from the source package of the installed release
    $ python -m tools.peer_tests channels --source ~/checkout # where the source package has no tests

Each module here knows one framework: which of its tests apply, what replaces its own adapter in them, and why the
others are left out. Nothing of those tests is kept in this repository.
"""
