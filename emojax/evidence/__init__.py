"""Whether an edit helped: tests, controls and the verdict."""
