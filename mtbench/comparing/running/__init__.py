"""Running it: the sweep over open cells, its workers, and what starts these."""
