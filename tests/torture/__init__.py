"""A campaign against the commands: killed, on a full disk, given nonsense, at the edge of numbers. ``make torture``."""
