"""How often spans are linked rightly: `python -m bench.truth`, or `make truth`."""
