"""The only code that writes results to disk: run directories, tickets, TensorBoard events."""
