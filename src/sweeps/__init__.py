"""Sweeps: the plan of a multirun, its points as processes, and the slots of the machine that they run in."""
