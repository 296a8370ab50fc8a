"""How a cell is trained.

`trainer` puts it together, and `loop` makes the steps: ``Loop._update`` is what happens in one. The
rest are their parts:

- what a step needs: `batches`, `learner` (model and method), `optimization`;
- what is watched: `nonfinite`, `numbers` (on their way from the device), `diagnostics`;
- how good the model is: `evaluation`, `selection`;
- what is kept, and who is told: `record` (checkpoint, log, selected weights), `observer`.
"""
