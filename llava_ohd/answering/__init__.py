"""Answering questions about images with a LLaVA model, each distinct question once, and keeping what was answered."""
