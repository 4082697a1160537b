"""Ask an NS-Net server about images, by nsnet-client (pip install ./client).

python_client.py http://localhost:8000 photo.jpg [more ...]; where it wants a key, API_KEY is it.
"""

import os
import sys

from nsnet_client import ApiError, Client, ItemOk

server, first, *more = sys.argv[1:]

with Client(server, api_key=os.environ.get("API_KEY")) as client:
    try:
        found = client.detect(first)
    except ApiError as error:
        sys.exit(f"{error.code}: {error.detail} (request {error.request_id})")
    print(first, found.verdict, f"{found.score:.3f}", *found.warnings)
    if found.provenance:
        print("the file declares:", found.provenance.declares)

    # Any number of images: they are split into requests, and answered as each is known.
    for item in client.detect_batch(more):
        if isinstance(item, ItemOk):
            print(item.filename, item.result.verdict, f"{item.result.score:.3f}")
        else:
            print(item.filename, item.error.code, item.error.detail)
