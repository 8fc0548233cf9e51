"""What an episode is, and how it is kept: see store.py, writer.py, episode.py."""
