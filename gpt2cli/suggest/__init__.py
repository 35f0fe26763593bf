"""What the model would write next: which text it sees, and drawing in a thread; without a terminal."""
