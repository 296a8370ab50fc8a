"""From names to classes: methods and tasks, their parameters, what they say of themselves."""
