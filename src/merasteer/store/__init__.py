"""The artifact store: publish durably, verify everything on load, list what is good and why the rest is not.

<store>/<model-slug>/<task>/<digest12>/    manifest.json   calibration.json   probe.safetensors
<store>/<model-slug>/<task>/latest         names the digest served by default

schema.py manifest.py certificate.py tensors.py    what the three files must hold    migrations.py    older ones
documents.py fields.py    strict JSON, typed reading        identity.py    which model an artifact belongs to
durable.py writing.py     complete or absent                reading.py     everything verified
scanning.py    list and pick       planting.py    random artifacts         describe.py    one entry for people
hub.py repository.py    push and pull    collecting.py  what nobody needs       comparing.py   what differs
"""

from merasteer.store.certificate import certificate_of
from merasteer.store.collecting import Verdict, collect, verdicts
from merasteer.store.comparing import differences
from merasteer.store.describe import summary
from merasteer.store.hub import pull, push
from merasteer.store.identity import ModelIdentity, identify, model_slug
from merasteer.store.planting import plant
from merasteer.store.reading import load
from merasteer.store.scanning import Entry, default_entry, latest, resolve_prefix, scan, snapshot, under
from merasteer.store.schema import Manifest
from merasteer.store.writing import publish

__all__ = [
    "Entry",
    "Manifest",
    "ModelIdentity",
    "Verdict",
    "certificate_of",
    "collect",
    "default_entry",
    "differences",
    "identify",
    "latest",
    "load",
    "model_slug",
    "plant",
    "publish",
    "pull",
    "push",
    "resolve_prefix",
    "scan",
    "snapshot",
    "summary",
    "under",
    "verdicts",
]
