"""What particular client libraries need, one module each."""
