"""Small models and tasks, exact and inexact, each with its true error by plain PyTorch in float64."""
