"""Training with Keras: the model, its step, what guards and follows it."""
