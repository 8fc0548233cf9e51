"""One file a family of environments; a task is about eight lines."""
