"""``python -m contourcast.service.jobs.worker``: runs jobs; the server starts it."""

from contourcast.service.server import work_until_abandoned

if __name__ == "__main__":
    work_until_abandoned()
