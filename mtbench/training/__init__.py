"""One cell: a task, a method and a seed, trained and put on record.

- What is run: `task` (the contract, with the recipe), `data` (ready-made parts), `cell` (from a
  command line to a spec), `config`.
- How it is trained: `trainer` puts a cell together, `loop` makes steps (``Loop._update`` is what
  happens in one), on `batches`, with `learner` (model and method), `optimization`, `nonfinite`.
- How good it is: `evaluation`, `selection`, `diagnostics`.
- What stays: `rundir` (files), `record` (checkpoint, log, selected weights), `numbers` (on their
  way from the device), `trained` and `package` (models, read back), `weights`, `frozen`.
"""
