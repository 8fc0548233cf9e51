"""`python -m collectors`."""

from collectors.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
