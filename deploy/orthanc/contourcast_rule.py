"""Tells Contourcast that a series became stable. Runs inside Orthanc, with the standard library.

Orthanc's configuration names this file as PythonScript. The environment of Orthanc says where to:

    CONTOURCAST_EVENTS_URL   default http://127.0.0.1:8000/v1/orthanc/events
    CONTOURCAST_EVENTS_KEY   an API key of Contourcast with the role "machine"

What is sent is a hint, without anything of the patient. It may get lost: Contourcast reads the
archive's own list of changes as well, so a hint only makes it look sooner.
"""

import json
import os
import queue
import threading
import urllib.error
import urllib.request

import orthanc

URL = os.environ.get("CONTOURCAST_EVENTS_URL", "http://127.0.0.1:8000/v1/orthanc/events")
KEY = os.environ.get("CONTOURCAST_EVENTS_KEY", "")
TIMEOUT_S = 10.0
DELAYS_S = (0.0, 0.5, 2.0, 8.0)
# More hints than this wait only while Contourcast is down, and then it will look anyway.
WAITING_AT_MOST = 1000

hints = queue.Queue(maxsize=WAITING_AT_MOST)
stopping = threading.Event()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes where the configuration says, and nowhere else."""

    def redirect_request(self, *arguments):
        return None


opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def require_passwords():
    """An unset variable in the configuration is an empty password: then nobody may come in."""
    users = json.loads(orthanc.GetConfiguration()).get("RegisteredUsers", {})
    without = sorted(name for name, password in users.items() if not password)
    if without:
        raise RuntimeError(f"users without a password: {', '.join(without)}")


def on_change(change, level, resource):
    """Called by Orthanc, which waits: so this only notes what happened."""
    if change == orthanc.ChangeType.ORTHANC_STARTED:
        threading.Thread(target=post_hints, daemon=True).start()
    elif change == orthanc.ChangeType.ORTHANC_STOPPED:
        stopping.set()
    elif change == orthanc.ChangeType.STABLE_SERIES:
        try:
            hints.put_nowait(resource)
        except queue.Full:
            orthanc.LogWarning("contourcast: too many hints wait, one is dropped")


def post_hints():
    """Sends one hint after the other until Orthanc stops."""
    while not stopping.is_set():
        try:
            series = hints.get(timeout=0.2)
        except queue.Empty:
            continue
        hint = hint_of(series)
        if hint is not None and not any(posted(hint, delay_s) for delay_s in DELAYS_S):
            orthanc.LogWarning(f"contourcast: no hint could be sent of series {series}")


def hint_of(series):
    """What is said of a series; None when it is gone."""
    try:
        held = json.loads(orthanc.RestApiGet(f"/series/{series}"))
    except orthanc.OrthancException:
        return None
    tags = held["MainDicomTags"]
    return {
        "event": "stable-series",
        "orthanc_id": series,
        "series_instance_uid": tags.get("SeriesInstanceUID", ""),
        "modality": tags.get("Modality", ""),
        "instances": len(held["Instances"]),
    }


def posted(hint, delay_s):
    """Waits, then sends; whether it is settled: taken, or Orthanc stops."""
    if stopping.wait(delay_s):
        return True
    request = urllib.request.Request(
        URL,
        data=json.dumps(hint).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    try:
        with opener.open(request, timeout=TIMEOUT_S):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False


require_passwords()
if KEY:
    orthanc.RegisterOnChangeCallback(on_change)
else:
    orthanc.LogWarning("contourcast: CONTOURCAST_EVENTS_KEY is not set, no hints are sent")
