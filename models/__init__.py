"""Makers of the models that the tests, benchmarks and examples prune; not shipped."""
