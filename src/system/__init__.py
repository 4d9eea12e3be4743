"""What stands between a command and the machine: command lines, their errors, and processes."""
