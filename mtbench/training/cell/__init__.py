"""A cell: what is asked for, the weights that it starts from, and the directory of its record."""
