"""What pictures and captions of several objects do to an encoder: the diagnostics of ComCO (arXiv 2502.19842)."""
