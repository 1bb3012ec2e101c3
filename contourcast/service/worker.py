"""``python -m contourcast.service.worker``: the process that runs jobs, started by the server."""

from contourcast.service.server import work_until_abandoned

if __name__ == "__main__":
    work_until_abandoned()
