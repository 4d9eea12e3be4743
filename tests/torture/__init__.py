"""Robustness tests that take minutes: kill commands, fill disks, give malformed input and extreme numbers."""
