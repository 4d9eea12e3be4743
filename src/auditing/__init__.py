"""What a data set holds, before anything is trained: faults, duplicates, leaks, and features that give a class away."""
