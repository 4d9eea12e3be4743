"""Sweeps: what is asked for, one process a point, as many at a time as the machine has slots."""
