"""Real text, captions, question answering and dialogue as episodes."""
