"""What the trainings of encoder and LLaVA share, which do not import each other."""
