"""Text generation from a step function."""
