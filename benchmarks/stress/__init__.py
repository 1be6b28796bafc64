"""Runs that try to break what the plugin promises, at any scale: `python -m benchmarks.stress --help`."""
