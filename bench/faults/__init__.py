"""Faults, each with load running and its ground truth counted: `make faults`."""
