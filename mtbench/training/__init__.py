"""One cell: a task, a method and a seed, trained and put on record.

`task` is the contract of what a cell is trained on, and `data` holds ready-made parts for it. The
folders follow a cell from its start to its end; each knows only those above it.

- `machine`: where it is computed.
- `cell`: what is asked for, and where its record lies.
- `trainer`: how it is trained.
- `trained`: what is made of it afterwards.
"""
