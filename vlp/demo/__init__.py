"""The synthetic world and the whole loop on it."""
