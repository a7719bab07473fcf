"""Programs for developers. They are neither tests nor part of the package.

- `chaos` and `fuzz` look for faults with random failures and random bytes.
- `mutants` puts known faults into a copy of the package and checks that the tests notice them.
- `measure_*` measure or check the package under loads that are too long for a test.

Run one with `python -m tools.NAME`; `--help` lists its options. Its docstring says what it prints, and when its exit
status is 1. `measuring` is what they share.
"""
