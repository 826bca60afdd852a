"""What a user would choose instead of tracing by eBPF, measured beside it in the same run."""
