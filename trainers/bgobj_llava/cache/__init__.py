"""Backgrounds that were seen: what may be used again, where it is kept, and the proof that it is the same."""
