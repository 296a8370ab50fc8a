"""What is made of a trained cell: its model read back or packed, its weights, its figures."""
