"""Host 1: SOAR inside Ostris AI Toolkit. `trainer.py` is imported there alone; the rest needs
nothing of the host."""
