"""Programs on the bundled world: its pretraining, the score of a model on it, the demo."""
