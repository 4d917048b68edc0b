"""Training of draft heads: generations of the frozen model, its hidden states, the loop and the measure."""
