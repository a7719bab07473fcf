"""Programs for developers: chaos, fuzz, mutants and measurements. None is a test, none is in the package."""
