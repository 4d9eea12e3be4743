"""Build, train, record and reload a run and its folder."""
