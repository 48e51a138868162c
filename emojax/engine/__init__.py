"""One module per verb. Each takes built objects (networks, image sets, concept sets) and returns results."""
