"""Other quantizers on the same model, tokens and evaluator, each in an environment of its own."""
