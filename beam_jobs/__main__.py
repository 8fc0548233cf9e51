"""`python -m beam_jobs`."""

from beam_jobs.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
