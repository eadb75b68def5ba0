"""What a person does with a model: train, evaluate, predict, and keep it in a file."""
