"""One module per command: opens inputs, calls the library, writes the run folder and prints."""
