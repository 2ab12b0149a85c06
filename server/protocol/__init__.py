"""Request bodies: what they may hold, and clear errors for what they may not."""
