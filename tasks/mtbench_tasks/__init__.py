"""The benchmark tasks of mtbench, one module or folder each; its name is the task's name."""
