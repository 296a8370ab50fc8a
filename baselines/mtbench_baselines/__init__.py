"""The balancing methods of mtbench, one module each; its name is the method's name."""
