"""A user's project: its files and commands read, and a trial's module, data and Trainer built as they build them."""
