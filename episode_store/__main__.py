"""`python -m episode_store`."""

from episode_store.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
