"""Where a cell is computed: device, numerical environment, locks on files, cache, processes."""
