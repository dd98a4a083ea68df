"""Text generation: decoding settings, next-token rules, sampling and beam search, and the step of a BLIP model."""
