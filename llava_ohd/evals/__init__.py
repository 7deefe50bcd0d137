"""The rules: pure functions from answers to metrics, standard library only."""
