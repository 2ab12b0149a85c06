"""What of a caller's JSON schema an answer can be held to."""
