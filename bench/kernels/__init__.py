"""Does tracing work on other kernels? Guests are booted and root tests run in them."""
