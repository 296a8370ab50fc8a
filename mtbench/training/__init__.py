"""One cell: a task's data, the loop that trains a model on it, and the record of that."""
