"""Ask an NS-Net server about one image, by httpx alone.

python_plain.py http://localhost:8000 photo.jpg; where it wants a key, API_KEY is it.
"""

import os
import sys
import time
from pathlib import Path

import httpx

server, image = sys.argv[1:]
key = os.environ.get("API_KEY")
headers = {"Authorization": f"Bearer {key}"} if key else {}
headers["Content-Type"] = "application/octet-stream"

for _ in range(5):
    answer = httpx.post(
        f"{server}/detect", content=Path(image).read_bytes(), headers=headers, timeout=60
    )
    if answer.status_code not in (429, 503):  # else it is busy, and says for how long
        break
    time.sleep(int(answer.headers.get("Retry-After", "1")))

body = answer.json()
if answer.is_error:
    sys.exit(f"{body['code']}: {body['detail']} (request {body['request_id']})")
print(image, body["verdict"], f"{body['score']:.3f}", *body["warnings"])
