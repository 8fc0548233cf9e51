"""Tests of running jobs in worker processes."""

import pytest

from collectors import jobs


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_to_do(workers):
    """A stage that was killed after its last job finds none left when it is run again."""
    runner = jobs.JobRunner(lambda job, report: job, unit="job", describe=str, done=str)
    assert runner.run([], workers=workers, total=0, title="nothing") == []
