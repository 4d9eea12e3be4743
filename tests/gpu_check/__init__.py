"""Whether everything that needs a GPU does there what it says."""
