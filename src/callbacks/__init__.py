"""Lightning callbacks: guard, reproducibility, what a run remembers, what it shows."""
