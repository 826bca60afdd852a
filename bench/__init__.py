"""What tracing costs, measured on this machine: `python -m bench --help`."""
