"""Fuzzing: `make fuzz`. Parsers of the kernel's side in C, the rest of them in Python."""
